package record

import (
	"bytes"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"baton/internal/durable"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

func open(t *testing.T, dir string) *Record {
	t.Helper()
	r, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func task(n byte) agent.Remembered {
	id := cluster.ID{15: n}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	return agent.Remembered{
		Assignment: agentapi.Assignment{
			Task: &cluster.Task{
				Meta: cluster.Meta{ID: id, Version: 7, Created: at}, Slot: 1, Desired: cluster.DesiredRun, Observed: cluster.ObservedAssigned,
				Address: netip.MustParseAddr("10.0.0.9"),
			},
			Spec: &spec.Service{
				Name: "web", Image: "web:1", Container: spec.Container{Env: []string{"PASSWORD=hunter2"}},
				Ports: []spec.Port{{Target: 80, Published: 8080, Mode: spec.PortHost, Protocol: "tcp"}},
			},
			Files:   []agentapi.File{{Name: "key", Target: "/run/secrets/key", Mode: 0o400, Content: []byte("correct horse"), Secret: true}},
			Volumes: map[string]string{"data": "shop_data"}, Networks: []cluster.ID{{15: 9}},
		},
		Status:   cluster.Status{Task: id, Observed: cluster.ObservedFailed, Exit: &cluster.Exit{Code: 3, At: at}, At: at},
		Standing: &agent.Standing{Root: cluster.ID{15: 1}, Created: at},
	}
}

func TestRecordOutlivesItsProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "record")
	want := agent.Memory{
		Tasks:   []agent.Remembered{task(1), task(2)},
		Node:    &agentapi.NodeConfig{Subnet: netip.MustParsePrefix("10.0.0.0/24"), TaskPool: netip.MustParsePrefix("10.0.0.0/16")},
		Network: &agentapi.NetworkState{Services: []agentapi.Service{{ID: cluster.ID{15: 3}, Name: "web", Networks: map[cluster.ID][]string{{15: 9}: {"alias"}}}}},
	}
	r := open(t, dir)
	if err := r.Save(t.Context(), agent.Change{Memory: want}); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(t.Context(), agent.Change{Memory: agent.Memory{Tasks: []agent.Remembered{task(3)}}}); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(t.Context(), agent.Change{Gone: []cluster.ID{{15: 3}, {15: 4}}}); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, dir).Load(t.Context())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestNothingLiesThereInClear(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "record")
	if err := open(t, dir).Save(t.Context(), agent.Change{Memory: agent.Memory{Tasks: []agent.Remembered{task(1)}}}); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(path)
		for _, word := range []string{"correct horse", "Y29ycmVjdCBob3JzZQ", "hunter2"} { // the second is the first in base64
			if bytes.Contains(b, []byte(word)) {
				t.Errorf("%s shows %q", path, word)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDamageCostsOnlyWhatIsDamaged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "record")
	m := agent.Memory{Tasks: []agent.Remembered{task(1), task(2), task(3)}, Node: &agentapi.NodeConfig{}, Network: &agentapi.NetworkState{}}
	if err := open(t, dir).Save(t.Context(), agent.Change{Memory: m}); err != nil {
		t.Fatal(err)
	}
	path := func(n byte) string { return filepath.Join(dir, "tasks", cluster.ID{15: n}.String()) }
	one, err := os.ReadFile(path(1))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		path(2): one, path(3): one[:10], path(4) + durable.Suffix: one, filepath.Join(dir, "network"): nil,
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := open(t, dir).Load(t.Context())
	if err != nil || len(got.Tasks) != 1 || got.Tasks[0].Assignment.Task.ID != (cluster.ID{15: 1}) || got.Node == nil || got.Network != nil {
		t.Errorf("got %+v, %v, want the first task and the node's configuration", got, err)
	}
}
