package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// storedMax is how many bytes a task may take in the store, index included.
const storedMax = 1000.0

// result is one line of a Go benchmark: its numbers by unit.
type result map[string]float64

// goBench runs benchmarks of a package as they are and returns their results by name.
func goBench(ctx context.Context, pkg, pattern, benchtime string, env ...string) (map[string]result, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", pattern, "-benchtime", benchtime, "-timeout", "30m", pkg)
	cmd.Env = append(os.Environ(), env...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	// Interrupted, `go test` passes the signal on to the test; killed, it would leave it running.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("benchmarks of %s: %w\n%s%s", pkg, err, out.Bytes(), said.Bytes())
	}
	return parseBench(out.String())
}

// parseBench reads what `go test -bench` prints: name, rounds, then pairs of number and unit.
func parseBench(text string) (map[string]result, error) {
	all := make(map[string]result)
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		r := result{}
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("benchmark line %q: %w", lines.Text(), err)
			}
			r[f[i+1]] = v
		}
		all[benchName(f[0])] = r
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("no benchmark printed a result")
	}
	return all, nil
}

// benchName drops the number of cores from the end of a benchmark's name.
func benchName(s string) string {
	if i := strings.LastIndexByte(s, '-'); i > 0 {
		if _, err := strconv.Atoi(s[i+1:]); err == nil {
			return s[:i]
		}
	}
	return s
}

// stored reports what the store costs.
func (b *bench) stored(ctx context.Context) error {
	n := b.size.stored
	all, err := goBench(ctx, "./internal/manager/store", "^BenchmarkStore$", b.size.benchtime, "BATON_BENCH_TASKS="+strconv.Itoa(n))
	if err != nil {
		return err
	}
	get := func(name, unit string) (float64, error) {
		v, ok := all["BenchmarkStore/"+name][unit]
		if !ok {
			return 0, fmt.Errorf("the store's benchmark %q reports no %s", name, unit)
		}
		return v, nil
	}
	perTask, err := get("fill", "bytes/task")
	if err != nil {
		return err
	}
	b.table.below(fmt.Sprintf("bytes per task, %d tasks, indexes included", n), perTask, storedMax, "B")
	for _, line := range []struct{ what, name, unit string }{
		{"insert, a thousand per transaction", "fill", "ns/task"},
		{"apply a transaction of one", "apply_one", "ns/task"},
		{"apply a transaction of a thousand, per task", "apply_thousand", "ns/task"},
		{"take a snapshot", "snapshot", "ns/op"},
		{"cursor, per changed task of 100", "cursor", "ns/change"},
		{"write a snapshot, per task", "write_snapshot", "ns/task"},
	} {
		v, err := get(line.name, line.unit)
		if err != nil {
			return err
		}
		b.table.told(line.what, short(time.Duration(v)))
	}
	size, err := get("write_snapshot", "bytes/task")
	if err != nil {
		return err
	}
	b.table.told("written snapshot, per task", number(size)+" B")
	return nil
}

// placed reports what the scheduler costs.
func (b *bench) placed(ctx context.Context) error {
	all, err := goBench(ctx, "./internal/plan/schedule", "^BenchmarkAssign$", b.size.benchtime)
	if err != nil {
		return err
	}
	for _, tasks := range []int{1, 100, 1000} {
		for _, spread := range []bool{false, true} {
			name := fmt.Sprintf("BenchmarkAssign/nodes=10000/tasks=%d/spread=%v", tasks, spread)
			r, ok := all[name]
			if !ok {
				return fmt.Errorf("no result of %s", name)
			}
			what := fmt.Sprintf("%d tasks", tasks)
			if spread {
				what += ", spread over zones"
			}
			b.table.told(what, fmt.Sprintf("%s, %s each", short(time.Duration(r["ns/op"])), short(time.Duration(r["µs/task"]*1000))))
		}
	}
	return nil
}
