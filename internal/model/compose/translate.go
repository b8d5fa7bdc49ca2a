package compose

import (
	"errors"
	"regexp"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
)

// translate turns an error of compose-go into diagnostics. Its messages carry a path at best, and Go's own words for
// numbers and files; both are made into what a user of the file can act on.
func translate(rep *report, err error) {
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range list.Unwrap() {
			translate(rep, e)
		}
		return
	}
	msg := scrub(rep.src, err.Error())
	if len(rep.errors) > 0 && emptyRE.MatchString(msg) {
		return // checkEmpty named it
	}
	path := pathIn(msg)

	var missing *template.MissingRequiredError
	if errors.As(err, &missing) {
		text := "variable " + missing.Variable + " has no value"
		if missing.Reason != "" {
			text += ": " + missing.Reason
		}
		rep.errors = append(rep.errors, rep.src.variable(missing.Variable, path, text, "set it in the environment or in .env"))
		return
	}
	var invalid *template.InvalidTemplateError
	if errors.As(err, &invalid) {
		d := rep.src.variable("", path, "invalid interpolation "+quote(invalid.Template), "write ${NAME}, or $$ for a plain $")
		if !rep.src.has(path) {
			d.File, d.Line = rep.src.text(invalid.Template, d.File, d.Line)
		}
		rep.errors = append(rep.errors, d)
		return
	}
	if path != "" {
		msg = strings.Replace(msg, pathRE.FindString(msg), "", 1)
		msg = strings.TrimLeft(strings.Replace(msg, path, "", 1), ": '")
	}
	if msg == "" {
		msg = "invalid value"
	}
	d := rep.at(path, msg, "")
	if path == "" {
		d.File, d.Line = rep.src.subject(msg, d.File)
		d.Path = rep.src.pathAt(d.File, d.Line)
	}
	rep.errors = append(rep.errors, d)
}

// subject finds the line that a message without a path speaks of, by the value that it quotes or ends with.
func (s *sources) subject(msg, file string) (string, int) {
	for _, m := range quotedRE.FindAllStringSubmatch(msg, -1) {
		if f, line := s.text(m[1], file, 0); line > 0 {
			return f, line
		}
	}
	if words := strings.Fields(msg); len(words) > 1 {
		return s.text(strings.Trim(words[len(words)-1], `'".`), file, 0)
	}
	return file, 0
}

var quotedRE = regexp.MustCompile(`"([^"]{2,})"`)

// pathAt gives the outermost path that stands on a line.
func (s *sources) pathAt(file string, line int) string {
	best := ""
	for _, f := range s.files {
		for p, l := range f.lines {
			if f.name == file && l == line && line > 0 && (len(p) < len(best) || best == "") {
				best = p
			}
		}
	}
	return best
}

var (
	emptyRE = regexp.MustCompile(`^(invalid empty volume spec|no port specified: <empty>)`)
	topRE   = regexp.MustCompile(`^(services|networks|volumes|configs|secrets|include) must be `)
	pathRE  = regexp.MustCompile(`\b(services|networks|volumes|configs|secrets)[.\[][A-Za-z0-9_\-]+\]?([.\[][A-Za-z0-9_\-]+\]?)*`)
	// nameREs find the subject of messages that name a part in words.
	nameREs = map[string]*regexp.Regexp{
		"services": regexp.MustCompile(`(?i)\bservice "([^"]+)"`),
		"secrets":  regexp.MustCompile(`(?i)\bsecret "([^"]+)"`),
		"configs":  regexp.MustCompile(`(?i)\bconfig "([^"]+)"`),
		"volumes":  regexp.MustCompile(`(?i)\bvolume "([^"]+)"`),
	}
	partOrder = []string{"services", "secrets", "configs", "volumes"}
)

// pathIn finds the path that a message speaks of.
func pathIn(msg string) string {
	if p := pathRE.FindString(msg); p != "" {
		// mapstructure writes services[web].ports[0].
		if kind, rest, ok := strings.Cut(p, "["); ok && !strings.Contains(kind, ".") {
			name, tail, _ := strings.Cut(rest, "]")
			p = kind + "." + name + tail
		}
		return strings.TrimSuffix(strings.ReplaceAll(p, ".[]", ""), ".")
	}
	if m := topRE.FindStringSubmatch(msg); m != nil {
		return m[1]
	}
	for _, kind := range partOrder {
		if m := nameREs[kind].FindStringSubmatch(msg); m != nil {
			return kind + "." + m[1]
		}
	}
	return ""
}

