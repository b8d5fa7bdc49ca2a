package bubble

import (
	"flag"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds     = flag.Int("bubble.seeds", 4, "how many seeds TestSwarms runs")
	firstSeed = flag.Uint64("bubble.first", 1, "the first of them")
	trace     = flag.Bool("bubble.trace", false, "print what everybody says")
)

func run(t *testing.T, cfg Config) {
	if *trace {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	synctest.Test(t, func(t *testing.T) {
		w := New(t, cfg)
		defer w.Close()
		w.Run()
	})
}

// Swarms of all faults: one with a hundred agents, more with a few, which take less time.
func TestSwarms(t *testing.T) {
	for i := range *seeds {
		t.Run("", func(t *testing.T) {
			cfg := Config{Seed: *firstSeed + uint64(i), Workers: 12}
			if cfg.Seed == 1 {
				cfg.Workers = 100
			}
			t.Logf("seed %d", cfg.Seed)
			run(t, cfg)
		})
	}
}

// Faults that make managers give up a node that goes on: what has a lease must have ended by then.
func TestLeasedTasksAreFenced(t *testing.T) {
	for i := range *seeds {
		t.Run("", func(t *testing.T) {
			cfg := Config{
				Seed: *firstSeed + uint64(i), Workers: 3, Faults: 45 * time.Second,
				Kinds: []string{"kill agent", "cut worker off", "worker hears nothing", "worker is not heard"},
			}
			t.Logf("seed %d", cfg.Seed)
			run(t, cfg)
		})
	}
}
