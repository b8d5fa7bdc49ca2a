package node

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// tell makes the kernel say how long the processors have worked, in hundredths of a second.
func tell(t *testing.T, dir, stat, meminfo string) {
	t.Helper()
	for name, text := range map[string]string{"stat": stat, "meminfo": meminfo} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const meminfo = "MemTotal:        8000 kB\nMemFree:          100 kB\nMemAvailable:    6000 kB\nHugePages_Total:       0\n"

func TestMeter(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := &meter{proc: dir}
		tell(t, dir, "cpu  100 10 20 9000 500 5 5 77 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n", meminfo)
		u, err := m.usage(time.Now())
		if err != nil || u.CPU != 1400*time.Millisecond || u.Busy != 0 || u.Memory != 2000<<10 || u.MemorySize != 8000<<10 || u.Cores == 0 {
			t.Errorf("before the first sample: %+v, %v", u, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); m.run(ctx) }()
		synctest.Wait()
		time.Sleep(2 * time.Second)
		tell(t, dir, "cpu  140 10 20 9000 500 5 5 77 0 0\n", meminfo)
		if u, err := m.usage(time.Now()); err != nil || u.Busy != 200 {
			t.Errorf("0.4 s of work in 2 s: %+v, %v, want 200", u, err)
		}
		time.Sleep(8*time.Second + time.Millisecond) // what was before the last two samples is forgotten
		synctest.Wait()
		tell(t, dir, "cpu  190 10 20 9000 500 5 5 77 0 0\n", meminfo)
		time.Sleep(4900*time.Millisecond - time.Millisecond) // the last two were taken 5 s and 10 s after the start
		if u, err := m.usage(time.Now()); err != nil || u.Busy != 50 {
			t.Errorf("0.5 s of work in 9.9 s: %+v, %v, want 50", u, err)
		}
		cancel()
		<-done
	})
}

func TestMeterTellsWhatItCannotRead(t *testing.T) {
	for name, c := range map[string][2]string{
		"stat": {"intr 1", meminfo}, "number": {"cpu  x 1 1 1 1 1 1 1 1", meminfo}, "meminfo": {"cpu  1 1 1 1 1 1 1 1", "nothing: 1 kB"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tell(t, dir, c[0], c[1])
			if u, err := (&meter{proc: dir}).usage(time.Now()); err == nil {
				t.Errorf("got %+v", u)
			}
		})
	}
	if _, err := (&meter{proc: "/proc"}).usage(time.Now()); err != nil {
		t.Errorf("this machine: %v", err)
	}
}
