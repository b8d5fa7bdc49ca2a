// Package bundle carries the container runtime inside the baton binary: it
// embeds containerd, its runc shim, runc and baton's own programs that run
// once or more per container or outlive baton, compressed, and unpacks them into
// a directory of the node. They are executables of their own and not subcommands
// of baton because the packages of baton cost each of their processes time and
// memory, and because one that outlives baton should be replaced only when it
// itself has changed.
//
// Layout of the embedded blob directory, written by Pack:
//
//	manifest.json   versions, and name, size and SHA-256 of each binary
//	NAME.zst        one zstd stream per binary
//
// Layout of what Unpack keeps:
//
//	DIR/.lock       held while a process unpacks
//	DIR/HASH/NAME   the binaries of one manifest, mode 0755
//
// Invariants: HASH depends on the binaries' content only, so equal binaries are
// unpacked once however often baton is upgraded. A file under DIR/HASH has its
// final name only when it is complete and on disk. Directories of other hashes
// are never touched, because running containers may still use their shim.
//
// Unpack may be called from several goroutines and processes at once. A source
// checkout in which the runtime has not been packed compiles as well; Unpack
// then returns ErrEmpty.
package bundle

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

// Names of the binaries, as containerd expects to find them.
const (
	Containerd = "containerd"
	Shim       = "containerd-shim-runc-v2"
	Runc       = "runc"
	Front      = "baton-shim"   // what containerd runs in the shim's place; see package internal/node/shim
	Logger     = "baton-logger" // keeps a task's output; see package internal/node/logger
	Fence      = "baton-fence"  // ends tasks without a lease; see package internal/node/fence
	Edge       = "baton-edge"   // serves ingress rules; see package internal/node/edgeproc
)

// names are those of all binaries.
var names = []string{Containerd, Shim, Runc, Front, Logger, Fence, Edge}

const (
	manifestName = "manifest.json"
	suffix       = ".zst"
	tempPattern  = ".tmp-*"
	// hashChars of the manifest's hash name the directory: 64 bits, and short
	// enough to keep paths in process lists readable.
	hashChars = 16
)

// ErrEmpty says that this binary was built without the runtime.
var ErrEmpty = errors.New("this baton was built without the container runtime: build it with `make build`")

//go:embed blob
var blob embed.FS

// Paths says where one unpacked runtime is. All paths are absolute.
type Paths struct {
	Containerd string
	Shim       string
	Runc       string
	Front      string // it finds Shim beside itself
	Logger     string
	Fence      string
	Edge       string
	Version    string // e.g. "containerd v2.4.2, runc v1.5.2"
}

// manifest describes the content of the blob directory.
type manifest struct {
	Containerd string   `json:"containerd"` // version
	Runc       string   `json:"runc"`       // version
	Binaries   []binary `json:"binaries"`
}

type binary struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes, uncompressed
	SHA256 string `json:"sha256"` // of the uncompressed binary, in hex
}

// Unpack makes sure that the embedded runtime is complete and undamaged in a
// directory of its own under dir, and returns the paths of its binaries. What is
// already there is verified (reading about 50 MB); what is missing or damaged is
// written anew. It returns ErrEmpty when nothing is embedded.
func Unpack(dir string) (Paths, error) {
	sub, err := fs.Sub(blob, "blob")
	if err != nil {
		return Paths{}, err
	}
	return unpack(sub, dir)
}

func unpack(src fs.FS, dir string) (Paths, error) {
	m, err := readManifest(src)
	if err != nil {
		return Paths{}, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return Paths{}, err
	}
	target := filepath.Join(dir, m.hash())
	if err := os.MkdirAll(target, 0o755); err != nil {
		return Paths{}, fmt.Errorf("make the runtime's directory: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return Paths{}, err
	}
	defer unlock()
	if err := removeTemps(target); err != nil {
		return Paths{}, err
	}
	for _, b := range m.Binaries {
		if b.intact(filepath.Join(target, b.Name)) {
			continue
		}
		if err := b.extract(src, target); err != nil {
			return Paths{}, fmt.Errorf("unpack %s into %s: %w", b.Name, target, err)
		}
	}
	// Rename is durable only once the directories that hold the names are.
	if err := errors.Join(syncDir(target), syncDir(dir)); err != nil {
		return Paths{}, err
	}
	return Paths{
		Containerd: filepath.Join(target, Containerd),
		Shim:       filepath.Join(target, Shim),
		Runc:       filepath.Join(target, Runc),
		Front:      filepath.Join(target, Front),
		Logger:     filepath.Join(target, Logger),
		Fence:      filepath.Join(target, Fence),
		Edge:       filepath.Join(target, Edge),
		Version:    "containerd " + m.Containerd + ", runc " + m.Runc,
	}, nil
}

func readManifest(src fs.FS) (manifest, error) {
	data, err := fs.ReadFile(src, manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return manifest{}, ErrEmpty
	}
	if err != nil {
		return manifest{}, err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return manifest{}, fmt.Errorf("read the runtime's manifest: %w", err)
	}
	have := map[string]bool{}
	for _, b := range m.Binaries {
		have[b.Name] = true
	}
	for _, name := range names {
		if !have[name] {
			return manifest{}, fmt.Errorf("the runtime's manifest has no %s: build it anew with `make build`", name)
		}
	}
	return m, nil
}

// hash depends on names and content of the binaries, not on how they were
// compressed nor on the version that they are said to have.
func (m manifest) hash() string {
	h := sha256.New()
	for _, b := range m.Binaries {
		fmt.Fprintf(h, "%s %s\n", b.Name, b.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))[:hashChars]
}

// intact tells whether path is the complete, executable binary.
func (b binary) intact(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o755 || info.Size() != b.Size {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return false
	}
	return hex.EncodeToString(h.Sum(nil)) == b.SHA256
}

// extract writes the binary beside its final place and renames it. A process
// that runs the old, damaged file keeps it.
func (b binary) extract(src fs.FS, dir string) (err error) {
	in, err := src.Open(b.Name + suffix)
	if err != nil {
		return err
	}
	defer in.Close()
	// One goroutine and little memory: this runs in the process that later
	// idles as the node.
	dec, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer dec.Close()
	tmp, err := os.CreateTemp(dir, tempPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	h := sha256.New()
	// One byte over the limit is enough to notice that the stream is too long.
	n, err := io.Copy(io.MultiWriter(tmp, h), io.LimitReader(dec, b.Size+1))
	if err != nil {
		return err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); n != b.Size || sum != b.SHA256 {
		return fmt.Errorf("the embedded %s is damaged (%d bytes, sha256 %s): install baton anew", b.Name, n, sum)
	}
	if err := tmp.Chmod(0o755); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	path := filepath.Join(dir, b.Name)
	// Rename cannot replace a directory, which only damage can have put there.
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return os.Rename(tmp.Name(), path)
}

// lock takes an exclusive lock that ends with the process at the latest.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the runtime's directory: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the runtime's directory %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// removeTemps deletes what an unpacking process that was killed left behind.
// The caller holds the lock.
func removeTemps(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, tempPattern))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
