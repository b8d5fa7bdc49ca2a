package agentapi

import "baton/internal/model/cluster"

// The call of a machine that has no certificate yet.
const (
	JoinService = "baton.Join"
	CallJoin    = "Join" // JoinRequest → JoinReply
)

// JoinRequest asks to become a member. Asking again with the same Nonce, after an answer was lost, is the same request.
type JoinRequest struct {
	Secret []byte     `json:"secret"` // of the join token
	Nonce  []byte     `json:"nonce"`
	Node   cluster.ID `json:"node"`
	Name   string     `json:"name"`
	Listen string     `json:"listen"` // where the node's port is reached
	CSR    []byte     `json:"csr"`
	Hosts  []string   `json:"hosts,omitempty"`
	// Witness asks for a place as a manager that only votes.
	Witness bool `json:"witness,omitempty"`
	// Level is the highest feature level that the machine's baton knows.
	Level cluster.Level `json:"level,omitempty"`
}

// JoinReply makes a machine a member.
type JoinReply struct {
	Certificate
	Cluster  string    `json:"cluster"`
	Role     string    `json:"role"`
	Managers []Manager `json:"managers"`
	Kit      *Kit      `json:"kit,omitempty"` // for managers
}
