package runtime

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

const (
	// answerMax is how long containerd may take until it serves its socket; it first asks every shim.
	answerMax = 60 * time.Second
	// stopMax is how long containerd may take to end before it is killed.
	stopMax = 10 * time.Second
	// The back-off between restarts of a containerd that keeps ending.
	restartMin, restartMax = 200 * time.Millisecond, 10 * time.Second
	// restartReset is how long it must have run for the back-off to start over.
	restartReset = time.Minute
	// daemonLogMax is the size in bytes at which containerd's own log is started anew.
	daemonLogMax = 16 << 20
)

// daemon is the containerd process. It is started in a session of its own, so that it outlives us, and recognized by the path of its
// configuration on its command line: that path contains a hash of the configuration and the binary's path, so that a containerd
// of another version is replaced and not adopted.
//
// ensure and detach are called by New and Close, supervise by one goroutine between them.
type daemon struct {
	cfg Config
	log *slog.Logger
	// harvest saves the exit codes that live shims know, before a containerd starts that would forget them. The returned function
	// ends the watch over those that still run.
	harvest func(ctx context.Context) (done func())

	proc *process
}

// configText is the containerd configuration. Everything is private to this node; of the plugins, those that would write elsewhere
// or that we never use are off. The timeouts are long because a containerd that gives up on a shim kills its container.
func (d *daemon) configText() string {
	c := d.cfg
	q := strconv.Quote
	return fmt.Sprintf(`version = 4
root = %s
state = %s
temp = %s
imports = []
disabled_plugins = [
  'io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt', 'io.containerd.monitor.container.v1.restart',
  'io.containerd.image-verifier.v1.bindir', 'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.erofs',
  'io.containerd.differ.v1.erofs', 'io.containerd.mount-handler.v1.erofs', 'io.containerd.internal.v1.tracing',
  'io.containerd.tracing.processor.v1.otlp', 'io.containerd.server.v1.debug', 'io.containerd.server.v1.grpc-tcp',
  'io.containerd.server.v1.metrics',
]
[debug]
  level = 'warn'
[timeouts]
  'io.containerd.timeout.shim.load' = '60s'
  'io.containerd.timeout.task.state' = '10s'
[plugins.'io.containerd.server.v1.grpc']
  address = %s
[plugins.'io.containerd.server.v1.ttrpc']
  address = %s
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = %s
[plugins.'io.containerd.monitor.task.v1.cgroups']
  no_prometheus = true
`, q(filepath.Join(c.containerdDir(), "root")), q(c.stateDir()), q(filepath.Join(c.containerdDir(), "tmp")),
		q(c.socket()), q(c.socket()+".ttrpc"), q(c.shimSockets()))
}

// configPath is where the configuration is; see daemon for why it has a hash.
func (d *daemon) configPath() string {
	sum := sha256.Sum256([]byte(d.cfg.Containerd + "\x00" + d.configText()))
	return filepath.Join(d.cfg.RunDir, "containerd-"+hex.EncodeToString(sum[:6])+".toml")
}

// ensure makes containerd run and answer: it adopts ours if one runs, and otherwise starts one.
func (d *daemon) ensure(ctx context.Context) error {
	if err := d.newBoot(); err != nil {
		return err
	}
	procs, err := ourDaemons(d.cfg)
	if err != nil {
		return err
	}
	for _, p := range procs {
		if d.proc == nil && p.hasArg(d.configPath()) {
			ask, cancel := context.WithTimeout(ctx, answerMax)
			err := d.answers(ask, p)
			cancel()
			if err == nil {
				d.log.Info("adopted containerd", "pid", p.pid)
				d.proc = p
				continue
			}
		}
		d.log.Info("replacing containerd", "pid", p.pid)
		if err := p.end(ctx, stopMax); err != nil {
			return err
		}
	}
	if d.proc != nil {
		return nil
	}
	return d.start(ctx)
}

// newBoot forgets the run directory of an earlier boot where /run is not a memory file system: its process ids mean nothing now.
func (d *daemon) newBoot() error {
	now, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	path := filepath.Join(d.cfg.RunDir, "boot")
	if have, err := os.ReadFile(path); err == nil && !bytes.Equal(have, now) {
		for _, dir := range []string{d.cfg.stateDir(), d.cfg.runcRoot(), d.cfg.shimSockets(), d.cfg.fifos()} {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("forget the last boot: %w", err)
			}
			if err := os.MkdirAll(dir, 0o711); err != nil {
				return err
			}
		}
	}
	return writeFile(path, now, 0o600)
}

