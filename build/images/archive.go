package images

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations by which importers name an image: containerd takes the first,
// others the second.
const (
	imageNameAnnotation = "io.containerd.image.name"
	refNameAnnotation   = "org.opencontainers.image.ref.name"
)

// assemble writes the archive into a file in tmp and returns its path.
func assemble(r Recipe, rootfs string, programs []string, tmp string) (string, error) {
	blob := filepath.Join(tmp, "layer.tar.gz")
	if err := writeLayer(blob, r, rootfs, programs); err != nil {
		return "", err
	}
	img, err := image(r, blob)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(tmp, "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return "", err
	}
	for _, text := range r.Tags {
		tag, err := name.NewTag(text, name.StrictValidation)
		if err != nil {
			return "", err
		}
		err = p.AppendImage(img,
			layout.WithAnnotations(map[string]string{imageNameAnnotation: text, refNameAnnotation: tag.TagStr()}),
			layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
		if err != nil {
			return "", err
		}
	}
	out := filepath.Join(tmp, "image.tar")
	return out, archive(out, dir)
}

// writeLayer writes the recipe's files as one compressed layer.
func writeLayer(path string, r Recipe, rootfs string, programs []string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Speed: the archives are read once, from the local disk.
	zw, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	l := newLayer(zw)
	for _, file := range r.Files {
		l.reserve(file.Path)
	}
	for _, p := range r.Programs {
		l.reserve(p.Path)
	}
	if rootfs != "" {
		in, err := os.Open(rootfs)
		if err != nil {
			return err
		}
		defer in.Close()
		if err := l.addRootfs(in); err != nil {
			return err
		}
	}
	for _, file := range r.Files {
		if err := l.addFile(file); err != nil {
			return err
		}
	}
	for i, p := range r.Programs {
		if err := l.addProgram(p.Path, programs[i]); err != nil {
			return err
		}
	}
	return errors.Join(l.close(), zw.Close())
}

// image puts the layer and the recipe's configuration together.
func image(r Recipe, blob string) (v1.Image, error) {
	layer, err := tarball.LayerFromFile(blob, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "baton build/images " + r.Name},
	})
	if err != nil {
		return nil, err
	}
	old, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg := old.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Created = v1.Time{Time: epoch}
	cfg.Config = v1.Config{
		Entrypoint:   r.Entrypoint,
		Cmd:          r.Cmd,
		Env:          r.Env,
		User:         r.User,
		WorkingDir:   r.WorkingDir,
		StopSignal:   r.StopSignal,
		Labels:       r.Labels,
		Healthcheck:  r.Health,
		ExposedPorts: set(r.Ports),
		Volumes:      set(r.Volumes),
	}
	return mutate.ConfigFile(img, cfg)
}

func set(keys []string) map[string]struct{} {
	if len(keys) == 0 {
		return nil
	}
	m := map[string]struct{}{}
	for _, k := range keys {
		m[k] = struct{}{}
	}
	return m
}

// archive writes the files of dir, in order of their names, as a tar file.
func archive(path, dir string) (err error) {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	tw := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: rel + "/", Mode: 0o755, ModTime: epoch})
		}
		// Not a layout's business, should the library ever leave a work file.
		if strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		return addBlob(tw, rel, p)
	})
	if err != nil {
		return err
	}
	return errors.Join(tw.Close(), out.Sync())
}

func addBlob(tw *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: info.Size(), ModTime: epoch}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}
