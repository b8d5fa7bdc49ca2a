package compose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Diagnostic is one fault of a file, or one thing its author should know.
type Diagnostic struct {
	File    string `json:"file,omitempty"` // as the caller named it
	Line    int    `json:"line,omitempty"` // from 1; 0 when the fault has no line
	Path    string `json:"path,omitempty"` // services.web.deploy.mode
	Message string `json:"message"`
	Mend    string `json:"mend,omitempty"` // what to do
}

// String prints the diagnostic as compilers do: compose.yaml:12: services.web.image: message; mend.
func (d Diagnostic) String() string {
	var b strings.Builder
	if d.File != "" {
		b.WriteString(d.File)
		if d.Line > 0 {
			fmt.Fprintf(&b, ":%d", d.Line)
		}
		b.WriteString(": ")
	}
	if d.Path != "" {
		b.WriteString(d.Path + ": ")
	}
	b.WriteString(d.Message)
	if d.Mend != "" {
		b.WriteString("; " + d.Mend)
	}
	return b.String()
}

// Error is everything that keeps a file from being deployed.
type Error struct{ Diagnostics []Diagnostic }

func (e *Error) Error() string {
	lines := make([]string, len(e.Diagnostics))
	for i, d := range e.Diagnostics {
		lines[i] = d.String()
	}
	return strings.Join(lines, "\n")
}

// maxDiagnostics bounds how many faults one Load reports; nobody reads more.
const maxDiagnostics = 100

// report gathers diagnostics and finds their lines.
type report struct {
	src      *sources
	errors   []Diagnostic
	warnings []Diagnostic
}

func (r *report) err(path, message, mend string) {
	r.errors = append(r.errors, r.at(path, message, mend))
}
func (r *report) warn(path, message, mend string) {
	r.warnings = append(r.warnings, r.at(path, message, mend))
}

func (r *report) errf(path, format string, args ...any) {
	r.err(path, fmt.Sprintf(format, args...), "")
}

func (r *report) at(path, message, mend string) Diagnostic {
	file, line := r.src.place(path)
	return Diagnostic{File: file, Line: line, Path: path, Message: message, Mend: mend}
}

// failed returns the *Error of everything reported, or nil.
func (r *report) failed() error {
	if len(r.errors) == 0 {
		return nil
	}
	return &Error{Diagnostics: tidy(r.errors)}
}

// tidy orders diagnostics by place and drops repetitions, which arise where two checks see one fault.
func tidy(list []Diagnostic) []Diagnostic {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message))
	})
	list = slices.CompactFunc(list, func(a, b Diagnostic) bool {
		return a.File == b.File && a.Path == b.Path && a.Path != "" && a.Message == b.Message
	})
	return list[:min(len(list), maxDiagnostics)]
}
