package compose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"

	"baton/internal/model/spec"
)

// Options say what to load. The zero value loads the default file of the current directory with an empty environment.
type Options struct {
	// Files in the order in which they are merged; "-" stands for Content. Empty: Content when it is given, else the first of
	// compose.yaml, compose.yml, docker-compose.yml and docker-compose.yaml in WorkingDir, with its override file.
	Files []string
	// Content of the file "-", read by the caller from standard input.
	Content []byte
	// ProjectName names the stack. Empty: COMPOSE_PROJECT_NAME, the key name of the file, the name of the directory.
	ProjectName string
	// EnvFiles hold variables for interpolation, later ones win. Empty: .env in WorkingDir, when there is one.
	EnvFiles []string
	// Env holds variables for interpolation; they win over EnvFiles. The process's own environment is not consulted.
	Env map[string]string
	// Profiles that are active. Empty: COMPOSE_PROFILES, split at commas.
	Profiles []string
	// WorkingDir is what relative paths are relative to. Empty: the directory of the first file.
	WorkingDir string
}

// Result is a stack and what its author should know.
type Result struct {
	Stack    *spec.Stack  // valid, with all defaults
	Warnings []Diagnostic // keys that are not honoured, variables without a value
	Source   string       // the resolved file in canonical YAML, which loads to the same stack; without the content of secrets

	src *sources
}

// Place tells where a field of the stack stands, by the path that errors have ("services.web.ports"): of the field, or of what
// encloses it. The line is 0 when no file has it.
func (r *Result) Place(path string) (file string, line int) { return r.src.place(composePath(path)) }

// Load reads Compose files. The error is an *Error, or ctx's when it ended.
func Load(ctx context.Context, o Options) (*Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l := &loading{opts: o, rep: &report{src: &sources{}}}
	if err := l.read(); err != nil {
		return nil, err
	}
	project, err := l.project(ctx)
	if err != nil {
		return nil, err
	}
	stack := convert(l.rep, project)
	stack.SetDefaults()
	var invalid *spec.InvalidError
	if errors.As(stack.Validate(), &invalid) {
		for _, f := range invalid.Fields {
			l.rep.err(composePath(f.Path), f.Message, f.Mend)
		}
	}
	if err := l.rep.failed(); err != nil {
		return nil, err
	}
	source, err := project.MarshalYAML()
	if err != nil {
		return nil, fmt.Errorf("writing the resolved file: %w", err)
	}
	return &Result{Stack: stack, Warnings: tidy(l.rep.warnings), Source: strings.ReplaceAll(string(source), "$", "$$"), src: l.rep.src}, nil
}

// loading is one call of Load.
type loading struct {
	opts  Options
	rep   *report
	env   types.Mapping
	unset map[string]bool // variables without value or default that were met
}

// read finds and parses the files and reads the variables.
func (l *loading) read() error {
	src := l.rep.src
	fatal := func(file, message, mend string) {
		l.rep.errors = append(l.rep.errors, Diagnostic{File: file, Message: message, Mend: mend})
	}
	files, err := l.files()
	if err != nil {
		fatal("", err.Error(), "name one with -f")
		return l.rep.failed()
	}
	l.readEnv(fatal)
	src.lookup = l.env.Resolve
	for _, name := range files {
		f := &source{name: name, content: l.opts.Content}
		if name == "-" {
			f.name = "stdin"
		} else {
			f.abs = name
			if !filepath.IsAbs(name) {
				f.abs, err = filepath.Abs(name)
			}
			if err == nil {
				f.content, err = readLimited(f.abs, MaxFileBytes)
			}
			if err != nil {
				fatal(name, "the Compose file "+err.Error(), "")
				continue
			}
		}
		l.rep.add(f)
	}
	src.named = len(src.files)
	if err := l.rep.failed(); err != nil {
		return err
	}
	l.rep.follow()
	return l.rep.failed()
}

