package edgeproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// User is the user and group id of the process. Nothing else on a machine ought to have it: it lies between the ranges that
	// distributions, systemd and containers give out.
	User = 61007
	// filesWanted is what the limits of an edge need: a connection of a client and one to a task for each request, and idle ones.
	filesWanted = 72 << 10
	// memorySoft is where the garbage collector works harder: 8192 connections with their buffers fit below it.
	memorySoft = 512 << 20
	// oomScore makes the kernel spare the process when memory runs out, but not as baton's fence.
	oomScore = "-500"
)

// confine takes from the process what it does not need: started as root, it goes on as a user that owns nothing, in an empty root directory,
// without capabilities and without a way to get any. It is called before anything came from outside. It returns how many files may be open.
func confine(empty string) (files uint64, err error) {
	debug.SetMemoryLimit(memorySoft)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0) // containers of baton may have no right to
	files = raiseFiles()
	if os.Getuid() == 0 {
		if err := dropUser(empty); err != nil {
			return files, err
		}
	}
	if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return files, fmt.Errorf("no new privileges: %w", err)
	}
	// Otherwise another process of the user could look into its memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return files, fmt.Errorf("not dumpable: %w", err)
	}
	return files, nil
}

// raiseFiles raises the limit of open files as far as it may.
func raiseFiles() uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	want := syscall.Rlimit{Cur: max(l.Max, filesWanted), Max: max(l.Max, filesWanted)}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want) == nil {
		return want.Cur
	}
	l.Cur = l.Max
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l) // what Go did at the start holds then
	return l.Cur
}

// dropUser leaves root, its directory and its capabilities.
func dropUser(empty string) error {
	if err := errors.Join(unix.Chroot(filepath.Clean(empty)), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter the empty directory: %w", err)
	}
	for c := uintptr(0); ; c++ {
		err := everyThread(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c)
		// There are no more; or baton itself has no right to (CAP_SETPCAP), and then no_new_privs alone keeps them away.
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			break
		}
		if err != nil {
			return fmt.Errorf("give up capability %d: %w", c, err)
		}
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(User, User, User), syscall.Setresuid(User, User, User)); err != nil {
		return fmt.Errorf("become user %d: %w", User, err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none[0])), 0); e != 0 {
		return fmt.Errorf("give up capabilities: %w", e)
	}
	return nil
}

// everyThread makes a system call that holds for the calling thread on all threads.
func everyThread(trap, a, b uintptr) error {
	if _, _, e := syscall.AllThreadsSyscall6(trap, a, b, 0, 0, 0, 0); e != 0 {
		return e
	}
	return nil
}
