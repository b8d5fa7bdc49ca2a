// Command pack compresses a built container runtime into the directory that the
// baton binary embeds:
//
//	pack -from DIR -own DIR -to build/bundle/blob
//
// The first DIR is what build/runtime.sh prints; the second holds the programs of
// baton's own that belong to the runtime. Packing the same runtime again changes
// nothing, so the binary is not linked anew.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"baton/build/bundle"
)

func main() {
	from := flag.String("from", "", "directory with containerd, containerd-shim-runc-v2, runc and VERSIONS")
	own := flag.String("own", "", "directory with baton-shim, baton-logger, baton-fence and baton-edge")
	to := flag.String("to", "build/bundle/blob", "directory to write")
	flag.Parse()
	if err := run(*from, *own, *to); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(from, own, to string) error {
	if from == "" || own == "" {
		return fmt.Errorf("-from or -own is missing: give the directory that build/runtime.sh prints, and that of baton-shim, baton-logger, baton-fence and baton-edge")
	}
	v, err := readVersions(filepath.Join(from, "VERSIONS"))
	if err != nil {
		return err
	}
	changed, err := bundle.Pack([]string{from, own}, to, v)
	if err != nil {
		return err
	}
	state := "is up to date in"
	if changed {
		state = "packed into"
	}
	fmt.Fprintf(os.Stderr, "pack: runtime (containerd %s, runc %s) %s %s\n", v.Containerd, v.Runc, state, to)
	return nil
}

// readVersions reads lines of the form "NAME VERSION".
func readVersions(path string) (bundle.Versions, error) {
	f, err := os.Open(path)
	if err != nil {
		return bundle.Versions{}, err
	}
	defer f.Close()
	got := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		name, version, _ := strings.Cut(s.Text(), " ")
		got[name] = version
	}
	v := bundle.Versions{Containerd: got["containerd"], Runc: got["runc"]}
	if v.Containerd == "" || v.Runc == "" {
		return v, fmt.Errorf("%s does not name the versions of containerd and runc: build the runtime anew", path)
	}
	return v, nil
}