// files lists the files to load and settles the working directory.
func (l *loading) files() ([]string, error) {
	o, src := l.opts, l.rep.src
	files := o.Files
	if len(files) == 0 && o.Content != nil {
		files = []string{"-"}
	}
	dir := o.WorkingDir
	if dir == "" && len(files) > 0 && files[0] != "-" {
		dir = filepath.Dir(files[0])
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, plainFileError(err)
	}
	src.dir = abs
	if len(files) > 0 {
		return files, nil
	}
	for _, names := range [][]string{
		{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"},
		{"compose.override.yaml", "compose.override.yml", "docker-compose.override.yml", "docker-compose.override.yaml"},
	} {
		for _, n := range names {
			p := filepath.Join(dir, n)
			if _, err := os.Stat(p); err == nil {
				files = append(files, p)
				break
			}
		}
		if len(files) == 0 {
			return nil, errors.New("there is no compose.yaml here")
		}
	}
	return files, nil
}

func (l *loading) readEnv(fatal func(file, message, mend string)) {
	l.env = types.Mapping{}
	maps.Copy(l.env, l.opts.Env)
	files, implied := l.opts.EnvFiles, false
	if len(files) == 0 {
		files, implied = []string{filepath.Join(l.rep.src.dir, ".env")}, true
		if info, err := os.Stat(files[0]); err != nil || info.IsDir() {
			return
		}
	}
	for _, f := range files {
		b, err := readLimited(f, MaxFileBytes)
		if err != nil {
			fatal(f, "the env file "+err.Error(), "")
			continue
		}
		vars, err := dotenv.ParseWithLookup(strings.NewReader(string(b)), l.env.Resolve)
		if err != nil {
			line, msg := yamlError(err)
			l.rep.errors = append(l.rep.errors, Diagnostic{File: displayEnv(f, implied), Line: line, Message: "the env file cannot be read: " + strings.TrimPrefix(msg, "the YAML cannot be read: ")})
			continue
		}
		for k, v := range vars {
			if _, ok := l.opts.Env[k]; !ok {
				l.env[k] = v
			}
		}
	}
}

func displayEnv(f string, implied bool) string {
	if implied {
		return ".env"
	}
	return f
}

// project runs compose-go and gathers everything that is wrong before conversion.
func (l *loading) project(ctx context.Context) (*types.Project, error) {
	rep := l.rep
	l.unset = map[string]bool{}
	for _, f := range rep.src.files {
		checkNames(rep, f.tree)
		checkEmpty(rep, f.tree)
	}
	project, interpolate, err := l.compose(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		// What the schema check found says it better, and with a line.
		found := checkSchema(rep, interpolate)
		if !found || !errors.Is(err, errShape) && !strings.Contains(err.Error(), "validating ") {
			translate(rep, err)
		}
		return nil, rep.failed()
	}
	for _, name := range slices.Sorted(maps.Keys(l.unset)) {
		rep.warnings = append(rep.warnings, rep.src.variable(name, "", fmt.Sprintf("variable %s is not set and counts as empty", name), fmt.Sprintf("set it, or write ${%s:-default}", name)))
	}
	return project, nil
}

// errShape stands for a panic of compose-go.
var errShape = errors.New("a value in the file has the wrong type; compare it with the Compose Specification")

// compose calls compose-go. Its type assertions panic on some malformed files; that is the file's fault, not ours.
func (l *loading) compose(ctx context.Context) (project *types.Project, ip interpolation.Options, err error) {
	defer func() {
		if r := recover(); r != nil {
			project, err = nil, errShape
		}
	}()
	rep := l.rep
	details := types.ConfigDetails{WorkingDir: rep.src.dir, Environment: l.env}
	for _, f := range rep.src.files[:rep.src.named] {
		name := f.abs
		if name == "" {
			name = filepath.Join(rep.src.dir, "stdin")
		}
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: name, Content: withoutVersion(f)})
	}
	name, err := l.projectName()
	if err != nil {
		return nil, ip, err
	}
	set := func(o *loader.Options) {
		o.SetProjectName(name, true)
		o.Interpolate.Substitute = l.substitute
		o.Profiles = l.profiles()
		o.MaxNodeVisits = maxNodes
		o.SkipConsistencyCheck = true // it stops at the first fault; spec.Validate and convert find them all
	}
	fns := []func(*loader.Options){set, loader.WithDiscardEnvFiles}
	opts := loader.ToOptions(&details, fns)
	ip = *opts.Interpolate
	dict, err := loader.LoadModelWithContext(ctx, details, fns...)
	if err != nil {
		return nil, ip, err
	}
	newRules().check(rep, dict, "", "", inactive(dict, opts.Profiles))
	project, err = loader.ModelToProject(dict, opts, details)
	return project, ip, err
}

