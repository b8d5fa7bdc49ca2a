// Package shim is the program that containerd runs as the tasks' runtime: it stands before containerd's own shim executable, which it
// becomes whenever there is something to do that only that can. What it does itself is what would cost a start or a removal most of
// its processor time above runc:
//
//   - start, for a task that joins the shim of others: it answers with that shim's socket. containerd's own shim executable does the
//     same after initializing all of itself.
//   - delete, after a task that is gone already: it says so. containerd runs this command after each task, and its own shim executable
//     runs `runc delete --force` for a container that does not exist any more.
//
// # Groups
//
// A task's OCI spec names the group whose shim it is to live in, by the annotation GroupAnnotation. Baton calls a group by the task that
// founds it, and this program keeps the rule that makes a shim's process tell its group: only the founder may start the shim of a
// group. Another task whose group has no shim that listens fails to start (GoneSign), and is given another group.
//
// The protocol is that of the pinned containerd: the command line, the working directory and what is printed are containerd's
// core/runtime/v2/binary.go, the sockets' names its pkg/shim CreateSocketAddress. Whatever is unexpected is left to the shim executable
// beside this one.
package shim

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// GroupAnnotation of the OCI spec names the group whose shim a task lives in. It is containerd's own.
	GroupAnnotation = "io.containerd.runc.v2.group"
	// Executable is the name of containerd's shim, which is beside this program.
	Executable = "containerd-shim-runc-v2"
	// Program is the name of this program's executable.
	Program = "baton-shim"
	// SocketDir is the directory of the shims' sockets, beside containerd's.
	SocketDir = "s"
	// GoneSign is in the error of a start whose group has no shim any more.
	GoneSign = "the shim of its group is gone"
	// dialMax bounds the look whether a shim listens.
	dialMax = 2 * time.Second
)

// SocketPath is where containerd lets the shim of a group listen; address is containerd's own socket.
func SocketPath(address, namespace, group string) string {
	sum := sha256.Sum256([]byte(filepath.Join(address, namespace, group)))
	return filepath.Join(filepath.Dir(address), SocketDir, hex.EncodeToString(sum[:]))
}

// call is one run of the program by containerd.
type call struct {
	namespace, address, id, bundle, action string
}

// parse reads the command line; ok is false for any that is not one of the two commands.
func parse(args []string) (c call, ok bool) {
	for len(args) >= 2 {
		switch args[0] {
		case "-namespace":
			c.namespace = args[1]
		case "-address":
			c.address = args[1]
		case "-id":
			c.id = args[1]
		case "-bundle":
			c.bundle = args[1]
		case "-publish-binary":
		default:
			return c, false
		}
		args = args[2:]
	}
	if len(args) != 1 || c.namespace == "" || c.address == "" || c.id == "" {
		return c, false
	}
	c.action = args[0]
	return c, true
}

// Main is the whole program: args are its command line without the program's name.
func Main(args []string) int {
	c, ok := parse(args)
	switch {
	case ok && c.action == "start":
		answer, err := c.start(".")
		if err != nil {
			_, _ = os.Stderr.WriteString("baton-shim: " + err.Error())
			return 1
		}
		if answer != nil {
			return write(answer)
		}
	case ok && c.action == "delete" && c.nothingLeft():
		return 0 // an empty answer is an empty message
	}
	return become(args)
}

func write(b []byte) int {
	if _, err := os.Stdout.Write(b); err != nil {
		return 1
	}
	return 0
}

// become runs containerd's own shim executable in this process.
func become(args []string) int {
	self, err := os.Executable()
	if err == nil {
		path := filepath.Join(filepath.Dir(self), Executable)
		err = &fs.PathError{Op: "run", Path: path, Err: syscall.Exec(path, append([]string{path}, args...), os.Environ())}
	}
	_, _ = os.Stderr.WriteString("baton-shim: " + err.Error())
	return 1
}

// start returns what to print for a task that joins a shim, and nil for one that founds its own.
func (c call) start(bundle string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(b, []byte(GroupAnnotation)) {
		return nil, nil
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, err
	}
	group := spec.Annotations[GroupAnnotation]
	if group == "" {
		return nil, nil
	}
	socket := SocketPath(c.address, c.namespace, group)
	conn, err := net.DialTimeout("unix", socket, dialMax)
	switch {
	case err == nil:
		_ = conn.Close()
		return json.Marshal(struct {
			Version  int    `json:"version"`
			Address  string `json:"address"`
			Protocol string `json:"protocol"`
		}{3, "unix://" + socket, "ttrpc"})
	case group == c.id:
		return nil, nil
	}
	return nil, errors.New(GoneSign + ": " + err.Error())
}

// nothingLeft reports whether the container is gone from runc, and its root file system unmounted: then there is nothing to clean up.
func (c call) nothingLeft() bool {
	var options struct {
		Root string `json:"root"`
	}
	b, err := os.ReadFile(filepath.Join(c.bundle, "options.json"))
	if c.bundle == "" || err != nil || json.Unmarshal(b, &options) != nil || !filepath.IsAbs(options.Root) {
		return false
	}
	if _, err := os.Lstat(filepath.Join(options.Root, c.namespace, c.id)); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return !mounted(c.bundle, "rootfs")
}

// mounted reports whether another file system is mounted on a directory, or that cannot be told.
func mounted(dir, name string) bool {
	var outer, inner syscall.Stat_t
	switch err := syscall.Lstat(filepath.Join(dir, name), &inner); {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case err != nil || syscall.Lstat(dir, &outer) != nil:
		return true
	}
	return inner.Dev != outer.Dev
}
