// Command cmd builds container images without a registry and links the
// archives into a directory:
//
//	go run ./build/images/cmd                  all images
//	go run ./build/images/cmd postgres redis   some
//	go run ./build/images/cmd -list            names and tags
//
// Archives are cached in ${BATON_CACHE:-$HOME/.cache/baton}/images.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"baton/build/images"
)

func main() {
	out := flag.String("out", "build/out/images", "directory to link the archives into")
	source := flag.String("source", ".", "root of the module")
	list := flag.Bool("list", false, "list the images, build nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *source, *out, *list, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, source, out string, list bool, names []string) error {
	all := images.Recipes()
	for _, name := range names {
		if !slices.ContainsFunc(all, func(r images.Recipe) bool { return r.Name == name }) {
			return fmt.Errorf("there is no image %q: -list names them", name)
		}
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	b := &images.Builder{
		Source:   source,
		Cache:    filepath.Join(cache, "images"),
		Progress: func(line string) { fmt.Fprintln(os.Stderr, line) },
	}
	for _, r := range all {
		if len(names) > 0 && !slices.Contains(names, r.Name) {
			continue
		}
		if list {
			fmt.Println(r.Name, strings.Join(r.Tags, " "))
			continue
		}
		archive, err := b.Build(ctx, r)
		if err != nil {
			return err
		}
		if err := images.Link(out, r.Name, archive); err != nil {
			return err
		}
		fmt.Println(filepath.Join(out, r.Name+".tar"))
	}
	return nil
}

func cacheDir() (string, error) {
	if dir := os.Getenv("BATON_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for the cache (set BATON_CACHE): %w", err)
	}
	return filepath.Join(dir, ".cache", "baton"), nil
}
