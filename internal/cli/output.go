package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"go.yaml.in/yaml/v4"

	"baton/internal/model/spec"
)

// table is a list for people.
type table struct {
	head []string
	rows [][]string
	// wide is how many of the last columns are shown with -o wide only.
	wide int
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer, wide bool) error {
	n := len(t.head)
	if !wide {
		n -= t.wide
	}
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	for _, row := range append([][]string{t.head}, t.rows...) {
		cells := make([]string, n)
		for i := range cells {
			cells[i] = clean(row[i])
		}
		_, _ = fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// clean takes what would move the cursor, change colours or break a line out of a text, part of which a container or a registry may
// have written: an error message of theirs must not be able to forge a line of ours.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// list prints items by -o: as a table, as documents, or by name.
func list[T any](a *app, items []T, t *table, name func(T) string) error {
	format := a.output
	if a.quiet {
		format = "name"
	}
	switch format {
	case "json", "yaml":
		if items == nil {
			items = []T{}
		}
		return a.document(items)
	case "name":
		for _, it := range items {
			if _, err := fmt.Fprintln(a.out, name(it)); err != nil {
				return err
			}
		}
		return nil
	}
	return trimmed(a.out, func(w io.Writer) error { return t.write(w, format == "wide") })
}

// trimmed removes the blanks that padding leaves at the ends of lines.
func trimmed(w io.Writer, f func(io.Writer) error) error {
	var b bytes.Buffer
	if err := f(&b); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// document prints any value as JSON, or YAML with -o yaml.
func (a *app) document(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if a.output != "yaml" {
		_, err = fmt.Fprintf(a.out, "%s\n", b)
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	out, err := yaml.Marshal(plain(tree))
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	_, err = a.out.Write(out)
	return err
}

// plain turns JSON's numbers into Go's: YAML would print them as strings.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return v
}

// structured reports whether a program reads the output.
func (a *app) structured() bool { return a.output == "json" || a.output == "yaml" }

// ago tells how long something is past, as docker does.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(a.now().Sub(t)) + " ago"
}

func span(d time.Duration) string {
	plural := func(n int, unit string) string {
		if n == 1 {
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	switch {
	case d < time.Second:
		return "less than a second"
	case d < 2*time.Minute:
		return plural(int(d.Seconds()), "second")
	case d < 2*time.Hour:
		return plural(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return plural(int(d.Hours()), "hour")
	}
	return plural(int(d.Hours()/24), "day")
}

// size prints bytes in powers of 1024.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n), -1
	for f >= unit && i < 4 {
		f /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[i])
}

// ports prints published ports as docker does: *:8080->80/tcp.
func ports(list []spec.Port) string {
	var out []string
	for _, p := range list {
		if p.Published == 0 {
			out = append(out, fmt.Sprintf("%d/%s", p.Target, p.Protocol))
			continue
		}
		ip := p.HostIP
		if ip == "" {
			ip = "*"
		}
		out = append(out, fmt.Sprintf("%s:%d->%d/%s", ip, p.Published, p.Target, p.Protocol))
	}
	return strings.Join(out, ", ")
}

// The colours of services in logs and live views, chosen to be legible on dark and light grounds.
var palette = []int{36, 33, 32, 35, 34, 96, 93, 92, 95, 94}

func (a *app) paint(s string, colour int) string {
	if !a.colour() {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, s)
}

const (
	red    = 31
	green  = 32
	yellow = 33
	dim    = 90
)

// colourOf gives a service always the same colour.
func colourOf(name string) int {
	h := 0
	for _, c := range name {
		h = (h*31 + int(c)) & 0xffff
	}
	return palette[h%len(palette)]
}
