// Package edgeproc runs a node's edge (package edge) in a process of its own, which outlives baton: a restart, crash or upgrade of baton
// cuts no connection of a client.
//
// Edge is baton's side: it opens the ingress ports (plain HTTP, and TLS while a rule has it), starts the process, keeps its table as the managers say, and replaces it by another
// build. Main is the process (cmd/baton-edge). Both sides speak over a unix socket in a directory of the node's, on tmpfs:
//
//	DIR/<id>.sock   the control socket of the process <id>
//	DIR/<id>.err    what it wrote when it broke; a log goes over the socket
//	DIR/empty/      the root directory of every such process
//
// # Listeners
//
// Baton opens the listening sockets, for a port below 1024 needs rights that the process has not, and both keep them open. So connections
// wait in the kernel while a process that was killed is started again, and a baton that was killed gets the sockets back when it
// adopts the process. They are never opened a second time beside each other (SO_REUSEPORT): the kernel would put connections into
// the queue of a socket that nobody accepts from any more, and reset them when it is closed.
//
// # Invariants
//
// When Apply has returned, every process, also one that leaves, routes by that state or a newer one; one that does not say so in time
// is killed. A process gets a listener only after its table, and the one before it gives the listener up only after that: there is always one
// that accepts. Connections counts what all processes have; before those of an earlier baton are known it waits.
//
// # The process
//
// It drops every right before it opens its first connection: see confine. It takes commands from root and from the user that started it
// only. It ends when it was told to leave and its last request has ended, an hour after that at the latest, or when it had neither a
// listener nor a request for a minute. Without baton it serves on by its last table. The private keys of hosts come with the table, and
// stay in its memory.
//
// # Protocol
//
// A frame is four bytes of length, big endian, and a JSON message; file descriptors come with the length. A call has an id, its answer
// the same one; the process reports without one. Fields and kinds are only ever added: either side may be older than the other.
//
// Concurrency: everything may be called at once. Run owns the goroutines and returns after all of them ended.
package edgeproc
