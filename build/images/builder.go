package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	// format is part of every hash: raise it when the same recipe comes to
	// make another archive.
	format = 1
	suite  = "bookworm"
	// unusedMax is how long an archive stays in the cache after its last use.
	unusedMax = 14 * 24 * time.Hour
	// stderrTail is how much of a failed command's output an error carries, in
	// bytes.
	stderrTail = 2000
)

// Bootstrap writes the unpacked files of Debian packages as a tar stream.
type Bootstrap func(ctx context.Context, packages []string, w io.Writer) error

// Builder makes archives.
type Builder struct {
	Source    string       // root of the module that programs are built in
	Cache     string       // directory, made on demand
	Bootstrap Bootstrap    // nil is Debian
	Progress  func(string) // told what takes long; nil is silence
}

// Build returns the path of the recipe's archive in the cache, after making it
// when it is not there.
func (b *Builder) Build(ctx context.Context, r Recipe) (string, error) {
	if err := r.Validate(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(b.Cache, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	tmp, err := os.MkdirTemp(b.Cache, "tmp-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	programs, err := b.compile(ctx, r, tmp)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", r.Name, err)
	}
	key, err := hash(r, programs)
	if err != nil {
		return "", err
	}
	out := filepath.Join(b.Cache, r.Name+"-"+key+".tar")
	if touch(out) {
		return out, nil
	}
	rootfs, err := b.rootfs(ctx, r, tmp)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", r.Name, err)
	}
	b.say("image %s: writing the archive", r.Name)
	archive, err := assemble(r, rootfs, programs, tmp)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", r.Name, err)
	}
	if err := os.Rename(archive, out); err != nil {
		return "", err
	}
	return out, b.prune()
}

// Link makes dir/NAME.tar a symbolic link to archive.
func Link(dir, name, archive string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	archive, err := filepath.Abs(archive)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, fmt.Sprintf(".%s-%d", name, os.Getpid()))
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(archive, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, name+".tar"))
}

func (b *Builder) say(format string, args ...any) {
	if b.Progress != nil {
		b.Progress(fmt.Sprintf(format, args...))
	}
}

// compile builds the recipe's programs and returns where each is, in the
// recipe's order. Go's own cache makes this cheap when nothing changed.
func (b *Builder) compile(ctx context.Context, r Recipe, tmp string) ([]string, error) {
	var out []string
	for i, p := range r.Programs {
		path := filepath.Join(tmp, fmt.Sprintf("program-%d", i))
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", path, p.Package)
		cmd.Dir = b.Source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", p.Package, err, tail(text))
		}
		out = append(out, path)
	}
	return out, nil
}

// rootfs returns the tar file with the recipe's packages, or "" for scratch.
func (b *Builder) rootfs(ctx context.Context, r Recipe, tmp string) (string, error) {
	if len(r.Packages) == 0 {
		return "", nil
	}
	key, err := hash(Recipe{Packages: r.Packages, Drop: r.Drop}, nil)
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.Cache, "rootfs-"+key+".tar")
	if touch(path) {
		return path, nil
	}
	b.say("image %s: fetching Debian packages (%s)", r.Name, strings.Join(r.Packages, ", "))
	part := filepath.Join(tmp, "rootfs.tar")
	f, err := os.Create(part)
	if err != nil {
		return "", err
	}
	defer f.Close()
	bootstrap := b.Bootstrap
	if bootstrap == nil {
		bootstrap = Debian
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := bootstrap(ctx, r.Packages, pw)
		pw.CloseWithError(err)
		done <- err
	}()
	filterErr := filter(f, pr, r.Drop)
	// The rest of the stream is padding; without reading it the writer would
	// see a broken pipe.
	if filterErr == nil {
		_, filterErr = io.Copy(io.Discard, pr)
	}
	pr.CloseWithError(filterErr)
	if err := errors.Join(<-done, filterErr); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return path, os.Rename(part, path)
}

// prune removes what was not used for a long time and what killed builds left.
// The caller holds the lock.
func (b *Builder) prune() error {
	entries, err := os.ReadDir(b.Cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < unusedMax {
			continue
		}
		if strings.HasSuffix(e.Name(), ".tar") || strings.HasPrefix(e.Name(), "tmp-") {
			if err := os.RemoveAll(filepath.Join(b.Cache, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Debian unpacks packages and what they depend on with mmdebstrap, from the
// mirror that it is set up for. It needs root or user namespaces.
func Debian(ctx context.Context, packages []string, w io.Writer) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--variant=extract", "--include="+strings.Join(packages, ","), suite, "-")
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()))
	cmd.Stdout = w
	cmd.Stderr = &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("mmdebstrap is missing: apt-get install mmdebstrap")
	}
	if err != nil {
		return fmt.Errorf("fetch Debian packages: %w\n%s", err, tail(stderr.Bytes()))
	}
	return nil
}

// hash covers everything that an archive depends on.
func hash(r Recipe, programs []string) (string, error) {
	h := sha256.New()
	text, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "%d %s %s %s\n", format, suite, runtime.GOARCH, text)
	for _, path := range programs {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// touch tells whether path exists, and marks it as used now.
func touch(path string) bool {
	now := time.Now()
	return os.Chtimes(path, now, now) == nil
}

// lock waits for an exclusive lock, which ends with the process at the latest.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another image build: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func tail(text []byte) string {
	if len(text) > stderrTail {
		text = text[len(text)-stderrTail:]
	}
	return strings.TrimSpace(string(text))
}
