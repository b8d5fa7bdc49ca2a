package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func nodeID(n byte) cluster.ID { return cluster.ID{0: n, 15: n} }

// sample is a state with its key: two managers and two workers.
func sample(t testing.TB) (key []byte, s *store.Store) {
	t.Helper()
	key = bytes.Repeat([]byte{3}, 32)
	sealer, err := identity.NewSealer(key)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := identity.NewKeeper(sealer).Found("shop", now)
	if err != nil {
		t.Fatal(err)
	}
	s = store.New()
	var txn store.Txn
	txn.Put(authority)
	txn.Put(&cluster.Settings{Meta: cluster.Meta{ID: cluster.SettingsID}, Name: "shop"})
	for i := range byte(4) {
		txn.Put(&cluster.Node{Meta: cluster.Meta{ID: nodeID(i + 1)}, Name: fmt.Sprint("n", i+1), Manager: i < 2, State: cluster.NodeReady, Availability: cluster.NodeActive})
	}
	if err := errors.Join(s.Apply(7, []store.Txn{txn})...); err != nil {
		t.Fatal(err)
	}
	return key, s
}

func written(t testing.TB, key []byte, s *store.Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, Manifest{Cluster: "shop", Created: now, Node: "n1", Version: "1.2.3"}, key, s.Snapshot()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBackupIsReadAsItWas(t *testing.T) {
	key, s := sample(t)
	b, err := Read(bytes.NewReader(written(t, key, s)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Key, key) || b.State.Snapshot().Hash() != s.Snapshot().Hash() {
		t.Error("the key or the state is another")
	}
	if m := b.Manifest; m.Cluster != "shop" || m.Node != "n1" || m.Applied != 7 || !m.Created.Equal(now) {
		t.Errorf("manifest %+v", m)
	}
}

// TestDamagedBackupsAreRefused changes and cuts a backup everywhere: whatever is still read is what it was.
func TestDamagedBackupsAreRefused(t *testing.T) {
	key, s := sample(t)
	whole := written(t, key, s)
	want := s.Snapshot().Hash()
	refused := 0
	for at := range whole {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x41
		b, err := Read(bytes.NewReader(bad))
		switch {
		case err != nil:
			refused++
		case b.State.Snapshot().Hash() != want || !bytes.Equal(b.Key, key):
			t.Fatalf("byte %d changed: another state was read", at)
		}
	}
	if refused < len(whole)/2 { // the rest is padding of the tar, and the manifest's words
		t.Errorf("%d of %d changes were noticed", refused, len(whole))
	}
	end := len(bytes.TrimRight(whole, "\x00"))
	for n := 0; n < end; n += 7 {
		if _, err := Read(bytes.NewReader(whole[:n])); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut at %d of %d: got %v", n, len(whole), err)
		}
	}
	other, err := identity.NewSealer(bytes.Repeat([]byte{4}, 32))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": nil, "text": []byte("services:\n  web: {image: web}\n"), "zeros": make([]byte, 10<<10), "key of another cluster": written(t, other.Key(), s),
	} {
		if _, err := Read(bytes.NewReader(data)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	newer := bytes.Replace(whole, []byte(`"format": 1`), []byte(`"format": 9`), 1)
	if _, err := Read(bytes.NewReader(newer)); err == nil || !strings.Contains(err.Error(), "version 1.2.3") {
		t.Errorf("a newer format: got %v, want the program that reads it", err)
	}
}

func FuzzRead(f *testing.F) {
	key, s := sample(f)
	f.Add(written(f, key, s))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := Read(bytes.NewReader(data)); err == nil && b.State.Snapshot().Verify() != nil {
			t.Error("a state that does not hold was read")
		}
	})
}

func TestLoneManager(t *testing.T) {
	for name, c := range map[string]struct {
		lone  Lone
		nodes string // name, M or w, state
		err   string
	}{
		"restore":           {Lone{ID: nodeID(9), Name: "new", All: true}, "n1 w down, n2 w down, n3 w down, n4 w down, new M unknown", ""},
		"recover":           {Lone{ID: nodeID(2)}, "n1 w down, n2 M ready, n3 w ready, n4 w ready", ""},
		"recover, a worker": {Lone{ID: nodeID(3)}, "n1 w down, n2 w down, n3 M ready, n4 w ready", ""},
		"taken name":        {Lone{ID: nodeID(9), Name: "n2", All: true}, "", "give another --name"},
		"unknown":           {Lone{ID: nodeID(9)}, "", "knows no node"},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := sample(t)
			before := s.Snapshot()
			c.lone.Now, c.lone.Type = now, "cluster.restored"
			err := c.lone.Make(s)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || s.Snapshot().Hash() != before.Hash() {
					t.Errorf("got %v, want %q and nothing changed", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for n := range store.All[*cluster.Node](s.Snapshot()) {
				role := "w"
				if n.Manager {
					role = "M"
				}
				got = append(got, fmt.Sprintf("%s %s %s", n.Name, role, n.State))
			}
			if text := strings.Join(got, ", "); text != c.nodes {
				t.Errorf("got %s\nwant %s", text, c.nodes)
			}
			if v := s.Snapshot().Version(); v < before.Version()+ahead {
				t.Errorf("version %d may have been given out before", v)
			}
			if s.Snapshot().Count(cluster.KindEvent) != 1 {
				t.Error("no event tells of it")
			}
		})
	}
}
