package sim

import (
	"flag"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
)

var (
	seedFlag  = flag.Uint64("sim.seed", 0, "run only this seed")
	seedsFlag = flag.Int("sim.seeds", 2000, "how many seeds to run")
	firstFlag = flag.Uint64("sim.first", 1, "the first of them")
	traceFlag = flag.Bool("sim.trace", false, "with -sim.seed: print every step")
	calmFlag  = flag.Bool("sim.calm", false, "with -sim.seed: without faults")
)

// calm reports whether a seed's history has no faults: every fourth.
func calm(seed uint64) bool { return seed%4 == 0 }

// TestSeed replays one seed: go test ./internal/sim -run TestSeed -sim.seed=N -sim.trace
func TestSeed(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = 1
	}
	cfg := Config{Seed: seed, Chaos: !calm(seed) && !*calmFlag}
	if *traceFlag {
		cfg.Trace = io.Writer(os.Stdout)
	}
	if err := New(cfg).Run(); err != nil {
		t.Fatal(err)
	}
}

// TestSeeds runs many histories, on all processors.
func TestSeeds(t *testing.T) {
	if *seedFlag != 0 {
		t.Skip("one seed was asked for")
	}
	parts := runtime.GOMAXPROCS(0)
	count := *seedsFlag
	if testing.Short() {
		count = min(count, 200)
	}
	for part := range parts {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			for i := part; i < count; i += parts {
				seed := *firstFlag + uint64(i)
				if err := New(Config{Seed: seed, Chaos: !calm(seed)}).Run(); err != nil {
					t.Errorf("%v\nreplay: go test ./internal/sim -run TestSeed -sim.seed=%d -sim.trace", err, seed)
				}
			}
		})
	}
}

func TestSameSeedSameHistory(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, 4, 17, 99} {
		var hashes [2]uint64
		for i := range hashes {
			w := New(Config{Seed: seed, Chaos: !calm(seed)})
			if err := w.Run(); err != nil {
				t.Fatal(err)
			}
			hashes[i] = w.Hash()
		}
		if hashes[0] != hashes[1] {
			var a, b strings.Builder
			_ = New(Config{Seed: seed, Chaos: !calm(seed), Trace: &a}).Run()
			_ = New(Config{Seed: seed, Chaos: !calm(seed), Trace: &b}).Run()
			t.Errorf("seed %d: two histories, from:\n%s", seed, difference(a.String(), b.String()))
		}
	}
}

// difference is the first line in which two traces differ.
func difference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return x[max(i-1, 0)] + "\n- " + x[i] + "\n+ " + y[i]
		}
	}
	return "(the traces are equal this time)"
}
