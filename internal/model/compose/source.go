package compose

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v4"
)

// Limits on input. They are far above what people write and keep a hostile file from using up the machine.
const (
	MaxFileBytes = 1 << 20 // of one Compose, env or label file
	maxFiles     = 100     // Compose files of one stack, with those that they include or extend
	maxNodes     = 100_000 // YAML nodes of one file, aliases counted as often as they are used
	maxDepth     = 64      // nesting of YAML
)

// source is one Compose file with the lines of its keys.
type source struct {
	name    string // for messages
	abs     string // "" for content that came without a file
	content []byte
	tree    map[string]any // the file as plain values: merges and aliases resolved, not interpolated
	lines   map[string]int // path → line of its key or item
}

// sources are all files of a stack: those that were named, in order, then those they include or extend.
type sources struct {
	files  []*source
	named  int // how many of files were named
	dir    string
	lookup template.Mapping
}

// place finds where path stands. The last named file that has it wins, as in merging; when no file has it, the nearest
// enclosing key is taken.
func (s *sources) place(path string) (file string, line int) {
	for p := path; p != ""; p = parentPath(p) {
		for i := s.named - 1; i >= 0; i-- {
			if l, ok := s.files[i].lines[p]; ok {
				return s.files[i].name, l
			}
		}
		for _, f := range s.files[s.named:] {
			if l, ok := f.lines[p]; ok {
				return f.name, l
			}
		}
	}
	if len(s.files) == 0 {
		return "", 0
	}
	return s.files[0].name, 0
}

// has reports whether a file has exactly this path.
func (s *sources) has(path string) bool {
	return slices.ContainsFunc(s.files, func(f *source) bool { return f.lines[path] > 0 })
}

func parentPath(p string) string {
	if strings.HasSuffix(p, "]") {
		return p[:max(strings.LastIndexByte(p, '['), 0)]
	}
	return p[:max(strings.LastIndexByte(p, '.'), 0)]
}

// readLimited reads a regular file of at most limit bytes. Devices and pipes are refused: they may never end.
func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, plainFileError(err)
	}
	if info.IsDir() {
		return nil, errors.New("is a directory")
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, plainFileError(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, plainFileError(err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("is larger than %d KiB", limit>>10)
	}
	return b, nil
}

// plainFileError says what the operating system said, without the operation and the path around it.
func plainFileError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("does not exist")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("may not be read")
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// add parses one file, reports what is wrong with it as YAML, and follows its references.
func (r *report) add(f *source) {
	r.src.files = append(r.src.files, f)
	fail := func(line int, message, mend string) {
		r.errors = append(r.errors, Diagnostic{File: f.name, Line: line, Message: message, Mend: mend})
	}
	if len(f.content) > MaxFileBytes {
		fail(0, fmt.Sprintf("the file is larger than %d KiB", MaxFileBytes>>10), "split it with include, or move large content into config files")
		return
	}
	w := &walker{lines: map[string]int{}, fail: fail}
	f.lines, f.tree = w.lines, map[string]any{}
	dec := yaml.NewDecoder(strings.NewReader(string(f.content)))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line, msg := yamlError(err)
			fail(line, msg, "")
			return
		}
		if len(doc.Content) == 0 {
			continue
		}
		v := w.value(doc.Content[0], "", 0)
		if w.stopped {
			return
		}
		m, ok := v.(map[string]any)
		if !ok {
			if v != nil {
				fail(doc.Content[0].Line, "a Compose file is a mapping with the key services", "")
			}
			continue
		}
		for k, v := range m {
			f.tree[k] = v
		}
	}
}

var yamlLineRE = regexp.MustCompile(`(?i)\bline (\d+)`)

// yamlError takes the line out of a message of the YAML parser.
func yamlError(err error) (int, string) {
	msg := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
	line := 0
	// The first line is where the enclosing structure began, the last where reading stopped.
	if m := yamlLineRE.FindAllStringSubmatch(msg, -1); m != nil {
		line, _ = strconv.Atoi(m[len(m)-1][1])
	}
	if i := strings.LastIndex(msg, ": "); i >= 0 && yamlLineRE.MatchString(msg[:i]) {
		msg = msg[i+2:]
	}
	return line, "the YAML cannot be read: " + msg
}

// walker turns YAML nodes into plain values and notes the line of each.
type walker struct {
	lines   map[string]int
	fail    func(line int, message, mend string)
	nodes   int
	stopped bool
}

// value converts n, which stands at path.
func (w *walker) value(n *yaml.Node, path string, depth int) any {
	w.nodes++
	if w.stopped || n == nil {
		return nil
	}
	if depth > maxDepth || w.nodes > maxNodes {
		w.stopped = true
		w.fail(n.Line, fmt.Sprintf("the YAML is nested more than %d deep or has more than %d nodes", maxDepth, maxNodes), "use fewer aliases, or split the file")
		return nil
	}
	switch n.Kind {
	case yaml.AliasNode:
		return w.value(n.Alias, path, depth+1)
	case yaml.MappingNode:
		m := map[string]any{}
		w.mapping(n, m, path, depth, true)
		return m
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for i, c := range n.Content {
			p := fmt.Sprintf("%s[%d]", path, i)
			w.note(p, c.Line)
			list = append(list, w.value(c, p, depth+1))
		}
		return list
	case yaml.ScalarNode:
		if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") {
			return n.Value
		}
		var v any
		if err := n.Decode(&v); err != nil {
			return n.Value
		}
		return v
	}
	return nil
}

