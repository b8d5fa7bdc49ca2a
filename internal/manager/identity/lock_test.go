package identity

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestLockedKeyOpensWithItsUnlockKeyOnly(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenSealer(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock, other := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	for range 2 { // what is there already is fine
		if err := s.Lock(dir, unlock); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenSealer(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("without the key: got %v, want that it is locked", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil || bytes.Contains(data, s.Key()) || bytes.Contains(data, unlock) {
			t.Errorf("%s shows a key (%v)", e.Name(), err)
		}
	}
	if _, err := Unlock(dir, other); !errors.Is(err, ErrUnlockKey) {
		t.Errorf("with another key: got %v", err)
	}
	again, err := Unlock(dir, unlock)
	if err != nil || !bytes.Equal(again.Key(), s.Key()) {
		t.Fatalf("with the key: %v", err)
	}
	if is, err := Locked(dir); err != nil || !is {
		t.Errorf("unlocking took the lock off the disk (%v)", err)
	}
	if err := again.Lock(dir, other); err != nil { // another unlock key
		t.Fatal(err)
	}
	if _, err := Unlock(dir, unlock); !errors.Is(err, ErrUnlockKey) {
		t.Errorf("with the earlier key: got %v", err)
	}
	for range 2 {
		if err := again.Lock(dir, nil); err != nil {
			t.Fatal(err)
		}
	}
	open, err := OpenSealer(dir)
	if err != nil || !bytes.Equal(open.Key(), s.Key()) {
		t.Fatalf("after the lock was taken off: %v", err)
	}
}

// A kill between the two steps of a change leaves both files: the manager starts, and the change is made again.
func TestInterruptedLock(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenSealer(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock := bytes.Repeat([]byte{1}, 32)
	if err := s.Lock(dir, unlock); err != nil {
		t.Fatal(err)
	}
	if err := InstallKey(dir, s.Key()); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSealer(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Lock(dir, unlock); err != nil {
		t.Fatal(err)
	}
	if is, err := Locked(dir); err != nil || !is {
		t.Errorf("it is not locked (%v)", err)
	}
}

func TestUnlockText(t *testing.T) {
	key := bytes.Repeat([]byte{9, 200}, 16)
	got, err := ParseUnlock(" " + UnlockText(key) + "\n")
	if err != nil || !bytes.Equal(got, key) {
		t.Errorf("got %x, %v", got, err)
	}
	for _, bad := range []string{"", "baton-unlock-", "baton-unlock-aaaa", UnlockText(key)[1:], UnlockText(key) + "a", "baton-worker-aaaa"} {
		if _, err := ParseUnlock(bad); !errors.Is(err, ErrUnlockKey) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}
