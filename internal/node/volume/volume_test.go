package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ensure(t *testing.T, s *Store, name string) (path string, fresh bool) {
	t.Helper()
	path, fresh, err := s.Ensure(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return path, fresh
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFreshUntilUsed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	path, fresh := ensure(t, s, "shop_db")
	if want := filepath.Join(dir, "volumes", "shop_db", "_data"); path != want || !fresh {
		t.Fatalf("new volume: got %s, fresh %v; want %s, fresh", path, fresh, want)
	}
	write(t, filepath.Join(path, "half"), "an interrupted fill")
	if _, fresh := ensure(t, open(t, dir), "shop_db"); !fresh {
		t.Error("after an interrupted fill: got used, want fresh")
	}
	if err := s.MarkUsed(context.Background(), "shop_db"); err != nil {
		t.Fatal(err)
	}
	if _, fresh := ensure(t, open(t, dir), "shop_db"); fresh {
		t.Error("after MarkUsed: got fresh, want used")
	}
	if b, err := os.ReadFile(filepath.Join(path, "half")); err != nil || string(b) != "an interrupted fill" {
		t.Errorf("content: got %q, %v; want it untouched", b, err)
	}
}

// A container's root may leave a set-user-ID program in its volume: no other user of the machine may reach it, also when an
// earlier version made the directory.
func TestClosedToOtherUsers(t *testing.T) {
	for _, before := range []os.FileMode{0, 0o711} {
		dir := t.TempDir()
		if before != 0 {
			if err := os.Mkdir(filepath.Join(dir, "volumes"), before); err != nil {
				t.Fatal(err)
			}
		}
		ensure(t, open(t, dir), "shop_db")
		info, err := os.Stat(filepath.Join(dir, "volumes"))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o700 {
			t.Errorf("volumes with mode %o before: got %o, want 700", before, got)
		}
	}
}

func TestDamagedRecord(t *testing.T) {
	for _, c := range []struct {
		name, content string
		fresh         bool
	}{
		{"empty", "", true},
		{"full", "precious", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, t.TempDir())
			path, _ := ensure(t, s, "v")
			if c.content != "" {
				write(t, filepath.Join(path, "file"), c.content)
			}
			write(t, filepath.Join(filepath.Dir(path), "record.json"), "{torn")
			if _, fresh := ensure(t, s, "v"); fresh != c.fresh {
				t.Errorf("got fresh %v, want %v", fresh, c.fresh)
			}
		})
	}
}

func TestNames(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := context.Background()
	for _, name := range []string{"", ".", "..", "../x", "a/b", "/etc", ".hidden", "-x", "a\x00b", "a b", strings.Repeat("x", nameMax+1), ".removing-x"} {
		_, _, err := s.Ensure(ctx, name)
		for what, err := range map[string]error{"Ensure": err, "MarkUsed": s.MarkUsed(ctx, name), "Remove": s.Remove(ctx, name)} {
			if !errors.Is(err, ErrName) {
				t.Errorf("%s(%q): got %v, want ErrName", what, name, err)
			}
		}
	}
	for _, name := range []string{"a", "shop_db-data", "A.1", strings.Repeat("x", nameMax)} {
		ensure(t, s, name)
		if err := s.Remove(ctx, name); err != nil {
			t.Errorf("Remove(%q): %v", name, err)
		}
	}
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := context.Background()
	path, _ := ensure(t, s, "a")
	keep, _ := ensure(t, s, "b")
	write(t, filepath.Join(path, "file"), "x")
	write(t, filepath.Join(keep, "file"), "y")
	if err := s.MarkUsed(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to remove
		if err := s.Remove(ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := s.List(ctx); err != nil || !slices.Equal(names, []string{"b"}) {
		t.Errorf("List: got %v, %v; want [b]", names, err)
	}
	if _, err := os.Stat(filepath.Join(keep, "file")); err != nil {
		t.Errorf("another volume's content: %v", err)
	}
	if _, fresh := ensure(t, s, "a"); !fresh {
		t.Error("made again: got used, want fresh")
	}
	if err := s.MarkUsed(ctx, "gone"); err == nil {
		t.Error("MarkUsed of an unknown volume: got nil, want an error")
	}
}

func TestInterruptedRemove(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	path, _ := ensure(t, s, "a")
	write(t, filepath.Join(path, "file"), "x")
	trash, err := s.hide("a")
	if err != nil {
		t.Fatal(err)
	}
	if names, err := s.List(context.Background()); err != nil || len(names) != 0 {
		t.Errorf("List while removing: got %v, %v; want none", names, err)
	}
	open(t, dir)
	if _, err := os.Stat(trash); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s after Open: got %v, want it gone", trash, err)
	}
}