func (w *walker) note(path string, line int) {
	if _, ok := w.lines[path]; !ok {
		w.lines[path] = line
	}
}

// mapping adds the keys of n to m. own says that n is the mapping itself, not one merged into it with <<.
func (w *walker) mapping(n *yaml.Node, m map[string]any, path string, depth int, own bool) {
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.ScalarNode && k.Value == "<<" && (k.Style == 0 || k.Tag == "!!merge") {
			merges = append(merges, v)
			continue
		}
		if k.Kind != yaml.ScalarNode {
			w.fail(k.Line, "a key must be a plain word", "")
			continue
		}
		p := k.Value
		if path != "" {
			p = path + "." + k.Value
		}
		if _, ok := m[k.Value]; ok {
			if own {
				w.fail(k.Line, fmt.Sprintf("%s is given twice, first on line %d", p, w.lines[p]), "remove one of them")
			}
			continue
		}
		if v.Tag == "!reset" {
			w.note(p, k.Line)
			continue
		}
		w.note(p, k.Line)
		m[k.Value] = w.value(v, p, depth+1)
	}
	for _, merge := range merges {
		for merge.Kind == yaml.AliasNode {
			merge = merge.Alias
		}
		list := []*yaml.Node{merge}
		if merge.Kind == yaml.SequenceNode {
			list = merge.Content
		}
		for _, from := range list {
			for from.Kind == yaml.AliasNode {
				from = from.Alias
			}
			w.nodes++
			if from.Kind != yaml.MappingNode {
				w.fail(from.Line, "only mappings can be merged with <<", "")
			}
			// A mapping that merges itself twice would otherwise be walked 2^depth times.
			if from.Kind == yaml.MappingNode && depth < maxDepth && w.nodes <= maxNodes && !w.stopped {
				w.mapping(from, m, path, depth+1, false)
			}
		}
	}
}

// follow reads the files that the stack's files include or extend, for their lines and to refuse what compose-go would read
// without a limit.
func (r *report) follow() {
	seen := map[string]bool{}
	for _, f := range r.src.files {
		seen[f.abs] = true
	}
	for i := 0; i < len(r.src.files); i++ {
		f := r.src.files[i]
		base := r.src.dir
		if i >= r.src.named {
			base = filepath.Dir(f.abs)
		}
		for _, ref := range references(f.tree) {
			name, err := template.SubstituteWithOptions(ref.name, r.src.lookup, template.WithoutLogging)
			if err != nil || name == "" {
				continue // compose-go reports it
			}
			abs := name
			if !filepath.IsAbs(abs) {
				abs = filepath.Join(base, name)
			}
			if seen[abs] {
				continue
			}
			seen[abs] = true
			b, err := readLimited(abs, MaxFileBytes)
			if err != nil {
				if !ref.optional {
					r.errors = append(r.errors, Diagnostic{
						File: f.name, Line: f.lines[ref.path], Path: ref.path, Message: fmt.Sprintf("file %s %v", name, err),
					})
				}
				continue
			}
			if !ref.compose {
				continue
			}
			if len(r.src.files) >= maxFiles {
				r.errors = append(r.errors, Diagnostic{
					File: f.name, Line: f.lines[ref.path], Path: ref.path,
					Message: fmt.Sprintf("more than %d Compose files belong to this stack", maxFiles), Mend: "include fewer",
				})
				return
			}
			r.add(&source{name: displayName(r.src.dir, abs), abs: abs, content: b})
		}
	}
}

func displayName(dir, abs string) string {
	if rel, err := filepath.Rel(dir, abs); err == nil && !strings.HasPrefix(rel, "../../..") {
		return rel
	}
	return abs
}

// reference is a file that a Compose file names.
type reference struct {
	path     string // of the key
	name     string
	compose  bool // another Compose file
	optional bool // may be missing
}

// references lists the files that compose-go reads for a file.
func references(tree map[string]any) []reference {
	var out []reference
	add := func(path string, v any, compose bool) {
		switch v := v.(type) {
		case string:
			out = append(out, reference{path: path, name: v, compose: compose})
		case []any:
			for i, e := range v {
				p := fmt.Sprintf("%s[%d]", path, i)
				if s, ok := e.(string); ok {
					out = append(out, reference{path: p, name: s, compose: compose})
				}
				if m, ok := e.(map[string]any); ok {
					name, _ := m["path"].(string)
					required, given := m["required"].(bool)
					out = append(out, reference{path: p, name: name, optional: given && !required})
				}
			}
		}
	}
	includes, _ := tree["include"].([]any)
	for i, inc := range includes {
		p := fmt.Sprintf("include[%d]", i)
		if m, ok := inc.(map[string]any); ok {
			add(p+".path", m["path"], true)
			if m["env_file"] != "/dev/null" {
				add(p+".env_file", m["env_file"], false)
			}
		} else {
			add(p, inc, true)
		}
	}
	services, _ := tree["services"].(map[string]any)
	for name, s := range services {
		m, _ := s.(map[string]any)
		p := "services." + name
		add(p+".env_file", m["env_file"], false)
		add(p+".label_file", m["label_file"], false)
		if ext, ok := m["extends"].(map[string]any); ok {
			add(p+".extends.file", ext["file"], true)
		}
	}
	return out
}
