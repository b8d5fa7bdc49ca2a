// Package transport is how the machines of a cluster reach each other: one TCP port for everything, with mutual TLS.
// Managers serve all of it on theirs, workers images only.
//
// What a connection is for is agreed in its TLS handshake (ALPN), so that one listener serves them all:
//
//	baton-raft/1     the managers' log                 both sides show certificates of managers
//	baton-manager/1  calls between managers            both sides show certificates of managers
//	baton-agent/1    an agent's session                the caller shows a node's certificate
//	baton-node/1     the way back: the caller serves   the caller shows a node's certificate
//	baton-image/1    images from node to node          the caller shows a node's certificate
//	baton-join/1     a machine that wants to join      the caller has no certificate yet
//	h2, http/1.1     the public API                    a certificate is asked for, not required
//
// Invariants: a protocol that needs a certificate never sees a connection whose certificate was not checked against the
// roots of that moment; whom Allow refuses gets a closed connection after the handshake and nothing else; Recheck
// ends the connections of those who have lost their right since. Sessions are not resumed, because a resumed one would
// skip the check. TLS 1.3 only. A host that starts handshakes and says nothing takes up its own share of them only.
//
// The network beneath is a seam: real TCP, or package memnet in simulations.
//
// Concurrency: a Listener owns one goroutine that accepts and one per handshake under way; Close waits for all of them.
// Everything may be called from any goroutine.
package transport
