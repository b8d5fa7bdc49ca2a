package agentapi

import (
	"time"

	"baton/internal/model/cluster"
)

// Way is an address that a node is to try by TCP. An answer of any kind, a refusal too, shows that packets go both ways.
type Way struct {
	Name    string `json:"name"`
	Address string `json:"address"` // host:port
}

// Tried is what came of a way.
type Tried struct {
	Way
	Open    bool   `json:"open,omitempty"`    // somebody listens there
	Refused bool   `json:"refused,omitempty"` // the machine answers, and nobody listens
	Text    string `json:"text,omitempty"`    // why not
}

// Feature is something that a node needs of its kernel.
type Feature struct {
	Name string `json:"name"`
	// Missing says what does not work without it, and why it is not there; empty: it is there.
	Missing string `json:"missing,omitempty"`
	// Optional: the node works without it, by the way that Instead names.
	Optional bool   `json:"optional,omitempty"`
	Instead  string `json:"instead,omitempty"`
	// Mesh: it is needed with this mesh only; empty: with every one.
	Mesh cluster.Mesh `json:"mesh,omitempty"`
}

// Diagnosis is how a machine is.
type Diagnosis struct {
	Began    time.Time     `json:"began"` // by the machine's clock
	Ended    time.Time     `json:"ended"`
	Sync     time.Duration `json:"sync"` // how long a small write takes to reach the disk of the data directory, the median of a few
	DiskFree uint64        `json:"diskFree"`
	DiskSize uint64        `json:"diskSize"`
	Features []Feature     `json:"features,omitempty"`
	Tried    []Tried       `json:"tried,omitempty"`
	// ConnsUsed and ConnsMax are of the kernel's connection tracking; zero when it tells nothing.
	ConnsUsed uint64 `json:"connsUsed,omitempty"`
	ConnsMax  uint64 `json:"connsMax,omitempty"`
	// Process is the node's baton itself.
	Process Process `json:"process,omitzero"`
}

// Process is what a baton process uses of its machine.
type Process struct {
	Goroutines uint64 `json:"goroutines"`
	Heap       uint64 `json:"heap"`     // bytes of objects that were live at the last collection
	Resident   uint64 `json:"resident"` // bytes of memory that the process has, zero when it is not known
	Files      uint64 `json:"files"`    // open file descriptors
	FilesMax   uint64 `json:"filesMax"`
}