// inactive names the services that no active profile selects.
func inactive(dict map[string]any, profiles []string) map[string]bool {
	out := map[string]bool{}
	services, _ := dict["services"].(map[string]any)
	for name, s := range services {
		m, _ := s.(map[string]any)
		list, _ := m["profiles"].([]any)
		if len(list) == 0 || slices.Contains(profiles, "*") {
			continue
		}
		out[name] = !slices.ContainsFunc(list, func(p any) bool { return slices.Contains(profiles, fmt.Sprint(p)) })
	}
	return out
}

func (l *loading) profiles() []string {
	if len(l.opts.Profiles) > 0 {
		return l.opts.Profiles
	}
	return strings.FieldsFunc(l.env["COMPOSE_PROFILES"], func(r rune) bool { return r == ',' || r == ' ' })
}

// projectName finds the stack's name.
func (l *loading) projectName() (string, error) {
	if n := l.opts.ProjectName; n != "" {
		return n, nil // compose-go refuses a name that is not normal
	}
	if n := l.env["COMPOSE_PROJECT_NAME"]; n != "" {
		return n, nil
	}
	name := filepath.Base(l.rep.src.dir)
	for _, f := range l.rep.src.files[:l.rep.src.named] {
		if v, ok := f.tree["name"]; ok && v != nil {
			n, err := l.substitute(fmt.Sprint(v), l.env.Resolve)
			if err != nil {
				return "", err
			}
			name = n
		}
	}
	if n := strings.Trim(loader.NormalizeProjectName(name), "-_"); n != "" {
		return n, nil
	}
	return "stack", nil
}

var variableRE = regexp.MustCompile(`^\$(?:([a-zA-Z_][a-zA-Z0-9_]*)|\{([a-zA-Z_][a-zA-Z0-9_]*)\})$`)

// substitute interpolates one value and notes the variables that were left empty; compose-go would print them to stderr.
func (l *loading) substitute(value string, lookup template.Mapping) (string, error) {
	return template.SubstituteWithOptions(value, lookup, template.WithoutLogging, template.WithReplacementFunction(
		func(part string, lookup template.Mapping, cfg *template.Config) (string, error) {
			if m := variableRE.FindStringSubmatch(part); m != nil {
				if _, ok := lookup(m[1] + m[2]); !ok {
					l.unset[m[1]+m[2]] = true
				}
			}
			return template.DefaultReplacementFunc(part, lookup, cfg)
		}))
}

// withoutVersion blanks the obsolete key version, about which compose-go would write to stderr.
func withoutVersion(f *source) []byte {
	line, ok := f.lines["version"]
	v, scalar := f.tree["version"].(string)
	if !ok || !scalar {
		return f.content
	}
	lines := strings.Split(string(f.content), "\n")
	if l := lines[line-1]; strings.HasPrefix(l, "version") && strings.Contains(l, v) && len(lines) > 1 {
		lines[line-1] = ""
	}
	return []byte(strings.Join(lines, "\n"))
}
