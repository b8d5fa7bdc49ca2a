// Package structure tests the shape of the code: which package may import which, and how large files and functions get.
package structure

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// room is one row of the table in docs/architecture.md.
type room struct {
	floor int
	path  string // below the module, without trailing slash; its subpackages belong to it
	wing  string // "manager" and "node" never import each other
	owns  string
}

// rooms is the table. A package imports only packages of lower floors, or of its own room.
var rooms = []room{
	{0, "internal/model/spec", "", "what a user asks for"},
	{0, "internal/archive", "", "trees of files as streams, on both sides of a copy"},
	{0, "internal/durable", "", "files that survive a power cut"},
	{1, "internal/seal", "", "content that must not lie on a disk in clear"},
	{0, "build/bundle", "", "the pinned runtime inside the binary"},
	{0, "build/images", "", "test and example images"},
	{1, "internal/wire/transport", "", "the one port: mutual TLS, certificates on disk"},
	{2, "internal/wire/rpc", "", "calls between machines"},
	{1, "build/pack", "", "writes what bundle embeds"},
	{1, "internal/model/cluster", "", "the objects"},
	{1, "internal/model/compose", "", "Compose files to spec"},
	{2, "internal/wire/agentapi", "", "messages between agent and manager"},
	{3, "internal/wire/noderpc", "", "a node's services over the wire"},
	{2, "internal/plan/ipam", "", "addresses, pure; the scheduler keeps host ports with it"},
	{3, "internal/plan/reconcile", "", "tasks wanted, pure"},
	{3, "internal/plan/autoscale", "", "how many tasks, pure"},
	{2, "internal/plan/gate", "", "whether a revision's requests are as good as the stable one's, pure"},
	{3, "internal/plan/release", "", "what a deployment changes, pure"},
	{3, "internal/plan/schedule", "", "tasks placed, pure"},
	{4, "internal/plan", "", "the test that planners are pure; itself no code"},
	{2, "internal/manager/store", "manager", "state"},
	{2, "client", "", "public Go client"},
	{3, "internal/manager/consensus", "manager", "the log"},
	{3, "internal/manager/identity", "manager", "keys"},
	{3, "internal/manager/measure", "manager", "the load of services and tasks, in memory"},
	{4, "internal/manager/recovery", "manager", "backups; the state of a cluster that lost its managers"},
	{4, "internal/manager/stacks", "manager", "lets the release planner read the store"},
	{5, "internal/manager/control", "manager", "the leader's loop"},
	{5, "internal/manager/dispatch", "manager", "agents' sessions"},
	{5, "internal/manager/server", "manager", "the public API"},
	{5, "internal/manager/certificate", "manager", "the certificates of ingress rules"},
	{6, "internal/manager/manager", "manager", "composes its wing"},
	{3, "internal/node/agent", "node", "runs what is assigned"},
	{4, "internal/node/logger", "node", "the process that keeps a task's output; imports nothing of ours"},
	{4, "internal/node/fence", "node", "ends tasks whose lease is over, with a process of its own; imports nothing of ours"},
	{4, "internal/node/shim", "node", "starts and cleans up shims; imports nothing of ours"},
	{4, "internal/node/files", "node", "secrets and configs in memory"},
	{4, "internal/node/image", "node", "images"},
	{4, "internal/node/network", "node", "links, the mesh, balancing, names, isolation"},
	{4, "internal/node/record", "node", "what the node was told, over restarts"},
	{4, "internal/node/edge", "node", "L7 ingress: HTTP requests to tasks"},
	{5, "internal/node/edgeproc", "node", "the edge as a process that outlives baton"},
	{4, "internal/node/volume", "node", "local volumes"},
	{4, "internal/node/uplink", "node", "a node's way to the managers"},
	{5, "internal/node/runtime", "node", "containers; gets its images from image"},
	{6, "internal/node/node", "node", "composes its wing"},
	{7, "internal/process", "", "the running binary; knows both wings"},
	{7, "internal/sim", "", "whole-cluster simulation; knows both wings"},
	{8, "internal/cli", "", "commands, on top of client"},
	{9, "cmd", "", "main"},
	{9, "test", "", "end to end"},
	{9, "bench", "", "benchmarks"},
	{9, "examples", "", "applications"},
	{9, "internal/structure", "", "these tests"},
}

const module = "baton"

func find(path string) (room, bool) {
	rel := strings.TrimPrefix(path, module+"/")
	for _, r := range rooms {
		if rel == r.path || strings.HasPrefix(rel, r.path+"/") {
			return r, true
		}
	}
	return room{}, false
}

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var list []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func TestImportsGoDownwards(t *testing.T) {
	for _, p := range packages(t) {
		from, ok := find(p.ImportPath)
		if !ok {
			t.Errorf("%s has no row in the table of rooms: add one here and in docs/architecture.md, with what it owns", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module+"/") {
				continue
			}
			to, ok := find(imp)
			if !ok || to.path == from.path {
				continue
			}
			if to.floor >= from.floor {
				t.Errorf("%s (floor %d: %s) imports %s (floor %d: %s): imports go to lower floors only",
					p.ImportPath, from.floor, from.owns, imp, to.floor, to.owns)
			}
			if from.wing != "" && to.wing != "" && from.wing != to.wing {
				t.Errorf("%s imports %s: the manager and the node wing never know each other; only process and sim know both", p.ImportPath, imp)
			}
			if from.path == "client" && !strings.HasPrefix(to.path, "internal/model/") {
				t.Errorf("client imports %s: it imports the model only, so that others can build on it", imp)
			}
			if from.path == "internal/cli" && to.wing != "" {
				t.Errorf("%s imports %s: the command line speaks to the cluster through client only", p.ImportPath, imp)
			}
		}
	}
}

const (
	fileMax     = 600
	functionMax = 70
)

// grown names what is larger than the limits and since when it may be: an entry may shrink or go, never grow. Empty is best.
var grown = map[string]int{}

func TestFilesAndFunctionsStaySmall(t *testing.T) {
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules" || d.Name() == "out") && path != top {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		checkFile(t, path, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkFile(t *testing.T, path, rel string) {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	limit := func(name string, lines, most int) {
		if was, ok := grown[name]; ok {
			most = was
		}
		if lines > most {
			t.Errorf("%s has %d lines, at most %d: split it by what it does", name, lines, most)
		}
	}
	if lines := bytes.Count(data, []byte("\n")); !strings.HasSuffix(rel, "_test.go") {
		limit(rel, lines, fileMax)
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, data, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Body != nil {
			lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1
			limit(fmt.Sprintf("%s:%s", rel, f.Name.Name), lines, functionMax)
		}
	}
}

// root is the module's directory.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = up
	}
}
