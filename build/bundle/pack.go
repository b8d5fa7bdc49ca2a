package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// Versions of what is packed, e.g. "v2.4.2".
type Versions struct {
	Containerd string
	Runc       string
}

// Pack compresses the binaries, each from the first of the directories that has
// it, into the directory to, in the layout that this package embeds. It reports
// false, and writes nothing, when to already holds exactly these binaries. The
// manifest is written last: without it the directory counts as empty.
func Pack(from []string, to string, v Versions) (changed bool, err error) {
	m := manifest{Containerd: v.Containerd, Runc: v.Runc}
	paths := make(map[string]string, len(names))
	for _, name := range names {
		paths[name] = find(from, name)
		b, err := describe(paths[name])
		if err != nil {
			return false, err
		}
		m.Binaries = append(m.Binaries, b)
	}
	if old, err := readManifest(os.DirFS(to)); err == nil && old.hash() == m.hash() &&
		old.Containerd == m.Containerd && old.Runc == m.Runc && complete(to, old) {
		return false, nil
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return false, err
	}
	if err := os.Remove(filepath.Join(to, manifestName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	for _, b := range m.Binaries {
		if err := compress(paths[b.Name], filepath.Join(to, b.Name+suffix)); err != nil {
			return false, fmt.Errorf("compress %s: %w", b.Name, err)
		}
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return false, err
	}
	return true, os.WriteFile(filepath.Join(to, manifestName), append(data, '\n'), 0o644)
}

// complete tells whether each stream that m names is there. Its content is
// checked by whoever unpacks it.
func complete(dir string, m manifest) bool {
	for _, b := range m.Binaries {
		if info, err := os.Stat(filepath.Join(dir, b.Name+suffix)); err != nil || info.Size() == 0 {
			return false
		}
	}
	return true
}

// find is the path of a binary in the first directory that has it; in the first of all when none has.
func find(dirs []string, name string) string {
	for _, dir := range dirs {
		if path := filepath.Join(dir, name); exists(path) {
			return path
		}
	}
	return filepath.Join(dirs[0], name)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func describe(path string) (binary, error) {
	f, err := os.Open(path)
	if err != nil {
		return binary{}, fmt.Errorf("the built runtime is incomplete (make runtime builds it): %w", err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return binary{}, err
	}
	return binary{Name: filepath.Base(path), Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

func compress(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	// One goroutine: the output is then the same on every machine.
	enc, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return errors.Join(err, out.Close())
	}
	_, err = io.Copy(enc, in)
	return errors.Join(err, enc.Close(), out.Close())
}
