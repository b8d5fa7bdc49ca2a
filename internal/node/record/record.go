// Package record keeps what a node was told, and what came of it, over restarts of the agent and of the machine.
//
//	DIR/key            the node's own sealing key, 0600
//	DIR/tasks/<id>     agent.Remembered, sealed under "task/<id>"
//	DIR/node           agentapi.NodeConfig, sealed under "node"
//	DIR/network        agentapi.NetworkState, sealed under "network"
//
// Everything is sealed (package seal), not only the contents of secrets: environment variables and commands hold passwords
// often enough. Contents are JSON.
//
// Invariants: every file is whole or absent, and durable once Save returned nil; nothing lies there in clear.
//
// Concurrency: the agent makes one call at a time.
package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"baton/internal/durable"
	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/seal"
)

// Record is a node's record in a directory.
type Record struct {
	dir    string
	sealer *seal.Sealer
	log    *slog.Logger
}

var _ agent.Record = (*Record)(nil)

// Open makes the directory and its key on first use.
func Open(dir string, log *slog.Logger) (*Record, error) {
	if err := os.MkdirAll(filepath.Join(dir, "tasks"), 0o700); err != nil {
		return nil, fmt.Errorf("the node's record: %w", err)
	}
	sealer, err := seal.Open(filepath.Join(dir, "key"))
	if err != nil {
		return nil, fmt.Errorf("the node's record: %w", err)
	}
	return &Record{dir: dir, sealer: sealer, log: log}, nil
}

// Load implements agent.Record.
func (r *Record) Load(_ context.Context) (agent.Memory, error) {
	var m agent.Memory
	entries, err := os.ReadDir(filepath.Join(r.dir, "tasks"))
	if err != nil {
		return m, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), durable.Suffix) {
			continue // a save that was broken off
		}
		var t agent.Remembered
		id, err := cluster.ParseID(e.Name())
		if err == nil {
			err = r.read("tasks/"+e.Name(), taskLabel(id), &t)
		}
		if as := t.Assignment; err == nil && (as.Task == nil || as.Spec == nil || as.Task.ID != id) {
			err = errors.New("it is not of this task")
		}
		if err != nil {
			r.log.Warn("a task's record cannot be used; without a manager it is not run again", "file", e.Name(), "err", err)
			continue
		}
		m.Tasks = append(m.Tasks, t)
	}
	if err := r.read("node", "node", &m.Node); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("the record of the node's addresses cannot be used", "err", err)
		m.Node = nil
	}
	if err := r.read("network", "network", &m.Network); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("the record of the network cannot be used", "err", err)
		m.Network = nil
	}
	return m, nil
}

// Save implements agent.Record.
func (r *Record) Save(_ context.Context, c agent.Change) error {
	tasks := filepath.Join(r.dir, "tasks")
	for i := range c.Tasks {
		id := c.Tasks[i].Assignment.Task.ID
		if err := r.write(filepath.Join("tasks", id.String()), taskLabel(id), &c.Tasks[i]); err != nil {
			return err
		}
	}
	for _, id := range c.Gone {
		if err := os.Remove(filepath.Join(tasks, id.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(c.Tasks)+len(c.Gone) > 0 {
		if err := durable.SyncDir(tasks); err != nil {
			return err
		}
	}
	if c.Node != nil {
		if err := r.write("node", "node", c.Node); err != nil {
			return err
		}
	}
	if c.Network != nil {
		if err := r.write("network", "network", c.Network); err != nil {
			return err
		}
	}
	if c.Node != nil || c.Network != nil {
		return durable.SyncDir(r.dir)
	}
	return nil
}

func taskLabel(id cluster.ID) string { return "task/" + id.String() }

func (r *Record) read(name, label string, into any) error {
	sealed, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		return err
	}
	content, err := r.sealer.Open(sealed, label)
	if err != nil {
		return err
	}
	return json.Unmarshal(content, into)
}

func (r *Record) write(name, label string, v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return err
	}
	sealed, err := r.sealer.Seal(content, label)
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(r.dir, name), sealed, 0o600)
}
