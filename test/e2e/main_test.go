// Package e2e runs the built binary on real containers, as a user would.
//
// Every test gets a machine: a network namespace of its own with a baton server in it, a data directory, and a second
// namespace that plays the outside world. `make test` builds bin/baton and the images before it runs these tests.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// leftoversDir remembers the machines of a run, so that the next one can clean up after a killed one.
const leftoversDir = "/run/baton-e2e"

// lock keeps other runs out for as long as this process lives.
var lock *os.File

// binary is bin/baton; images is where its images lie.
var binary, images string

func TestMain(m *testing.M) {
	if mode := os.Getenv(clientEnv); mode != "" {
		os.Exit(clientMain(mode))
	}
	if spec := os.Getenv(registryEnv); spec != "" {
		os.Exit(registryMain(spec))
	}
	if dir := os.Getenv(nodeEnv); dir != "" {
		os.Exit(nodeMain(dir))
	}
	flag.Parse()
	if err := prepare(); err != nil {
		log.Fatal("e2e: ", err)
	}
	os.Exit(m.Run())
}

func prepare() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("these tests make network namespaces and containers: run them as root")
	}
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	binary, images = filepath.Join(top, "bin", "baton"), filepath.Join(top, "build", "out", "images")
	for _, path := range []string{binary, images} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%s is missing: run `make build images` first", path)
		}
	}
	if err := os.MkdirAll(leftoversDir, 0o700); err != nil {
		return err
	}
	if err := alone(); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(leftoversDir, "m*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		sweep(dir)
	}
	return nil
}

// alone waits until no other run uses leftoversDir: what it has there would look like leftovers. The lock goes with the
// process.
func alone() error {
	f, err := os.OpenFile(filepath.Join(leftoversDir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		lock = f
		return nil
	}
	log.Print("e2e: another run of these tests is under way; waiting for its end")
	lock = f
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
}

// sweep removes what a killed run left of one machine: its server, by the pid that it wrote, and everything under its
// data directory.
func sweep(dir string) {
	data := filepath.Join(dir, "data")
	if pid, err := os.ReadFile(filepath.Join(dir, "pid")); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err == nil && serves(n, data) {
			_ = syscall.Kill(n, syscall.SIGKILL)
			for range 100 { // its lock goes with it
				if !serves(n, data) {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := os.Stat(filepath.Join(data, "node.json")); err == nil {
		out, err := exec.CommandContext(ctx, binary, "reset", "--data-dir", data, "--yes").CombinedOutput()
		if err != nil {
			log.Printf("e2e: leftovers in %s: %v: %s", data, err, out)
		}
	}
	removeNamespaces(dir)
	if err := errors.Join(unmountBelow(dir), os.RemoveAll(dir)); err != nil {
		log.Printf("e2e: leftovers in %s: %v", dir, err)
	}
}

// serves guards against a pid that somebody else has by now.
func serves(pid int, data string) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(cmdline), "\x00--data-dir\x00"+data+"\x00")
}
