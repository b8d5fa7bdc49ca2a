package agentapi

import (
	"time"

	"baton/internal/model/cluster"
)

// The calls about images that nodes make, beside those of CallService's others.
const (
	CallHolders = "ImageHolders" // ImageQuestion → ImageHolders
	CallMember  = "IsMember"     // MemberQuestion → MemberAnswer
)

// ImageQuestion asks who has an image.
type ImageQuestion struct {
	Ref string `json:"ref"` // complete, with registry and tag
}

// ImageHolders tells who has an image.
type ImageHolders struct {
	// Digest is the content of the newest load; empty when nobody has loaded the reference by hand.
	Digest string `json:"digest,omitempty"`
	// On is the name of the node where it was loaded, Loaded when.
	On     string    `json:"on,omitempty"`
	Loaded time.Time `json:"loaded,omitzero"`
	// Holders are connected nodes that have the reference, possibly with other content, the best one first; never the node
	// that asks. There may be more of them.
	Holders []ImageHolder `json:"holders,omitempty"`
}

// ImageHolder is a node that has an image.
type ImageHolder struct {
	Node    cluster.ID `json:"node"`
	Name    string     `json:"name"`
	Address string     `json:"address"` // host:port of its one port
}

// MemberQuestion asks whether a node is a member of the cluster.
type MemberQuestion struct {
	Node cluster.ID `json:"node"`
}

// MemberAnswer is the answer to a MemberQuestion.
type MemberAnswer struct {
	Member bool `json:"member"`
}
