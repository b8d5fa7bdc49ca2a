package main

import (
	"bytes"
	"maps"
	"strings"
	"testing"
	"time"
)

func TestParseBench(t *testing.T) {
	got, err := parseBench(`goos: linux
BenchmarkStore/fill-2         	1000000	         0 ns/op	       568.1 bytes/task	     27120 ns/task
BenchmarkAssign/nodes=10000/tasks=1/spread=true-16 	     100	    594540 ns/op	 1.5 µs/task	  12 B/op
PASS
`)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]result{
		"BenchmarkStore/fill":                             {"ns/op": 0, "bytes/task": 568.1, "ns/task": 27120},
		"BenchmarkAssign/nodes=10000/tasks=1/spread=true": {"ns/op": 594540, "µs/task": 1.5, "B/op": 12},
	} {
		if !maps.Equal(got[name], want) {
			t.Errorf("%s = %v, want %v", name, got[name], want)
		}
	}
	for _, bad := range []string{"PASS\n", "BenchmarkX-2 1 many ns/op\n"} {
		if _, err := parseBench(bad); err == nil {
			t.Errorf("parseBench(%q): no error", bad)
		}
	}
}

func TestTableJudges(t *testing.T) {
	var out bytes.Buffer
	tab := table{out: &out}
	tab.times("start", 140*time.Millisecond, "shim", 100*time.Millisecond, 1.3)
	tab.times("fast start", 130*time.Millisecond, "shim", 100*time.Millisecond, 1.3)
	tab.times("told", time.Second, "runc", 100*time.Millisecond, 0)
	tab.below("memory", 61, 60, "MB")
	if err := tab.print(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1.40×", "1.30×", "10.00×", "1.02×", "1 of 3 targets are met", "OVER"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestPercentile(t *testing.T) {
	ds := []time.Duration{5, 1, 4, 2, 3}
	for p, want := range map[int]time.Duration{0: 1, 50: 3, 99: 5, 100: 5} {
		if got := percentile(ds, p); got != want {
			t.Errorf("percentile %d = %d, want %d", p, got, want)
		}
	}
}
