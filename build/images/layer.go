package images

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// epoch is the time stamp of everything in an image. Not 1970: some programs
// take that for "no time known".
var epoch = time.Date(2024, time.January, 1, 0, 0, 0, 0, time.UTC)

// layer writes one file system layer. Paths are relative, without "./".
type layer struct {
	tw    *tar.Writer
	taken map[string]bool // paths already written, or written later by a File
	made  map[string]bool // directories written
}

func newLayer(w io.Writer) *layer {
	return &layer{tw: tar.NewWriter(w), taken: map[string]bool{}, made: map[string]bool{".": true}}
}

// reserve keeps addRootfs from writing p.
func (l *layer) reserve(p string) { l.taken[strings.TrimPrefix(p, "/")] = true }

// addRootfs copies a tar stream, without what is reserved.
func (l *layer) addRootfs(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the root file system: %w", err)
		}
		if l.taken[strings.TrimSuffix(h.Name, "/")] {
			continue
		}
		if err := l.write(h, tr); err != nil {
			return err
		}
	}
}

// addFile writes one file of a recipe.
func (l *layer) addFile(f File) error {
	h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Uid: f.UID, Gid: f.GID, Mode: tarMode(f.Mode)}
	switch {
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	case f.Mode.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Content))
	}
	return l.write(h, strings.NewReader(f.Content))
}

// addProgram copies the executable at from.
func (l *layer) addProgram(to, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(to, "/"), Mode: 0o755, Size: info.Size()}
	return l.write(h, f)
}

func (l *layer) write(h *tar.Header, content io.Reader) error {
	if err := l.makeParents(path.Dir(strings.TrimSuffix(h.Name, "/"))); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		l.made[strings.TrimSuffix(h.Name, "/")] = true
	}
	// A header of our own: names of users, access times and sub-second stamps
	// of the build machine must not reach the image.
	clean := &tar.Header{
		Format: tar.FormatPAX, Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size,
		Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: epoch, Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	if err := l.tw.WriteHeader(clean); err != nil {
		return fmt.Errorf("write %s: %w", h.Name, err)
	}
	if _, err := io.Copy(l.tw, content); err != nil {
		return fmt.Errorf("write %s: %w", h.Name, err)
	}
	return nil
}

func (l *layer) makeParents(dir string) error {
	if l.made[dir] {
		return nil
	}
	if err := l.makeParents(path.Dir(dir)); err != nil {
		return err
	}
	l.made[dir] = true
	return l.tw.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: epoch})
}

func (l *layer) close() error { return l.tw.Close() }

func tarMode(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	if bits == 0 {
		bits = 0o644
	}
	if m&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}

// filter copies a tar stream without the entries that drop matches and without
// devices, which the runtime makes.
func filter(w io.Writer, r io.Reader, drop []string) error {
	tr, tw := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return tw.Close()
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(h.Name, "./")
		if h.Typeflag == tar.TypeLink {
			h.Linkname = strings.TrimPrefix(h.Linkname, "./")
		}
		if h.Name == "" || h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock || matches(drop, h.Name) {
			continue
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
}

// matches tells whether one of the patterns (of path.Match, without a leading
// slash) fits the path or one of its parents.
func matches(patterns []string, name string) bool {
	name = strings.TrimSuffix(name, "/")
	for ; name != "."; name = path.Dir(name) {
		for _, p := range patterns {
			if ok, err := path.Match(p, name); err == nil && ok {
				return true
			}
		}
	}
	return false
}
