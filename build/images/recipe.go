// Package images builds the container images that Baton's tests, examples and
// demo run, without a registry: OCI image layouts as tar archives, made of our
// own static Go programs or of Debian packages.
//
// Recipes is the list; Builder makes archives from it. An archive depends on its
// recipe and inputs only: every entry has the same time stamp, order and owner
// each time, so equal input gives equal digests. (Debian's packages may be
// updated; a root file system that was fetched once is kept and used again.)
//
// Layout of the cache directory:
//
//	.lock                 held by the one process that builds
//	rootfs-HASH.tar       files of a set of Debian packages, HASH over the set
//	NAME-HASH.tar         a finished archive, HASH over recipe and programs
//
// Files appear there by rename only. A Builder is for one goroutine; several
// processes may share a cache directory.
package images

import (
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Recipe says what one image consists of. Files win over Packages where both
// have a path.
type Recipe struct {
	Name string   // of the archive, e.g. "postgres"
	Tags []string // full references, e.g. "docker.io/library/postgres:15"

	Packages []string  // Debian packages, unpacked with what they depend on; none = scratch
	Drop     []string  // patterns of package files to leave out; see matches
	Programs []Program // Go programs, built statically
	Files    []File

	Entrypoint []string
	Cmd        []string
	Env        []string // KEY=VALUE
	User       string   // "" is root
	WorkingDir string   // "" is /
	Ports      []string // e.g. "80/tcp"
	Volumes    []string // mount points
	StopSignal string   // "" is SIGTERM
	Labels     map[string]string
	Health     *v1.HealthConfig
}

// Program is a Go command to build into an image.
type Program struct {
	Package string // import path or ./directory, seen from the module's root
	Path    string // in the image
}

// File is a regular file, a directory (Mode has fs.ModeDir) or a symbolic link
// (Link is not empty). Parents that nothing else makes are made with mode 0755.
type File struct {
	Path    string
	Content string
	Link    string
	Mode    fs.FileMode // 0 is 0644; fs.ModeSticky is honoured
	UID     int
	GID     int
}

// Validate reports the first mistake in the recipe.
func (r Recipe) Validate() error {
	if r.Name == "" || strings.ContainsAny(r.Name, "/ ") {
		return fmt.Errorf("recipe %q: the name must be a plain file name", r.Name)
	}
	if len(r.Tags) == 0 {
		return fmt.Errorf("recipe %s: it has no tag", r.Name)
	}
	for _, tag := range r.Tags {
		if err := validateTag(tag); err != nil {
			return fmt.Errorf("recipe %s: %w", r.Name, err)
		}
	}
	if len(r.Entrypoint) == 0 && len(r.Cmd) == 0 {
		return fmt.Errorf("recipe %s: it has neither entrypoint nor cmd", r.Name)
	}
	var paths []string
	for _, p := range r.Programs {
		paths = append(paths, p.Path)
	}
	for _, f := range r.Files {
		paths = append(paths, f.Path)
	}
	seen := map[string]bool{}
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return fmt.Errorf("recipe %s: %q is not a clean absolute path", r.Name, p)
		}
		if seen[p] {
			return fmt.Errorf("recipe %s: %s is there twice", r.Name, p)
		}
		seen[p] = true
	}
	for _, p := range r.Ports {
		number, proto, _ := strings.Cut(p, "/")
		if n, err := strconv.Atoi(number); err != nil || n < 1 || n > 65535 || proto != "tcp" && proto != "udp" {
			return fmt.Errorf("recipe %s: port %q is not of the form 80/tcp", r.Name, p)
		}
	}
	return nil
}

// validateTag accepts normalised names only: containerd looks images up by the
// exact string, and a Compose file's "redis:7" is normalised before the look-up.
func validateTag(tag string) error {
	ref, err := name.NewTag(tag, name.StrictValidation)
	if err != nil {
		return err
	}
	host, rest, ok := strings.Cut(tag, "/")
	if !ok || !strings.ContainsAny(host, ".:") || ref.TagStr() == "" {
		return fmt.Errorf("tag %q is not a full name such as docker.io/library/redis:7", tag)
	}
	if host == "docker.io" && !strings.Contains(rest, "/") {
		return fmt.Errorf("tag %q lacks the library/ part", tag)
	}
	return nil
}
