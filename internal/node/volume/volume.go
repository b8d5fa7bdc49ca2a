// Package volume keeps the local named volumes of a node.
//
// It owns one directory:
//
//	DIR/volumes/NAME/_data         the content; what tasks mount
//	DIR/volumes/NAME/record.json   when it was made, and whether its first fill is done
//	DIR/volumes/.removing-NAME-*   a volume that is being deleted
//
// Invariants: content is deleted by Remove and by nothing else. A volume is fresh until MarkUsed, so that a first fill
// from an image that was interrupted is repeated; one that holds content without a readable record counts as used, so that
// nothing is ever copied over a user's data.
//
// Concurrency: a Store may be used from several goroutines. Deleting content does not hold up the others. Two stores must
// not share a directory.
package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"baton/internal/node/agent"
)

// ErrName says that a name cannot be that of a volume.
var ErrName = errors.New("not a volume name")

// nameMax leaves room for the suffix of a volume that is being deleted.
const nameMax = 200

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

const (
	dataDir        = "_data"
	recordFile     = "record.json"
	removingPrefix = ".removing-"
)

// Store implements agent.Volumes on a directory.
type Store struct {
	dir string // DIR/volumes

	mu sync.Mutex // guards the directory's names and records, not the contents
}

var _ agent.Volumes = (*Store)(nil)

// record is what is remembered of a volume beside its content.
type record struct {
	Created time.Time `json:"created"`
	Used    bool      `json:"used"`
}

// Open opens the volumes under dir, which is made if missing, and finishes removals that an earlier process began.
func Open(dir string) (*Store, error) {
	s := &Store{dir: filepath.Join(dir, "volumes")}
	// Containers see a volume as a mount and never pass through here. Other users of the machine must not either: a container's
	// root may leave set-user-ID programs and device files in its volume.
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), removingPrefix) {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return nil, fmt.Errorf("finish removing a volume: %w", err)
			}
		}
	}
	return s, nil
}

func checkName(name string) error {
	if len(name) > nameMax || !namePattern.MatchString(name) {
		return fmt.Errorf("volume %q: %w; use up to %d letters, digits, '_', '.' and '-', starting with a letter or digit", name, ErrName, nameMax)
	}
	return nil
}

// Ensure implements agent.Volumes.
func (s *Store) Ensure(_ context.Context, name string) (path string, fresh bool, err error) {
	if err := checkName(name); err != nil {
		return "", false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path = filepath.Join(s.dir, name, dataDir)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", false, fmt.Errorf("volume %s: %w", name, err)
	}
	r, err := s.read(name)
	if err == nil {
		return path, !r.Used, nil
	}
	// No record: the volume is new, or an earlier process died while making it, or its record is damaged.
	empty, err := isEmpty(path)
	if err != nil {
		return "", false, fmt.Errorf("volume %s: %w", name, err)
	}
	return path, empty, s.write(name, record{Created: time.Now().UTC(), Used: !empty})
}

// MarkUsed implements agent.Volumes.
func (s *Store) MarkUsed(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.read(name)
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	if r.Used {
		return nil
	}
	r.Used = true
	return s.write(name, r)
}

// Remove implements agent.Volumes. A volume that does not exist is removed already.
func (s *Store) Remove(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	trash, err := s.hide(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove volume %s: its content is no longer a volume but is still in %s: %w", name, trash, err)
	}
	return nil
}

// hide takes the name away in one step; a crash afterwards is finished by Open.
func (s *Store) hide(name string) (trash string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := os.Lstat(filepath.Join(s.dir, name)); err != nil {
		return "", err
	}
	trash, err = os.MkdirTemp(s.dir, removingPrefix+name+"-")
	if err != nil {
		return "", err
	}
	return trash, os.Rename(filepath.Join(s.dir, name), filepath.Join(trash, name))
}

// List implements agent.Volumes: the names, sorted.
func (s *Store) List(_ context.Context) ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && checkName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func (s *Store) read(name string) (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(s.dir, name, recordFile))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}

// write replaces the record and makes it durable: after a power cut a used volume must not look fresh.
func (s *Store) write(name string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	path := filepath.Join(s.dir, name, recordFile)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	// The name lasts only once its directory is on disk: a used volume whose record is lost could be filled over.
	if err := errors.Join(os.Rename(path+".new", path), syncDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func isEmpty(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	return len(entries) == 0, err
}
