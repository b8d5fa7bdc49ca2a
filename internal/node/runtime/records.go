package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
)

// The files of a task's record.
const (
	startedFile = "started" // written before the main process runs; its time is the content
	exitFile    = "exit"    // a cluster.Exit, as soon as it is known
	oomFile     = "oom"     // the kernel killed a process of the task for memory
)

// records keep what containerd forgets when a task ends while it is down. Methods may be called from any goroutine; two writers of
// one file write the same content.
type records struct {
	dir string

	mu    sync.Mutex
	exits map[cluster.ID]*cluster.Exit // read-through; an exit never changes
	began map[cluster.ID]time.Time
}

// path is the task's directory, which also holds the files that are mounted into its container.
func (r *records) path(id cluster.ID) string { return filepath.Join(r.dir, id.String()) }

// start notes that the main process is about to run.
func (r *records) start(id cluster.ID, at time.Time) error {
	if err := writeFile(filepath.Join(r.path(id), startedFile), []byte(at.UTC().Format(time.RFC3339Nano)), 0o600); err != nil {
		return fmt.Errorf("note the start of task %s: %w", id.Short(), err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began == nil {
		r.began = map[cluster.ID]time.Time{}
	}
	r.began[id] = at
	return nil
}

// started returns when the main process was about to run; zero when it never was.
func (r *records) started(id cluster.ID) time.Time {
	r.mu.Lock()
	at, ok := r.began[id]
	r.mu.Unlock()
	if ok {
		return at
	}
	b, err := os.ReadFile(filepath.Join(r.path(id), startedFile))
	if err != nil {
		return time.Time{}
	}
	// The time is for people; that the file exists is what counts.
	if at, err = time.Parse(time.RFC3339Nano, string(b)); err != nil {
		at = time.Unix(0, 0)
	}
	return at
}

// end notes how the task's process ended. The first word counts: later ones may come from a containerd that has lost the truth.
func (r *records) end(id cluster.ID, e cluster.Exit) (*cluster.Exit, error) {
	if have := r.exit(id); have != nil {
		return have, nil
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(r.path(id), exitFile), b, 0o600); err != nil {
		return nil, fmt.Errorf("note the end of task %s: %w", id.Short(), err)
	}
	return r.exit(id), nil
}

// exit returns how the task ended, or nil when that is not known.
func (r *records) exit(id cluster.ID) *cluster.Exit {
	r.mu.Lock()
	e := r.exits[id]
	r.mu.Unlock()
	if e != nil {
		c := *e
		return &c
	}
	b, err := os.ReadFile(filepath.Join(r.path(id), exitFile))
	if err != nil {
		return nil
	}
	e = &cluster.Exit{}
	if json.Unmarshal(b, e) != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exits == nil {
		r.exits = map[cluster.ID]*cluster.Exit{}
	}
	r.exits[id] = e
	c := *e
	return &c
}

// oom notes, or tells with oomed, that the kernel killed a process of the task for memory.
func (r *records) oom(id cluster.ID) error {
	return writeFile(filepath.Join(r.path(id), oomFile), nil, 0o600)
}

func (r *records) oomed(id cluster.ID) bool {
	_, err := os.Stat(filepath.Join(r.path(id), oomFile))
	return err == nil
}

// remove forgets the task.
func (r *records) remove(id cluster.ID) error {
	r.mu.Lock()
	delete(r.exits, id)
	delete(r.began, id)
	r.mu.Unlock()
	return os.RemoveAll(r.path(id))
}

// list names the tasks that have a record.
func (r *records) list() ([]cluster.ID, error) {
	es, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var ids []cluster.ID
	for _, e := range es {
		if id, err := cluster.ParseID(e.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// writeFile replaces a file so that a crash leaves the old one or the new one.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// lockDir makes this process the only owner of dir until unlock is called or the process dies.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s is in use by another baton process: stop it first, or use another data directory", dir)
	}
	return func() { _ = f.Close() }, nil
}
