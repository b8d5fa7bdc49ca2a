// Package archive packs trees of files into tar streams and unpacks them, where somebody else may change the tree meanwhile.
//
// Invariants: Pack follows no symbolic link beneath its start and opens no device, pipe or socket; Unpack writes nothing outside its
// root, whatever names and links the stream and the root hold, and a file appears under its name only when it is whole. Bits that lend the
// rights of an owner (setuid, setgid) are kept with the owner only.
// Neither holds more than a buffer of a file in memory. Pack makes hard links files of their own and leaves extended attributes out;
// Unpack makes the hard links that a stream has, within its root.
//
// Concurrency: functions only; they own nothing.
package archive

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// depthMax bounds the directories in each other: each holds a descriptor while it is packed.
const depthMax = 256

// Pack writes what f is, a file or a directory with all beneath, under name. f may be opened with O_PATH.
func Pack(ctx context.Context, w io.Writer, f *os.File, name string) error {
	t := tar.NewWriter(w)
	if err := pack(ctx, t, f, name, 0); err != nil {
		return err
	}
	return t.Close()
}

func pack(ctx context.Context, t *tar.Writer, f *os.File, name string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > depthMax {
		return fmt.Errorf("%s: more than %d directories in each other", name, depthMax)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	link := ""
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return fmt.Errorf("%s: read the link: %w", name, err)
		}
		link = string(buf[:n])
	case 0, fs.ModeDir:
	default:
		if depth == 0 {
			return fmt.Errorf("%s is a device, pipe or socket: only files, directories and symbolic links are copied", name)
		}
		return nil // it means something where it is only
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	h.Name, h.Uname, h.Gname = name, "", "" // names of users are of another machine
	if info.IsDir() {
		h.Name += "/"
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	// What f is was seen before it is opened to be read: an O_PATH descriptor cannot become a device.
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return fmt.Errorf("%s: %w", name, errors.Unwrap(err))
	}
	defer func() { _ = again.Close() }()
	if info.IsDir() {
		return packAll(ctx, t, again, name, depth)
	}
	if n, err := io.CopyN(t, again, h.Size); err != nil {
		return fmt.Errorf("%s: it shrank to %d bytes while it was read: %w", name, n, err)
	}
	return nil
}

func packAll(ctx context.Context, t *tar.Writer, dir *os.File, name string, depth int) error {
	for {
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			fd, err := unix.Openat(int(dir.Fd()), n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if errors.Is(err, unix.ENOENT) {
				continue // it was removed meanwhile
			}
			if err != nil {
				return fmt.Errorf("%s: %w", path.Join(name, n), err)
			}
			f := os.NewFile(uintptr(fd), n)
			err = pack(ctx, t, f, path.Join(name, n), depth+1)
			_ = f.Close()
			if err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// Options say how a stream is unpacked.
type Options struct {
	Rename string // of the first entry, and of what is beneath it; empty: as it is
	Owners bool   // keep uid and gid; otherwise what is made belongs to this process
}

// Unpack makes what r holds in root. Files that are there are replaced, directories are filled.
func Unpack(ctx context.Context, root *os.Root, r io.Reader, o Options) error {
	t := tar.NewReader(r)
	first := ""
	var dirs []*tar.Header // their modes and times come last: files are still made in them
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		h.Name = path.Clean(h.Name)
		if first == "" {
			first = h.Name
		}
		if h.Name, err = o.renamed(h.Name, first); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeLink {
			if h.Linkname, err = o.renamed(path.Clean(h.Linkname), first); err != nil {
				return err
			}
		}
		if err := unpack(root, t, h, o); err != nil {
			return fmt.Errorf("%s: %w", h.Name, plain(err))
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		h := dirs[i]
		if h.Name == "." {
			continue // the directory was there; it stays as it is
		}
		if err := finish(root, h, o); err != nil {
			return fmt.Errorf("%s: %w", h.Name, plain(err))
		}
	}
	return nil
}

// renamed is the name of an entry in the root, first being that of the first one.
func (o Options) renamed(name, first string) (string, error) {
	switch {
	case o.Rename == "":
		return name, nil
	case first == ".":
		return path.Join(o.Rename, name), nil
	}
	rest, ok := strings.CutPrefix(name, first)
	if !ok || rest != "" && rest[0] != '/' {
		return "", fmt.Errorf("%s: the archive holds more than %s, which needs a directory to go to", name, first)
	}
	return o.Rename + rest, nil
}

// mode is what a file or directory may be used for. Without its owner it lends nobody's rights: a program of a container that starts as
// its owner would start as root where root has copied it.
func mode(h *tar.Header, o Options) fs.FileMode {
	m := h.FileInfo().Mode()
	if !o.Owners {
		m &^= fs.ModeSetuid | fs.ModeSetgid
	}
	return m
}

func finish(root *os.Root, h *tar.Header, o Options) error {
	f, err := root.OpenFile(h.Name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := f.Chmod(mode(h, o)); err != nil {
		return err
	}
	return root.Chtimes(h.Name, time.Now(), h.ModTime)
}

// plain leaves out the name of the call and of temporary files.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func unpack(root *os.Root, r io.Reader, h *tar.Header, o Options) error {
	owners := func(change func(name string, uid, gid int) error) error {
		if !o.Owners {
			return nil
		}
		return change(h.Name, h.Uid, h.Gid)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if h.Name == "." {
			return nil
		}
		if err := root.Mkdir(h.Name, 0o700); err != nil {
			if info, serr := root.Lstat(h.Name); serr != nil || !info.IsDir() {
				return err
			}
		}
		return owners(root.Lchown)
	case tar.TypeSymlink:
		if err := root.Remove(h.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := root.Symlink(h.Linkname, h.Name); err != nil {
			return err
		}
		return owners(root.Lchown)
	case tar.TypeLink: // tar writes the second name of a file this way; what it leads to is in the root, too
		if h.Linkname == h.Name {
			return nil
		}
		if err := root.Remove(h.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return root.Link(h.Linkname, h.Name)
	case tar.TypeReg:
		return unpackFile(root, r, h, o)
	}
	return fmt.Errorf("it is neither a file nor a directory nor a symbolic link (type %q)", h.Typeflag)
}

// unpackFile writes beside the file, and puts it in its place when it is whole.
func unpackFile(root *os.Root, r io.Reader, h *tar.Header, o Options) (err error) {
	if info, err := root.Lstat(h.Name); err == nil && info.IsDir() {
		return errors.New("it is a directory there")
	}
	temp := path.Join(path.Dir(h.Name), ".baton-cp-"+rand.Text())
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = root.Remove(temp) // the first error is the reason
		}
	}()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	if o.Owners {
		if err := f.Chown(h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(mode(h, o)); err != nil { // after chown, which takes setuid bits away
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := root.Chtimes(temp, time.Now(), h.ModTime); err != nil {
		return err
	}
	return root.Rename(temp, h.Name)
}