// rewordings replace Go's and the libraries' words.
var rewordings = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(?s)^decoding failed due to the following error\(s\):\s*`), ""},
	{regexp.MustCompile(`^(failed to parse|validating) \S+: `), ""},
	{regexp.MustCompile(`^error while interpolating `), ""},
	{regexp.MustCompile(`failed to cast to expected type: `), ""},
	{regexp.MustCompile(`error decoding '([^']*)': `), "$1: "},
	{regexp.MustCompile(`strconv\.(ParseInt|ParseUint|ParseFloat|Atoi): parsing ("[^"]*"): (invalid syntax|value out of range)`), "$2 is not a valid number"},
	{regexp.MustCompile(`strconv\.ParseBool: parsing ("[^"]*"): invalid syntax`), "$1 is not true or false"},
	{regexp.MustCompile(`(time: )?invalid duration "?([^"\s]*)"?`), `"$2" is not a duration such as 10s`},
	{regexp.MustCompile(`(time: )?(missing|unknown) unit "?[^"]*"? ?in duration "([^"]*)"`), `"$3" is not a duration such as 10s`},
	{regexp.MustCompile(`invalid size: '([^']*)'`), `"$1" is not a size such as 64M`},
	{regexp.MustCompile(`(open|stat|read|lstat) (\S+): no such file or directory`), "file $2 does not exist"},
	{regexp.MustCompile(`(open|stat|read|lstat) (\S+): permission denied`), "file $2 may not be read"},
	{regexp.MustCompile(`\bfile (\S+) not found$`), "file $1 does not exist"},
	{regexp.MustCompile(`: (invalid compose project|not found|unsupported attribute|incompatible attribute|disabled)$`), ""},
	{regexp.MustCompile(`(^|\s)(yaml: |json: |mapstructure: )`), "$1"},
	{regexp.MustCompile(`cannot parse value as '[^']*': (\S+) overflows u?int`), "$1 is out of range"},
	{regexp.MustCompile(`invalid boolean: (.*)`), `"$1" is not true or false`},
	{regexp.MustCompile(`(?i)^invalid (containerPort|hostPort|range format for containerPort|range format for hostPort): (\S+)$`), `"$2" is no port`},
	{regexp.MustCompile(`^empty compose file$`), "the file is empty; it needs the key services"},
	{regexp.MustCompile(`attributes are mutually exclusive$`), "exclude each other"},
	{regexp.MustCompile(`expected type '[^']*', got unconvertible type '([^']*)'[^\n]*`), "the value has the wrong type ($1)"},
	{regexp.MustCompile(`map\[string\]interface \{\}|map\[string\]any`), "mapping"},
	{regexp.MustCompile(`\[\]interface \{\}|\[\]any`), "list"},
	{regexp.MustCompile(`<nil>`), "nothing"},
}

// scrub makes one line of a library's message and takes out what only its programmer understands.
func scrub(src *sources, msg string) string {
	for _, r := range rewordings {
		msg = r.re.ReplaceAllString(msg, r.with)
	}
	for _, f := range src.files {
		if f.abs != "" {
			msg = strings.ReplaceAll(msg, f.abs, f.name)
		}
	}
	if src.dir != "" && src.dir != "/" {
		msg = strings.ReplaceAll(msg, src.dir+"/", "")
	}
	return strings.Join(strings.Fields(msg), " ")
}

// variable places a message about an interpolated variable: interpolation forgets the index in lists, the text does not.
func (s *sources) variable(name, path, message, mend string) Diagnostic {
	d := Diagnostic{Path: path, Message: message, Mend: mend}
	d.File, d.Line = s.place(path)
	if name != "" {
		d.File, d.Line = s.text("$"+name, d.File, d.Line)
		d.File, d.Line = s.text("${"+name, d.File, d.Line)
	}
	return d
}

// text finds the first line that holds needle, or returns the place it was given.
func (s *sources) text(needle, file string, line int) (string, int) {
	for _, f := range s.files {
		for i, l := range strings.Split(string(f.content), "\n") {
			if at := strings.Index(l, needle); at >= 0 && !strings.Contains(l[:at], "#") {
				return f.name, i + 1
			}
		}
	}
	return file, line
}
