package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

// attachment is a task that has its place, as recorded under StateDir/tasks.
type attachment struct {
	agent.Attachment
}

func (n *Network) recordPath(task cluster.ID) string {
	return filepath.Join(n.cfg.StateDir, "tasks", task.String())
}

func (n *Network) saveRecord(a *attachment) error {
	return writeJSON(n.recordPath(a.Task), a)
}

func (n *Network) removeRecord(task cluster.ID) error {
	if err := os.Remove(n.recordPath(task)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("network record: %w", err)
	}
	return nil
}

func (n *Network) loadRecord(task cluster.ID) (*attachment, error) {
	b, err := os.ReadFile(n.recordPath(task))
	if err != nil {
		return nil, fmt.Errorf("network record: %w", err)
	}
	a := new(attachment)
	if err := json.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("network record %s: %w", n.recordPath(task), err)
	}
	return a, nil
}

// loadRecords reads every record; a damaged one is logged and left to Attach, which writes it anew.
func (n *Network) loadRecords() ([]*attachment, error) {
	entries, err := os.ReadDir(filepath.Join(n.cfg.StateDir, "tasks"))
	if err != nil {
		return nil, fmt.Errorf("network records: %w", err)
	}
	var all []*attachment
	for _, e := range entries {
		id, err := cluster.ParseID(e.Name())
		if err != nil {
			continue
		}
		a, err := n.loadRecord(id)
		if err != nil || a.Task != id {
			n.log.Warn("unusable network record; the task must be attached again", "task", id, "err", err)
			continue
		}
		all = append(all, a)
	}
	return all, nil
}

// writeJSON replaces a file in one step: a reader, or a crash, sees the old content or the new one.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("network record: %w", err)
	}
	// The new file has a name that no record can have.
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("network record: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("network record: %w", err)
	}
	return nil
}
