// Command probe is what the tests run in containers: it shows what it sees and does what it is told.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func shout(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fatal(err)
	}
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		if err != nil {
			fatal(err)
		}
		go func() {
			defer c.Close()
			b, _ := io.ReadAll(c)
			_, _ = c.Write(bytes.ToUpper(b))
		}()
	}
}

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"args"}
	}
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			fatal(err)
		}
		return n
	}
	switch args[0] {
	case "args":
		fmt.Println(strings.Join(os.Args, " "))
	case "exit":
		os.Exit(number(1))
	case "say":
		fmt.Fprintln(os.Stdout, args[1])
		fmt.Fprintln(os.Stderr, args[2])
	case "sleep":
		sleep()
	case "after": // after MILLISECONDS CODE
		time.Sleep(time.Duration(number(1)) * time.Millisecond)
		os.Exit(number(2))
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		forever()
	case "eat":
		eat(number(1))
	case "lines": // lines COUNT MICROSECONDS
		lines(number(1), time.Duration(number(2))*time.Microsecond)
	case "facts":
		facts()
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "write": // write PATH TEXT
		if err := os.WriteFile(args[1], []byte(args[2]), 0o644); err != nil {
			fatal(err)
		}
		fmt.Println("written")
	case "read":
		b, err := os.ReadFile(args[1])
		if err != nil {
			fatal(err)
		}
		os.Stdout.Write(b)
	case "shout": // shout ADDRESS: answers each connection in capitals, once it has heard all of it
		shout(args[1])
	case "tty":
		tty()
	case "orphan":
		orphan()
	default:
		fatal(fmt.Errorf("unknown command %q", args[0]))
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(9)
}

func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

func sleep() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGUSR1)
	fmt.Println("ready")
	s := <-c
	fmt.Println("got", s)
	if s == syscall.SIGUSR1 {
		os.Exit(7)
	}
}

// eat takes memory until it has so many MiB, and keeps it.
func eat(mib int) {
	var keep [][]byte
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
	}
	fmt.Println("ate", len(keep))
	forever()
}

func lines(n int, pause time.Duration) {
	for i := range n {
		out, name := os.Stdout, "out"
		if i%3 == 2 {
			out, name = os.Stderr, "err"
		}
		fmt.Fprintf(out, "%s line %06d %s\n", name, i, strings.Repeat("x", 40))
		if pause > 0 {
			time.Sleep(pause)
		}
	}
}

func facts() {
	host, _ := os.Hostname()
	cwd, _ := os.Getwd()
	groups, _ := os.Getgroups()
	f := map[string]any{
		"uid": os.Getuid(), "gid": os.Getgid(), "groups": groups, "cwd": cwd, "hostname": host, "pid": os.Getpid(), "env": os.Environ(),
	}
	status := map[string]string{}
	b, _ := os.ReadFile("/proc/self/status")
	for _, l := range strings.Split(string(b), "\n") {
		if k, v, ok := strings.Cut(l, ":"); ok {
			status[k] = strings.TrimSpace(v)
		}
	}
	f["status"] = status
	mounts := map[string]string{}
	m, _ := os.Open("/proc/self/mounts")
	for s := bufio.NewScanner(m); s.Scan(); {
		w := strings.Fields(s.Text())
		mounts[w[1]] = w[2] + " " + w[3]
	}
	f["mounts"] = mounts
	var r syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r)
	f["nofile"] = r.Cur
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	f["oom"] = strings.TrimSpace(string(score))
	msgmax, _ := os.ReadFile("/proc/sys/kernel/msgmax")
	f["msgmax"] = strings.TrimSpace(string(msgmax))
	try := map[string]string{}
	show := func(what string, err error) {
		try[what] = "ok"
		if err != nil {
			try[what] = err.Error()
		}
	}
	show("write /", os.WriteFile("/scribble", nil, 0o644))
	show("write /tmp", os.WriteFile("/tmp/scribble", nil, 0o644))
	show("mknod", syscall.Mknod("/tmp/node", syscall.S_IFCHR|0o600, 1<<8|3))
	show("chown", os.Chown("/tmp/scribble", 55, 55))
	// In the default seccomp profile only with CAP_SYS_ADMIN, and harmless: no such file system exists.
	show("mount", syscall.Mount("none", "/tmp", "no-such-fs", 0, ""))
	_, _, errno := syscall.RawSyscall(syscall.SYS_KEXEC_LOAD, 0, 0, 0)
	show("kexec", errnoError(errno))
	for _, p := range []string{"/proc/kcore", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"} {
		b := make([]byte, 512)
		if fh, err := os.Open(p); err == nil {
			n, _ := fh.Read(b)
			f[p] = string(b[:n])
		}
	}
	f["try"] = try
	_ = json.NewEncoder(os.Stdout).Encode(f)
}

func errnoError(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// tty shows the size of its terminal now and after each change.
func tty() {
	c := make(chan os.Signal, 4)
	signal.Notify(c, syscall.SIGWINCH)
	size := func() {
		var ws [4]uint16
		_, _, e := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&ws)))
		if e != 0 {
			fatal(e)
		}
		fmt.Printf("size %dx%d\n", ws[1], ws[0])
	}
	size()
	in := make(chan string)
	go func() {
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			in <- s.Text()
		}
	}()
	for {
		select {
		case <-c:
			size()
		case l := <-in:
			fmt.Println("line", l)
			if l == "quit" {
				os.Exit(4)
			}
		}
	}
}

// orphan shows that it is not the first process of its container.
func orphan() {
	first, _ := os.ReadFile("/proc/1/cmdline")
	fmt.Println("pid", os.Getpid(), "init", strings.ReplaceAll(string(first), "\x00", " "))
	os.Exit(5)
}
