package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"

	"baton/build/bundle"
)

// sizes are how much of everything is measured.
type sizes struct {
	starts    []int       // how many containers start at once
	rounds    map[int]int // how often, by that number
	idle      int         // containers of the idle node
	calm      time.Duration
	watch     time.Duration // how long the idle node is watched
	calls     int           // of each API method
	kills     int
	stored    int    // tasks in the store
	benchtime string // of Go benchmarks
	roll      int    // replicas of the rolled service
	monitored bool   // roll with the default monitor too
	requests  int    // through each proxy, in each of three rounds
}

func chosenSizes() sizes {
	if os.Getenv("BENCH_QUICK") != "" {
		return sizes{
			starts: []int{1, 10}, rounds: map[int]int{1: 3, 10: 1}, idle: 10, calm: 2 * time.Second, watch: 5 * time.Second, calls: 200, kills: 1,
			stored: 50_000, benchtime: "20x", roll: 10, requests: 5_000,
		}
	}
	return sizes{
		starts: []int{1, 10, 50}, rounds: map[int]int{1: 7, 10: 3, 50: 1}, idle: 10, calm: 10 * time.Second, watch: 20 * time.Second, calls: 1000, kills: 5,
		stored: 1_000_000, benchtime: "100x", roll: 20, monitored: true, requests: 40_000,
	}
}

// bench is one run.
type bench struct {
	size  sizes
	table table
	under *under
	runc  *runcAlone
	shim  *shimAlone

	only     *regexp.Regexp // which parts are measured
	oneStart time.Duration  // wall time of one start, which other rows refer to
}

func main() {
	if played, err := playRole(os.Args[1:]); played {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	top, err := prepare()
	if err != nil {
		return err
	}
	binary, err := chosenBinary(top)
	if err != nil {
		return err
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := sweep(binary); err != nil {
		return fmt.Errorf("leftovers of an earlier run: %w", err)
	}
	for _, dir := range []string{dataTop, runTop} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	only, err := regexp.Compile(os.Getenv("BENCH_ONLY"))
	if err != nil {
		return fmt.Errorf("BENCH_ONLY: %w", err)
	}
	b := &bench{size: chosenSizes(), table: table{out: os.Stdout}, only: only}
	begin := time.Now()
	if err := b.onMachine(ctx, binary, filepath.Join(top, "build", "out", "images", "web-v1.tar")); err != nil {
		return err
	}
	err = b.each(ctx, []part{{"store", b.stored}, {"scheduler, 10,000 nodes", b.placed}, {"edge", b.edge}})
	if err != nil {
		return err
	}
	fmt.Printf("\n%d cores, %s %s/%s, load %s, %s\n\n", runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH, load(), time.Since(begin).Round(time.Second))
	return b.table.print()
}

// part is one section of the table.
type part struct {
	name string
	do   func(ctx context.Context) error
}

// each measures the parts whose name BENCH_ONLY, a regular expression, finds.
func (b *bench) each(ctx context.Context, parts []part) error {
	for _, p := range parts {
		if !b.only.MatchString(p.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "measuring:", p.name)
		b.table.section(p.name)
		if err := p.do(ctx); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", p.name, err), context.Cause(ctx))
		}
	}
	return nil
}

// onMachine measures everything that needs a real node, and removes it.
func (b *bench) onMachine(ctx context.Context, binary, archive string) (err error) {
	fmt.Fprintln(os.Stderr, "starting a node")
	m, err := newMachine(ctx, binary)
	defer func() {
		if b.shim != nil {
			err = errors.Join(err, b.shim.close())
		}
		err = errors.Join(err, m.close())
	}()
	if err != nil {
		return err
	}
	// A server that ends in the middle ends the run, instead of one of its time limits.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.exited:
			cancel(fmt.Errorf("the server ended; its log says:\n%s", m.logEnd()))
		case <-ctx.Done():
		}
	}()
	if err := m.load(ctx, archive); err != nil {
		return err
	}
	if err := b.prepareStarters(ctx, m); err != nil {
		return err
	}
	return b.each(ctx, []part{
		{"start and remove", b.startAndRemove},
		{"API over its unix socket", b.calls},
		{fmt.Sprintf("idle, %d containers", b.size.idle), b.idle},
		{"killed task replaced", b.replaced},
		{fmt.Sprintf("rollout, %d replicas, five at a time", b.size.roll), b.rolled},
	})
}

// prepareStarters makes the three ways to start a container. A first container shows how baton makes one.
func (b *bench) prepareStarters(ctx context.Context, m *machine) error {
	b.under = &under{m: m}
	pids, err := m.group.procs()
	if err != nil {
		return err
	}
	b.under.resident = len(pids) + 1 // the logger, which comes with the first container and stays
	if err := b.under.start(ctx, 1); err != nil {
		return err
	}
	tasks, err := b.under.tasks(ctx)
	if err != nil || len(tasks) != 1 {
		return fmt.Errorf("want one ready task, got %d: %w", len(tasks), err)
	}
	tmpl, err := newTemplate(m, tasks[0].ID.String())
	if err != nil {
		return err
	}
	bins, err := bundle.Unpack(runTop + "/bin")
	if err != nil {
		return err
	}
	if b.runc, err = newRunc(bins.Runc, tmpl); err != nil {
		return err
	}
	if b.shim, err = newShim(bins, tmpl); err != nil {
		return err
	}
	return b.under.remove(ctx)
}

// chosenBinary is what is measured: bin/baton, which is built when it is missing, or what BENCH_BINARY names, to compare builds.
func chosenBinary(top string) (string, error) {
	if own := os.Getenv("BENCH_BINARY"); own != "" {
		return filepath.Abs(own)
	}
	binary := filepath.Join(top, "bin", "baton")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	cmd := exec.Command("go", "build", "-o", binary, "./cmd/baton")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build bin/baton: %w: %s", err, out)
	}
	return binary, nil
}

// prepare checks that everything is there. It returns the checkout's top.
func prepare() (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("the bench makes network namespaces and containers: run it as root")
	}
	top, err := filepath.Abs(".")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return "", errors.New("run the bench at the top of the checkout: go run ./bench")
	}
	if _, err := os.Stat("build/out/images/web-v1.tar"); err != nil {
		return "", errors.New("build/out/images/web-v1.tar is missing: run `make images`")
	}
	return top, nil
}

// lock keeps a second bench from sweeping the first.
func lock() (unlock func(), err error) {
	f, err := os.OpenFile("/run/baton-bench.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(errors.New("another bench runs on this machine: wait for it"), f.Close())
	}
	return func() { _ = os.Remove(f.Name()); _ = f.Close() }, nil
}

// load is the machine's load average: numbers of a busy machine are worse than they could be.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	var one, five, fifteen string
	if _, err := fmt.Sscan(string(b), &one, &five, &fifteen); err != nil {
		return "unknown"
	}
	return one + " " + five + " " + fifteen
}
