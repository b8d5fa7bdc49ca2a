package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// row is one line of the result.
type row struct {
	name      string
	value     string
	reference string // what the value is compared with; may be empty
	ratio     float64
	target    string // empty: none is set, the row tells only
	ok        bool
}

// table collects rows and prints them.
type table struct {
	out  io.Writer
	rows []row
}

// section begins a part of the table.
func (t *table) section(name string) { t.rows = append(t.rows, row{name: name}) }

// told adds a number without a target.
func (t *table) told(name, value string) {
	t.rows = append(t.rows, row{name: "  " + name, value: value})
}

// times adds a duration as a multiple of another one. With most, that multiple must not be above it.
func (t *table) times(name string, value time.Duration, refName string, ref time.Duration, most float64) {
	r := row{name: "  " + name, value: short(value), reference: short(ref) + " " + refName, ratio: ratio(value, ref)}
	if most > 0 {
		r.target, r.ok = fmt.Sprintf("≤ %.2f×", most), r.ratio <= most
	}
	t.rows = append(t.rows, r)
}

// below adds a number that must not be above most.
func (t *table) below(name string, value, most float64, unit string) {
	t.rows = append(t.rows, row{
		name: "  " + name, value: number(value) + " " + unit, ratio: value / most, target: "≤ " + number(most) + " " + unit, ok: value <= most,
	})
}

// print writes the table and says how many targets are missed.
func (t *table) print() error {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tVALUE\tREFERENCE\tRATIO\tTARGET\t")
	over, targets := 0, 0
	for _, r := range t.rows {
		verdict, times := "", ""
		if r.target != "" {
			targets++
			verdict = "ok"
			if !r.ok {
				verdict = "OVER"
				over++
			}
		}
		if r.ratio > 0 {
			times = fmt.Sprintf("%.2f×", r.ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, r.value, r.reference, times, r.target, verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.out, "%d of %d targets are met\n", targets-over, targets)
	return err
}

func ratio(a, b time.Duration) float64 {
	if b <= 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// short rounds a duration to three digits.
func short(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

func number(f float64) string {
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}
