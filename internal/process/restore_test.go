package process

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"baton/internal/manager/identity"
	"baton/internal/manager/recovery"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/transport"
)

// backedUp is a backup of a cluster of two managers and a worker.
func backedUp(t *testing.T) []byte {
	t.Helper()
	key := bytes.Repeat([]byte{3}, 32)
	sealer, err := identity.NewSealer(key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	authority, err := identity.NewKeeper(sealer).Found("shop", now)
	if err != nil {
		t.Fatal(err)
	}
	var txn store.Txn
	txn.Put(authority)
	txn.Put(&cluster.Settings{Meta: cluster.Meta{ID: cluster.SettingsID}, Name: "shop"})
	for i, name := range []string{"m1", "m2", "w1"} {
		txn.Put(&cluster.Node{Meta: cluster.Meta{ID: cluster.ID{0: byte(i + 1), 15: 1}}, Name: name, Manager: i < 2, State: cluster.NodeReady, Availability: cluster.NodeActive})
	}
	s := store.New()
	if err := errors.Join(s.Apply(7, []store.Txn{txn})...); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := recovery.Write(&out, recovery.Manifest{Cluster: "shop", Created: now}, key, s.Snapshot()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestRestoreThenRecover(t *testing.T) {
	backup, dir := backedUp(t), filepath.Join(t.TempDir(), "d")
	for name, try := range map[string][]byte{"cut": backup[:len(backup)/2], "foreign": []byte("hello")} {
		if _, err := Restore(dir, "fresh", bytes.NewReader(try)); !errors.Is(err, recovery.ErrDamaged) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Restore(dir, "m2", bytes.NewReader(backup)); err == nil || !strings.Contains(err.Error(), "--name") {
		t.Errorf("a taken name: got %v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused restore left something: %v", err)
	}
	got, err := Restore(dir, "fresh", bytes.NewReader(backup))
	if err != nil || got.Cluster != "shop" || strings.Join(got.Nodes, " ") != "m1 m2 w1" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if _, err := Restore(dir, "again", bytes.NewReader(backup)); err == nil || !strings.Contains(err.Error(), "belongs to a node already") {
		t.Errorf("over a node: got %v", err)
	}
	me, err := identify(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if f := me.get(); f.Role != transport.RoleManager || f.Name != "fresh" || f.Cluster != "shop" || f.Entering {
		t.Errorf("the node is %+v", f)
	}

	id := me.get().ID
	if err := me.change(func(f *selfFile) { f.ID = cluster.ID{0: 99} }); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStopped(dir, ""); err == nil || !strings.Contains(err.Error(), "has not got the cluster's state") {
		t.Errorf("a node that the log knows no vote of: got %v", err)
	}
	if err := me.change(func(f *selfFile) { f.ID = id }); err != nil {
		t.Fatal(err)
	}

	// A manager may have the whole log and not know yet that it has entered.
	if err := me.change(func(f *selfFile) { f.Entering = true }); err != nil {
		t.Fatal(err)
	}
	m, err := OpenStopped(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStopped(dir, ""); err == nil || !strings.Contains(err.Error(), "another baton server runs") {
		t.Errorf("while it is open: got %v", err)
	}
	before := m.state.Snapshot().Version()
	kept, err := m.Recover()
	m.Close()
	if err != nil {
		t.Fatal(err)
	}
	if me, err := identify(dir, ""); err != nil || me.get().Entering {
		t.Errorf("it is still entering a cluster that is its own (%v)", err)
	}
	if info, err := os.Stat(kept); err != nil || !info.IsDir() {
		t.Errorf("the log as it was: %v", err)
	}
	lockAndOpen(t, dir, before)
}

// lockAndOpen opens a manager that was recovered and is locked since.
func lockAndOpen(t *testing.T, dir string, before cluster.Version) {
	t.Helper()
	managerDir, unlock := filepath.Join(dir, "manager"), bytes.Repeat([]byte{5}, 32)
	sealer, err := identity.OpenSealer(managerDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := sealer.Lock(managerDir, unlock); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "hello", identity.UnlockText(bytes.Repeat([]byte{6}, 32))} {
		if m, err := OpenStopped(dir, bad); err == nil {
			m.Close()
			t.Errorf("a locked manager was read with the key %q", bad)
		}
	}
	m, err := OpenStopped(dir, identity.UnlockText(unlock))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if v := m.state.Snapshot().Version(); v <= before {
		t.Errorf("version %d after the recovery, %d before", v, before)
	}
	if n := m.state.Snapshot().Count(cluster.KindNode); n != 4 {
		t.Errorf("%d nodes, want 4", n)
	}
}

// A worker that is started with a token once learns that manager, and stays who it is.
func TestMemberMeetsAnotherManager(t *testing.T) {
	for _, c := range []struct {
		role string
		want int
	}{{transport.RoleWorker, 1}, {transport.RoleManager, 0}} {
		me, err := identify(t.TempDir(), "n")
		if err != nil {
			t.Fatal(err)
		}
		if err := me.change(func(f *selfFile) { f.Role = c.role }); err != nil {
			t.Fatal(err)
		}
		id := me.get().ID
		token := transport.Token{Role: transport.RoleWorker, Fingerprint: transport.Fingerprint([]byte("x")), Secret: make([]byte, transport.TokenSecretBytes)}
		p := &process{self: me, log: slog.New(slog.DiscardHandler), cfg: Config{Join: token.String() + "@192.0.2.7:7701"}}
		for range 2 {
			if err := p.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		f := me.get()
		if len(f.Managers) != c.want || f.ID != id || c.want == 1 && f.Managers[0].Address != "192.0.2.7:7701" {
			t.Errorf("%s: knows %v", c.role, f.Managers)
		}
	}
}
