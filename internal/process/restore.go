package process

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/durable"
	"baton/internal/manager/consensus"
	"baton/internal/manager/identity"
	"baton/internal/manager/recovery"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/transport"
)

// Restored is what a restore or a recovery came to.
type Restored struct {
	Cluster, Node string
	Created       time.Time // of the backup, or of the last entry of the log
	Version       string    // of the program that wrote the backup
	Nodes         []string  // names of the nodes that must come back or be removed
}

// Restore makes an empty data directory that of a new node, which is the only manager of the cluster in a backup (in clear).
// All nodes of the backup are kept as workers that are down. On an error nothing has been changed.
func Restore(dataDir, name string, backup io.Reader) (Restored, error) {
	dir := dataDir
	if dir == "" {
		dir = DataDirDefault
	}
	if err := mustBeFree(dir); err != nil {
		return Restored{}, err
	}
	b, err := recovery.Read(backup)
	if err != nil {
		return Restored{}, err
	}
	me := cluster.NewID(nil)
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return Restored{}, fmt.Errorf("this machine has no hostname (%w); give --name", err)
		}
	}
	if !nameForm.MatchString(name) {
		return Restored{}, fmt.Errorf("node name %q: want letters, digits, dots and dashes, at most 63; give another --name", name)
	}
	out := Restored{
		Cluster: b.Manifest.Cluster, Node: name, Created: b.Manifest.Created, Version: b.Manifest.Version,
		Nodes: others(b.State.Snapshot(), func(*cluster.Node) bool { return true }),
	}
	err = recovery.Lone{
		ID: me, Name: name, Now: time.Now(), All: true, Type: "cluster.restored",
		Why: fmt.Sprintf("the cluster was restored on %s from a backup of %s", name, b.Manifest.Created.Format(time.RFC3339)),
	}.Make(b.State)
	if err != nil {
		return Restored{}, err
	}
	return out, settle(dir, selfFile{ID: me, Name: name, Role: transport.RoleManager, Cluster: out.Cluster}, b)
}

