// Package durable replaces files so that neither a crash nor a power cut leaves half of one.
//
// Invariants: after Write returns, the file is there with its new content also after a power cut; until then a reader, or
// whoever comes after a crash, sees the old content or the new one.
//
// Concurrency: two writers of one path must not run at the same time.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Suffix ends the name of a file that is being written; one that is found after a crash is worth nothing.
const Suffix = ".new"

// Write replaces the file, with the given mode.
func Write(path string, data []byte, mode fs.FileMode) error {
	if err := Replace(path, data, mode); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Replace is Write but for the last step: the new name survives a power cut only once SyncDir was called for its directory.
// It is for writers of many files.
func Replace(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path+Suffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+Suffix, path)
}

// SyncDir makes the names in a directory survive a power cut: new ones, changed ones and that others are gone.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
