package agentapi

import (
	"context"
	"io"
	"iter"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// Execution is one interactive command in a container, for `baton exec`.
type Execution struct {
	Argv   []string
	Env    []string
	User   string
	Dir    string
	TTY    bool
	Width  uint16
	Height uint16
	Stdin  io.Reader // nil: none
	Stdout io.Writer
	Stderr io.Writer // nil with TTY
	// Resize yields new window sizes (columns, rows) until closed; may be nil.
	Resize <-chan [2]uint16
}

// LogOptions select lines of a task's output.
type LogOptions struct {
	Since, Until time.Time
	Tail         int  // last lines only; negative: all
	Follow       bool // go on until the task ends or ctx does
}

// LogLine is one line of a task's output, without its line end.
type LogLine struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"` // stdout or stderr
	Text   string    `json:"text"`
	// Partial is true when the line was too long and goes on in the next one.
	Partial bool `json:"partial,omitempty"`
}

// Image is an image that is present on a node.
type Image struct {
	Ref     string    `json:"ref"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"` // bytes of content, compressed as stored
	Created time.Time `json:"created,omitzero"`
}

// Stats is what a task uses.
type Stats struct {
	Task        cluster.ID    `json:"task"`
	At          time.Time     `json:"at"`
	CPU         time.Duration `json:"cpu"`    // used so far
	Memory      uint64        `json:"memory"` // bytes, without reclaimable cache
	MemoryLimit uint64        `json:"memoryLimit,omitempty"`
	PIDs        uint64        `json:"pids"`
	// Received and Sent are bytes over the task's own network; zero with that of the host.
	Received uint64 `json:"received,omitempty"`
	Sent     uint64 `json:"sent,omitempty"`
}

// Usage is what a node and its running tasks use.
type Usage struct {
	At         time.Time     `json:"at"`
	CPU        time.Duration `json:"cpu"`  // used so far, by everything on the machine
	Busy       spec.MilliCPU `json:"busy"` // in use of late
	Cores      spec.MilliCPU `json:"cores"`
	Memory     spec.Bytes    `json:"memory"` // that cannot be had for new processes
	MemorySize spec.Bytes    `json:"memorySize"`
	Tasks      []Stats       `json:"tasks,omitempty"`
}

// FilesOptions say what is copied.
type FilesOptions struct {
	Path   string `json:"path"`             // in the task
	Write  bool   `json:"write,omitempty"`  // into the task
	Follow bool   `json:"follow,omitempty"` // when Path is a symbolic link, read what it leads to
	Owners bool   `json:"owners,omitempty"` // keep uid and gid when writing
}

// Conn is a connection whose two directions end on their own. Close may be called while it is read or written, and ends both.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// NodeServices is what a node does for users who look at its tasks and images. Managers reach it through the session of the
// node; on one machine it is called directly.
type NodeServices interface {
	Logs(ctx context.Context, task cluster.ID, o LogOptions) iter.Seq2[LogLine, error]
	Exec(ctx context.Context, task cluster.ID, e Execution) (code int, err error)
	// Dial connects to a TCP port in the task's network namespace. ctx is for the connecting and, over the wire, for the
	// connection: it ends with it.
	Dial(ctx context.Context, task cluster.ID, port uint16) (Conn, error)
	// Files opens a copy out of a task, which is read as a tar stream, or into one, which is written as one: after CloseWrite, a
	// Read tells with io.EOF that all is there. ctx is as for Dial.
	Files(ctx context.Context, task cluster.ID, o FilesOptions) (Conn, error)
	Usage(ctx context.Context) (Usage, error)
	Images(ctx context.Context) ([]Image, error)
	// LoadImage imports an OCI or docker archive and returns the references it held.
	LoadImage(ctx context.Context, archive io.Reader) ([]string, error)
	RemoveImage(ctx context.Context, ref string) error
	// Diagnose looks at the machine, and at its ways to others.
	Diagnose(ctx context.Context, ways []Way) (Diagnosis, error)
}
