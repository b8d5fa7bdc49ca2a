package api

import (
	"time"

	"baton/internal/model/cluster"
)

// Cluster is the cluster as a whole.
type Cluster struct {
	Name     string       `json:"name"`
	Mesh     cluster.Mesh `json:"mesh,omitempty"`
	Leader   string       `json:"leader,omitempty" doc:"name of the leading manager; empty while there is none"`
	Managers []Manager    `json:"managers"`
	// Authority is a short hash of the authority that signs certificates now.
	Authority string `json:"authority,omitempty"`
	// Rotating says how far a rotation of the authority has come; empty when there is none.
	Rotating string `json:"rotating,omitempty"`
	// Level is the feature level: the highest that all nodes know. Behind are the nodes that keep it from being what this
	// manager knows.
	Level  cluster.Level `json:"level"`
	Behind []string      `json:"behind,omitempty"`
	// Locked says that managers need the unlock key when they start.
	Locked bool `json:"locked,omitempty"`
}

// Manager is a node that keeps the cluster's state.
type Manager struct {
	Name    string            `json:"name"`
	Address string            `json:"address,omitempty"`
	State   cluster.NodeState `json:"state"`
	Voter   bool              `json:"voter" doc:"it counts for majorities; a new manager does once it has the state"`
	Leader  bool              `json:"leader,omitempty"`
}

// JoinToken lets machines join.
type JoinToken struct {
	ID      cluster.ID `json:"id"`
	Role    string     `json:"role" enum:"worker,manager"`
	Expires time.Time  `json:"expires,omitzero" doc:"never when it is not there"`
	// Line is the token with the address of a manager, ready for baton join. It is a secret.
	Line string `json:"line"`
}

// TokenRequest makes a join token.
type TokenRequest struct {
	Role string `json:"role" enum:"worker,manager"`
	// TTL is how long it is good, as in 90m or 24h; empty: for ever.
	TTL string `json:"ttl,omitempty"`
	// Rotate takes away all other tokens of the role.
	Rotate bool `json:"rotate,omitempty"`
}

// CertificateRequest asks for a certificate with which a user reaches the API from elsewhere.
type CertificateRequest struct {
	Name string `json:"name" doc:"of the user; it stands in events"`
	// CSR is a certificate request (DER) for the user's key, which stays with the user.
	CSR []byte `json:"csr"`
	// TTL is how long it is good, as in 24h; default 2160h (90 days).
	TTL string `json:"ttl,omitempty"`
}

// Certificate is a user's certificate, with whom to trust (PEM) and where the managers answer (host:port).
type Certificate struct {
	Certificate []byte   `json:"certificate"`
	Roots       []byte   `json:"roots"`
	Managers    []string `json:"managers"`
}

// BackupRequest asks for a backup of the cluster.
type BackupRequest struct {
	// Recipients are the age public keys of those who can open it.
	Recipients []string `json:"recipients,omitempty" doc:"age public keys (age1…); any of them opens the backup"`
	// Unencrypted asks for a backup in clear. Whoever reads it has the cluster's keys.
	Unencrypted bool `json:"unencrypted,omitempty"`
}

// CheckResult is what came of a check.
type CheckResult string

// The results of a check.
const (
	CheckOK   CheckResult = "ok"
	CheckWarn CheckResult = "warn" // it works; something may stop to
	CheckFail CheckResult = "fail" // something does not work
)

// Check is one thing that the doctor looked at.
type Check struct {
	Name    string      `json:"name" doc:"what was looked at: quorum, clock, disk, ports, mesh, certificate, kernel, connections, process, version"`
	Node    string      `json:"node,omitempty" doc:"name of the node; empty: the cluster as a whole"`
	Result  CheckResult `json:"result" enum:"ok,warn,fail"`
	Message string      `json:"message"`
	Mend    string      `json:"mend,omitempty" doc:"what to do about it"`
	// Values are the numbers behind the message, by name, where there are some worth following over time.
	Values map[string]uint64 `json:"values,omitempty" doc:"the numbers behind the message, by name"`
}

// LockRequest locks the sealing key on every manager's disk, or takes the lock off.
type LockRequest struct {
	Off bool `json:"off,omitempty"`
}

// LockResult is the lock as it is then. Key is shown this once; managers that start need it.
type LockResult struct {
	Locked bool   `json:"locked"`
	Key    string `json:"key,omitempty"`
}

// UnlockRequest lets a locked manager open its state.
type UnlockRequest struct {
	Key string `json:"key"`
}
