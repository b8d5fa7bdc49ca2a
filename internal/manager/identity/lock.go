package identity

import (
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"baton/internal/durable"
	"baton/internal/seal"
)

// A locked manager has the sealing key in lockedFile, sealed with the unlock key, and no keyFile. With both, a change was
// interrupted, and keyFile counts.
const (
	lockedFile   = keyFile + ".locked"
	lockedLabel  = "baton sealing key"
	unlockPrefix = "baton-unlock-"
)

var (
	// ErrLocked says that the sealing key lies on disk in a form that only the unlock key opens.
	ErrLocked = errors.New("this manager is locked: its state opens with the unlock key only")
	// ErrUnlockKey refuses a key.
	ErrUnlockKey = errors.New("this is not the unlock key of this manager")
)

var unlockText = base32.StdEncoding.WithPadding(base32.NoPadding)

// UnlockText is the form in which users keep an unlock key.
func UnlockText(key []byte) string {
	return unlockPrefix + strings.ToLower(unlockText.EncodeToString(key))
}

// ParseUnlock reads what UnlockText wrote. Its errors do not show the text.
func ParseUnlock(text string) ([]byte, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), unlockPrefix)
	key, err := unlockText.DecodeString(strings.ToUpper(rest))
	if !ok || err != nil || len(key) != seal.KeySize {
		return nil, fmt.Errorf("%w: it should look like %s…", ErrUnlockKey, unlockPrefix)
	}
	return key, nil
}

// Locked reports whether the directory's sealing key needs the unlock key.
func Locked(dir string) (bool, error) {
	if _, err := os.Lstat(filepath.Join(dir, keyFile)); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	_, err := os.Lstat(filepath.Join(dir, lockedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Unlock opens a locked directory's sealing key, which stays locked on disk.
func Unlock(dir string, unlock []byte) (*Sealer, error) {
	data, err := os.ReadFile(filepath.Join(dir, lockedFile))
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	wrap, err := seal.New(unlock)
	if err != nil {
		return nil, err
	}
	key, err := wrap.Open(data, lockedLabel)
	if err != nil {
		return nil, ErrUnlockKey
	}
	return NewSealer(key)
}

// Lock leaves the sealing key in the directory in locked form only. With no unlock key it leaves it there in clear. It may be
// called again with what is there already.
func (s *Sealer) Lock(dir string, unlock []byte) error {
	clear, locked := filepath.Join(dir, keyFile), filepath.Join(dir, lockedFile)
	write := func(path string, data []byte, then string) error {
		err := durable.Write(path, data, 0o600)
		if err == nil {
			if err = os.Remove(then); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		if err = errors.Join(err, durable.SyncDir(dir)); err != nil {
			return fmt.Errorf("lock the sealing key: %w", err)
		}
		return nil
	}
	if len(unlock) == 0 {
		if _, err := os.Lstat(locked); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return write(clear, s.Key(), locked)
	}
	is, err := Locked(dir)
	if err != nil {
		return err
	}
	if is {
		if _, err := Unlock(dir, unlock); err == nil {
			return nil
		}
	}
	wrap, err := seal.New(unlock)
	if err != nil {
		return err
	}
	data, err := wrap.Seal(s.Key(), lockedLabel)
	if err != nil {
		return err
	}
	return write(locked, data, clear)
}
