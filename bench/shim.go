package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	events "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"baton/build/bundle"
)

// shimAlone starts containers with containerd's shim and runc, as containerd does it, but without containerd, baton, a logger or a
// network: what no orchestrator on this shim can go below.
type shimAlone struct {
	group *group
	bins  bundle.Paths
	tmpl  *template
	opts  *anypb.Any
	shims []*shim

	rounds int // of starts

	events *ttrpc.Server
	served chan struct{} // closed once events has ended
}

// shim is one container and the shim that looks after it.
type shim struct {
	box  *box
	log  *os.File
	conn *ttrpc.Client
}

func newShim(bins bundle.Paths, tmpl *template) (*shimAlone, error) {
	g, err := newGroup("shim")
	if err != nil {
		return nil, err
	}
	s := &shimAlone{group: g, bins: bins, tmpl: tmpl, served: make(chan struct{})}
	if s.opts, err = anypb.New(&options.Options{BinaryName: bins.Runc, Root: runTop + "/shim-runc"}); err != nil {
		return nil, err
	}
	return s, s.listen()
}

func (s *shimAlone) socket() string { return runTop + "/e.sock" }

// listen takes the shims' events, which they would otherwise try to send again and again.
func (s *shimAlone) listen() error {
	if err := os.MkdirAll(runTop+"/s", 0o700); err != nil {
		return err
	}
	l, err := net.Listen("unix", s.socket())
	if err != nil {
		return err
	}
	if s.events, err = ttrpc.NewServer(); err != nil {
		return errors.Join(err, l.Close())
	}
	events.RegisterTTRPCEventsService(s.events, ignoreEvents{})
	go func() { // close waits for it
		_ = s.events.Serve(context.Background(), l)
		close(s.served)
	}()
	return nil
}

func (s *shimAlone) close() error {
	err := s.events.Close()
	<-s.served
	return err
}

type ignoreEvents struct{}

func (ignoreEvents) Forward(context.Context, *events.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *shimAlone) cpu() (time.Duration, error) { return cpu(s.group.path) }

func (s *shimAlone) start(ctx context.Context, n int) error {
	s.shims = make([]*shim, n)
	s.rounds++
	return each(ctx, n, func(ctx context.Context, i int) error {
		// A shim that ends removes its socket, whose name is made of the id: another name than in the round before.
		b, err := s.tmpl.write(fmt.Sprintf("shim%d-%d", s.rounds, i), s.group.path+"/containers")
		if err != nil {
			return err
		}
		s.shims[i] = &shim{box: b}
		if err := s.launch(ctx, s.shims[i]); err != nil {
			return err
		}
		api := taskapi.NewTTRPCTaskClient(s.shims[i].conn)
		_, err = api.Create(ctx, &taskapi.CreateTaskRequest{
			ID: b.id, Bundle: b.dir, Options: s.opts,
			Rootfs: []*types.Mount{{Type: "overlay", Source: "overlay", Options: strings.Split(b.overlay, ",")}},
		})
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		if _, err := api.Start(ctx, &taskapi.StartRequest{ID: b.id}); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		return nil
	})
}

// launch runs the shim's start command, which leaves the shim itself running, and connects to it.
func (s *shimAlone) launch(ctx context.Context, c *shim) error {
	const namespace = "bench"
	dir := runTop + "/s"
	params := bootapi.BootstrapParams{
		InstanceID: c.box.id, Namespace: namespace, LogLevel: bootapi.LogLevelFromString("warn"), ContainerdGrpcAddress: s.socket(),
		ContainerdTtrpcAddress: s.socket(), ContainerdBinary: s.bins.Containerd, SocketDir: &dir,
	}
	if err := params.AddExtension(s.opts); err != nil {
		return err
	}
	in, err := proto.Marshal(&params)
	if err != nil {
		return err
	}
	// The shim waits for a reader of its log.
	fifo := filepath.Join(c.box.dir, "log")
	if err := unix.Mkfifo(fifo, 0o700); err != nil {
		return err
	}
	if c.log, err = os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, s.bins.Shim, "-namespace", namespace, "-address", s.socket(), "-publish-binary", s.bins.Containerd, "-id", c.box.id, "start")
	cmd.Dir = c.box.dir
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS="+s.socket(), "GRPC_ADDRESS="+s.socket(), "NAMESPACE="+namespace)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader(in), &out
	if err := s.group.run(cmd); err != nil {
		return err
	}
	var boot bootapi.BootstrapResult
	if err := proto.Unmarshal(out.Bytes(), &boot); err != nil {
		return fmt.Errorf("the shim's answer: %w", err)
	}
	conn, err := net.Dial("unix", strings.TrimPrefix(boot.Address, "unix://"))
	if err != nil {
		return err
	}
	c.conn = ttrpc.NewClient(conn)
	return nil
}

func (s *shimAlone) remove(ctx context.Context) error {
	err := each(ctx, len(s.shims), func(ctx context.Context, i int) error {
		c := s.shims[i]
		api := taskapi.NewTTRPCTaskClient(c.conn)
		if _, err := api.Kill(ctx, &taskapi.KillRequest{ID: c.box.id, Signal: uint32(unix.SIGKILL)}); err != nil {
			return fmt.Errorf("kill: %w", err)
		}
		if _, err := api.Wait(ctx, &taskapi.WaitRequest{ID: c.box.id}); err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if _, err := api.Delete(ctx, &taskapi.DeleteRequest{ID: c.box.id}); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		// It ends without an answer, so that the error says nothing; whether it is gone is seen below.
		_, _ = api.Shutdown(ctx, &taskapi.ShutdownRequest{ID: c.box.id})
		return errors.Join(c.conn.Close(), c.log.Close(), c.box.remove())
	})
	if err != nil {
		return err
	}
	return emptied(ctx, s.group, 0)
}

// emptied waits until at most so many processes are left in a group.
func emptied(ctx context.Context, g *group, most int) error {
	ctx, cancel := context.WithTimeout(ctx, goneMax)
	defer cancel()
	for {
		pids, err := g.procs()
		if err != nil {
			return err
		}
		if len(pids) <= most {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes too many are left in %s: %w", len(pids)-most, g.path, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
