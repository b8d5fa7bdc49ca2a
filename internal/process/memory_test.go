package process

import (
	"os"
	"testing"
)

func TestUnwritten(t *testing.T) {
	const file = "/usr/bin/baton"
	for line, want := range map[string]bool{
		"00400000-02f00000 r-xp 00000000 08:01 42                  /usr/bin/baton":           true,
		"02f00000-0523f000 r--p 02b00000 08:01 42                  /usr/bin/baton":           true,
		"0523f000-0534c000 rw-p 04e3f000 08:01 42                  /usr/bin/baton":           false,
		"0534c000-0734c000 rw-p 00000000 00:00 0 ":                                           false,
		"7f0000000000-7f0000001000 r--p 00000000 08:01 42          /opt/usr/bin/baton":       false,
		"7f0000000000-7f0000001000 r--s 00000000 08:01 42          /usr/bin/baton":           false,
		"7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0           [vdso]":                   false,
		"00400000-02f00000 r-xp 00000000 08:01 42                  /usr/bin/baton (deleted)": false,
		"": false,
	} {
		start, end, ok := unwritten(line, file)
		if ok != want || ok && start >= end {
			t.Errorf("%q: %x-%x, %v; want %v", line, start, end, ok, want)
		}
	}
}

// What was dropped is there again as soon as it is used: the process goes on.
func TestReleaseStartUp(t *testing.T) {
	for range 3 {
		if err := releaseStartUp(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat("/proc/self/exe"); err != nil {
			t.Fatal(err)
		}
	}
}