// start starts containerd and waits until it answers.
func (d *daemon) start(ctx context.Context) error {
	done := d.harvest(ctx)
	defer done()
	if err := os.MkdirAll(filepath.Join(d.cfg.containerdDir(), "tmp"), 0o700); err != nil {
		return err
	}
	if err := writeFile(d.configPath(), []byte(d.configText()), 0o600); err != nil {
		return fmt.Errorf("containerd configuration: %w", err)
	}
	logPath := filepath.Join(d.cfg.containerdDir(), "containerd.log")
	if st, err := os.Stat(logPath); err == nil && st.Size() > daemonLogMax {
		if err := os.Rename(logPath, logPath+".1"); err != nil {
			return err
		}
	}
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("containerd log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(d.cfg.Containerd, "--config", d.configPath())
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{"PATH=" + filepath.Dir(d.cfg.Containerd) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	p, err := openProcess(cmd.Process.Pid)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("containerd ended at once: %w; its log is %s", err, logPath)
	}
	p.reap = func() { _ = cmd.Wait() }
	ask, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	if err := d.answers(ask, p); err != nil {
		_ = p.end(ctx, 0)
		return fmt.Errorf("containerd does not answer: %w; its log %s ends with: %s", err, logPath, tail(logPath, 400))
	}
	d.log.Info("started containerd", "pid", p.pid)
	d.proc = p
	return nil
}

// answers waits until the process serves its socket, and fails as soon as it has ended.
func (d *daemon) answers(ctx context.Context, p *process) error {
	c, err := containerd.New(d.cfg.socket(), containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := c.Version(try)
		cancel()
		if err == nil {
			return nil
		}
		if p.ended() {
			return errors.New("it ended")
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// supervise restarts containerd whenever it ends, until ctx does. restarted is told why, after it answers again.
func (d *daemon) supervise(ctx context.Context, restarted func(why string)) {
	wait, since := restartMin, time.Now()
	for {
		if err := d.proc.wait(ctx); err != nil {
			return
		}
		d.log.Warn("containerd ended", "pid", d.proc.pid)
		d.proc.close()
		if time.Since(since) > restartReset {
			wait = restartMin
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, restartMax)
			err := d.start(ctx)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return
			}
			d.log.Error("restart containerd", "err", err, "retry", wait)
		}
		since = time.Now()
		restarted("ended")
	}
}

// detach leaves containerd to itself.
func (d *daemon) detach() {
	if d.proc != nil {
		d.proc.close()
	}
}

// tail is the end of a file, for messages.
func tail(path string, n int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, _ := io.ReadAll(io.LimitReader(f, n))
	return strings.TrimSpace(string(b))
}

// process is a process that may not be our child, held by a descriptor so that its number cannot come to mean another one.
type process struct {
	pid  int
	args []string
	fd   *os.File
	reap func() // collects a child's exit status; nil for others
}

// openProcess takes hold of a process.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &process{
		pid: pid, fd: os.NewFile(uintptr(fd), "pidfd"),
		args: strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"),
	}, nil
}

func (p *process) hasArg(arg string) bool {
	for _, a := range p.args {
		if a == arg {
			return true
		}
	}
	return false
}

// ended reports whether the process has ended.
func (p *process) ended() bool {
	c, err := p.fd.SyscallConn()
	if err != nil {
		return true
	}
	over := true
	_ = c.Control(func(fd uintptr) { over = readable(int(fd)) })
	return over
}

// wait blocks until the process has ended, and collects it if it is our child. It returns ctx's error when that ends first.
func (p *process) wait(ctx context.Context) error {
	c, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.Read(func(fd uintptr) bool { return readable(int(fd)) }); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	if p.reap != nil {
		p.reap()
	}
	return nil
}

// signal sends a signal; a process that is gone is no error.
func (p *process) signal(s unix.Signal) error {
	c, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := c.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), s, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(serr, unix.ESRCH) {
		return nil
	}
	return serr
}

// end asks the process to end and kills it after grace; it returns when it is gone.
func (p *process) end(ctx context.Context, grace time.Duration) error {
	defer p.close()
	if grace > 0 {
		if err := p.signal(unix.SIGTERM); err != nil {
			return err
		}
		soft, cancel := context.WithTimeout(ctx, grace)
		err := p.wait(soft)
		cancel()
		if err == nil {
			return nil
		}
		_ = p.fd.SetReadDeadline(time.Time{})
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := p.wait(ctx); err != nil {
		return fmt.Errorf("process %d does not end: %w", p.pid, err)
	}
	return nil
}

func (p *process) close() { _ = p.fd.Close() }

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// processes calls want with the command line of every process of the machine, and takes hold of those it wants.
func processes(want func(args []string) bool) ([]*process, error) {
	es, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []*process
	for _, e := range es {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || !want(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")) {
			continue
		}
		// It may have ended and its number been taken since: what counts is what the held process is.
		p, err := openProcess(pid)
		if err != nil {
			continue
		}
		if !want(p.args) {
			p.close()
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

// ourDaemons finds the containerd processes of this run directory, of whichever version.
func ourDaemons(cfg Config) ([]*process, error) {
	prefix := filepath.Join(cfg.RunDir, "containerd-")
	return processes(func(args []string) bool {
		return len(args) >= 3 && args[1] == "--config" && strings.HasPrefix(args[2], prefix)
	})
}