// mustBeFree refuses a directory that is a node's.
func mustBeFree(dir string) error {
	for _, name := range []string{"node.json", "manager", "identity"} {
		_, err := os.Lstat(filepath.Join(dir, name))
		if err == nil {
			return fmt.Errorf("%s belongs to a node already: choose another --data-dir, or end that node with `baton reset --data-dir %s`", dir, dir)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// settle writes the manager's keys and log, and last who the node is: without that it is nobody yet, and a restore that was
// killed is begun again after the directory was emptied.
func settle(dataDir string, me selfFile, b *recovery.Backup) error {
	dir, err := prepare(dataDir)
	if err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	sealer, err := identity.NewSealer(b.Key)
	if err != nil {
		return err
	}
	logKey, err := sealer.LogKey()
	if err != nil {
		return err
	}
	half, whole := filepath.Join(dir, "manager"+durable.Suffix), filepath.Join(dir, "manager")
	err = errors.Join(os.RemoveAll(half), identity.InstallKey(half, b.Key))
	if err == nil {
		err = consensus.Rebuild(filepath.Join(half, "log"), me.ID.String(), logKey, b.State.Snapshot())
	}
	if err == nil {
		err = os.Rename(half, whole)
	}
	if err == nil {
		err = (&self{path: filepath.Join(dir, "node.json")}).change(func(f *selfFile) { *f = me })
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("restore into %s: %w", dir, err), os.RemoveAll(half), os.RemoveAll(whole))
	}
	return err
}

// others are the names of the nodes for which keep is true.
func others(snap store.Snapshot, keep func(*cluster.Node) bool) []string {
	var out []string
	for n := range store.All[*cluster.Node](snap) {
		if keep(n) {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Stopped is a manager that does not run, whose state may become that of a cluster of one.
type Stopped struct {
	dir    string
	unlock func()
	self   *self
	sealer *identity.Sealer
	state  *store.Store
	found  consensus.Salvaged
}

// OpenStopped reads the state of a stopped manager; unlock is the text of the unlock key when it is locked. It refuses while a
// server runs on the directory, and keeps one from starting until Close.
func OpenStopped(dataDir, unlock string) (_ *Stopped, err error) {
	dir, err := prepare(dataDir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "node.json")); err != nil {
		return nil, fmt.Errorf("%s is not a data directory of baton: %w", dir, err)
	}
	m := &Stopped{dir: dir, state: store.New()}
	if m.unlock, err = lock(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.unlock()
		}
	}()
	if m.self, err = identify(dir, ""); err != nil {
		return nil, err
	}
	f := m.self.get()
	const mend = "recover on one of the managers, or restore a backup with `baton cluster restore`"
	if f.Role != transport.RoleManager {
		return nil, fmt.Errorf("node %s is no manager: %s", f.Name, mend)
	}
	if m.sealer, err = openSealer(m.managerDir(), unlock); err != nil {
		return nil, err
	}
	key, err := m.sealer.LogKey()
	if err != nil {
		return nil, err
	}
	if m.found, err = consensus.Salvage(filepath.Join(m.managerDir(), "log"), key, m.state); err != nil {
		return nil, err
	}
	if !slices.Contains(m.found.Members, consensus.Member{ID: f.ID.String(), Voter: true}) {
		return nil, fmt.Errorf("node %s has not got the cluster's state as a whole yet: %s", f.Name, mend)
	}
	return m, nil
}

// openSealer reads the sealing key of a manager that does not run.
func openSealer(dir, unlock string) (*identity.Sealer, error) {
	is, err := identity.Locked(dir)
	switch {
	case err != nil:
		return nil, err
	case !is:
		return identity.OpenSealer(dir)
	case unlock == "":
		return nil, fmt.Errorf("%w: give it with --unlock-key-file or --unlock-key-stdin", identity.ErrLocked)
	}
	key, err := identity.ParseUnlock(unlock)
	if err != nil {
		return nil, err
	}
	return identity.Unlock(dir, key)
}

func (m *Stopped) managerDir() string { return filepath.Join(m.dir, "manager") }

// Tell says what a recovery would make of it.
func (m *Stopped) Tell() Restored {
	f := m.self.get()
	return Restored{
		Cluster: f.Cluster, Node: f.Name, Created: m.found.At,
		Nodes: others(m.state.Snapshot(), func(n *cluster.Node) bool { return n.Manager && n.ID != f.ID }),
	}
}

// Recover makes the state that of a cluster whose only manager is this one. The log as it was is kept beside it, and its
// place returned.
func (m *Stopped) Recover() (kept string, err error) {
	f := m.self.get()
	err = recovery.Lone{
		ID: f.ID, Now: time.Now(), Type: "cluster.recovered",
		Why: fmt.Sprintf("%s went on alone as the only manager; entries that only lost managers had are lost", f.Name),
	}.Make(m.state)
	if err != nil {
		return "", err
	}
	key, err := m.sealer.LogKey()
	if err != nil {
		return "", err
	}
	log := filepath.Join(m.managerDir(), "log")
	next := log + ".recovered"
	if err := errors.Join(os.RemoveAll(next), consensus.Rebuild(next, f.ID.String(), key, m.state.Snapshot())); err != nil {
		return "", err
	}
	// At no moment is there no log: a server that found none would found a new cluster.
	if err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, log, unix.RENAME_EXCHANGE); err != nil {
		return "", fmt.Errorf("exchange %s and %s: %w", next, log, err)
	}
	kept = fmt.Sprintf("%s.before-%d", log, uint64(m.state.Snapshot().Version()))
	if err := errors.Join(os.Rename(next, kept), durable.SyncDir(m.managerDir())); err != nil {
		return next, err
	}
	return kept, m.self.change(func(f *selfFile) {
		f.Managers, f.Entering = []agentapi.Manager{{Node: f.ID, Address: f.listen()}}, false
	})
}

// Close lets a server start again.
func (m *Stopped) Close() { m.unlock() }
