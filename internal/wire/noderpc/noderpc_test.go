package noderpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	nodeID = cluster.ID{1}
	taskID = cluster.ID{2}
	errFew = errors.New("no such task on this node")
)

// fake is a node whose commands echo and whose images are what was loaded.
type fake struct {
	mu      sync.Mutex
	loaded  []byte
	ended   error // why the last load ended early, or the last command's context
	sizes   [][2]uint16
	lines   int
	closed  int           // connections
	trouble error         // of every question
	gone    chan struct{} // closed when a command's context has ended
}

var _ agentapi.NodeServices = (*fake)(nil)

func (f *fake) Usage(context.Context) (agentapi.Usage, error) { return used, f.trouble }

var used = agentapi.Usage{
	At: time.Unix(1, 2).UTC(), CPU: 9, Busy: 8, Cores: 7, Memory: 6, MemorySize: 5,
	Tasks: []agentapi.Stats{{Task: taskID, At: time.Unix(1, 3).UTC(), CPU: 3, Memory: 4, MemoryLimit: 5, PIDs: 6, Received: 7, Sent: 8}},
}

// Dial connects to an echo at port 7. Its answer ends when its input does.
func (f *fake) Dial(_ context.Context, task cluster.ID, port uint16) (agentapi.Conn, error) {
	if task != taskID || port != 7 {
		return nil, errFew
	}
	r, w := io.Pipe()
	return &echo{r, w, f}, nil
}

func (f *fake) Files(ctx context.Context, task cluster.ID, o agentapi.FilesOptions) (agentapi.Conn, error) {
	if o.Path != "/echo" || !o.Write || !o.Owners {
		return nil, errFew
	}
	return f.Dial(ctx, task, 7)
}

type echo struct {
	r *io.PipeReader
	w *io.PipeWriter
	f *fake
}

func (e *echo) Read(p []byte) (int, error)  { return e.r.Read(p) }
func (e *echo) Write(p []byte) (int, error) { return e.w.Write(p) }
func (e *echo) CloseWrite() error           { return e.w.Close() }
func (e *echo) Close() error {
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	e.f.closed++
	_ = e.w.CloseWithError(io.ErrClosedPipe)
	return e.r.Close()
}

func (f *fake) Images(context.Context) ([]agentapi.Image, error) {
	return []agentapi.Image{{Ref: "app:1", Digest: "d", Size: 7}}, nil
}

func (f *fake) Diagnose(_ context.Context, ways []agentapi.Way) (agentapi.Diagnosis, error) {
	return agentapi.Diagnosis{}, nil
}

func (f *fake) RemoveImage(_ context.Context, ref string) error {
	if ref != "app:1" {
		return errors.New("no such image")
	}
	return nil
}

func (f *fake) Logs(ctx context.Context, task cluster.ID, o agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	return func(yield func(agentapi.LogLine, error) bool) {
		if task != taskID {
			yield(agentapi.LogLine{}, errFew)
			return
		}
		for i := 0; i < f.lines; i++ {
			if !yield(agentapi.LogLine{Time: time.Unix(int64(i), 1), Stream: "stdout", Text: fmt.Sprint("line ", i)}, nil) {
				return
			}
		}
		if o.Follow {
			<-ctx.Done()
			close(f.gone)
			yield(agentapi.LogLine{}, ctx.Err())
		}
	}
}

// Exec runs "echo" (standard input to output, and its number of bytes to error), "sizes" (waits for two window sizes), "hang".
func (f *fake) Exec(ctx context.Context, task cluster.ID, e agentapi.Execution) (int, error) {
	if task != taskID {
		return 0, errFew
	}
	switch e.Argv[0] {
	case "echo":
		n, err := io.Copy(e.Stdout, e.Stdin)
		if err != nil {
			return 0, err
		}
		_, err = fmt.Fprintf(e.Stderr, "%d %s %s", n, e.User, e.Dir)
		return 3, err
	case "sizes":
		for range 2 {
			select {
			case size := <-e.Resize:
				f.mu.Lock()
				f.sizes = append(f.sizes, size)
				f.mu.Unlock()
				_, _ = e.Stdout.Write([]byte("."))
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		return 0, nil
	}
	<-ctx.Done()
	close(f.gone)
	return 0, ctx.Err()
}

func (f *fake) LoadImage(_ context.Context, archive io.Reader) ([]string, error) {
	b, err := io.ReadAll(archive)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = err
	if err != nil {
		return nil, err
	}
	f.loaded = b
	return []string{"app:1"}, nil
}

// serve makes a server with the services that find gives, and a connection to it.
func serve(t *testing.T, find Find) *grpc.ClientConn {
	t.Helper()
	s := rpc.NewServer()
	Serve(s, find)
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rpc.Serve(ctx, s, l) }()
	c := rpc.NewClient(l.dial)
	t.Cleanup(func() {
		_ = c.Close()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

// pipes is a listener of connections in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

// both runs a test on a node that is reached directly, and on one behind a relay.
func both(t *testing.T, test func(t *testing.T, f *fake, n agentapi.NodeServices)) {
	for _, relayed := range []bool{false, true} {
		t.Run(fmt.Sprintf("relayed=%v", relayed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{gone: make(chan struct{}), lines: 3}
				direct := serve(t, func(_ context.Context, id cluster.ID) (agentapi.NodeServices, error) {
					if !id.IsZero() {
						return nil, errors.New("a node serves itself")
					}
					return f, nil
				})
				if !relayed {
					test(t, f, NewClient(direct, cluster.ID{}))
					return
				}
				relay := serve(t, func(_ context.Context, id cluster.ID) (agentapi.NodeServices, error) {
					if id != nodeID {
						return nil, errors.New("the node is not connected to this manager")
					}
					return NewClient(direct, cluster.ID{}), nil
				})
				test(t, f, NewClient(relay, nodeID))
			})
		})
	}
}

func TestQuestions(t *testing.T) {
	both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
		u, err := n.Usage(t.Context())
		u.At, u.Tasks[0].At = u.At.UTC(), u.Tasks[0].At.UTC()
		if err != nil || !reflect.DeepEqual(u, used) {
			t.Errorf("usage: %+v, %v, want %+v", u, err, used)
		}
		f.trouble = errFew
		if _, err := n.Usage(t.Context()); err == nil || err.Error() != errFew.Error() {
			t.Errorf("an error is not what the node said: %v", err)
		}
		if list, err := n.Images(t.Context()); err != nil || len(list) != 1 || list[0].Ref != "app:1" {
			t.Errorf("images: %v, %v", list, err)
		}
		if err := n.RemoveImage(t.Context(), "app:1"); err != nil {
			t.Error(err)
		}
		if err := n.RemoveImage(t.Context(), "other"); err == nil || err.Error() != "no such image" {
			t.Errorf("got %v", err)
		}
	})
}

func TestUnknownNodeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, func(context.Context, cluster.ID) (agentapi.NodeServices, error) {
			return nil, errors.New("not connected")
		})
		n := NewClient(c, nodeID)
		_, serr := n.Usage(t.Context())
		_, lerr := n.LoadImage(t.Context(), strings.NewReader("x"))
		_, xerr := n.Exec(t.Context(), taskID, agentapi.Execution{Argv: []string{"echo"}})
		var gerr error
		for _, gerr = range n.Logs(t.Context(), taskID, agentapi.LogOptions{}) {
		}
		for i, err := range []error{serr, lerr, xerr, gerr} {
			if err == nil || err.Error() != "not connected" {
				t.Errorf("call %d: %v", i, err)
			}
		}
	})
}

func TestLogs(t *testing.T) {
	both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
		var got []string
		for l, err := range n.Logs(t.Context(), taskID, agentapi.LogOptions{Tail: -1}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, l.Text)
		}
		if strings.Join(got, ",") != "line 0,line 1,line 2" {
			t.Errorf("got %v", got)
		}
		for _, err := range n.Logs(t.Context(), nodeID, agentapi.LogOptions{}) {
			if err == nil || err.Error() != errFew.Error() {
				t.Errorf("got %v", err)
			}
		}
		// Whoever stops to read ends it on the node, too.
		for range n.Logs(t.Context(), taskID, agentapi.LogOptions{Follow: true}) {
			break
		}
		<-f.gone
	})
}

func TestExecCarriesBothWays(t *testing.T) {
	both(t, func(t *testing.T, _ *fake, n agentapi.NodeServices) {
		in := bytes.Repeat([]byte("0123456789abcdef"), 3*chunkSize/16+1)
		var out, errs bytes.Buffer
		code, err := n.Exec(t.Context(), taskID, agentapi.Execution{
			Argv: []string{"echo"}, User: "u", Dir: "/d", Stdin: bytes.NewReader(in), Stdout: &out, Stderr: &errs,
		})
		if err != nil || code != 3 {
			t.Fatalf("code %d, %v", code, err)
		}
		if !bytes.Equal(out.Bytes(), in) {
			t.Errorf("%d bytes came back of %d", out.Len(), len(in))
		}
		if want := fmt.Sprintf("%d u /d", len(in)); errs.String() != want {
			t.Errorf("stderr: %q, want %q", errs.String(), want)
		}
		if _, err := n.Exec(t.Context(), nodeID, agentapi.Execution{Argv: []string{"echo"}}); err == nil || err.Error() != errFew.Error() {
			t.Errorf("got %v", err)
		}
	})
}

// A window's new size arrives also while nobody types.
func TestExecResizes(t *testing.T) {
	both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
		resize := make(chan [2]uint16, 2)
		resize <- [2]uint16{80, 24}
		silent, feed := io.Pipe()
		defer feed.Close()
		var out bytes.Buffer
		go func() { synctest.Wait(); resize <- [2]uint16{120, 50} }()
		code, err := n.Exec(t.Context(), taskID, agentapi.Execution{Argv: []string{"sizes"}, TTY: true, Stdin: silent, Stdout: &out, Resize: resize})
		if err != nil || code != 0 || out.String() != ".." {
			t.Fatalf("code %d, %v, %q", code, err, out.String())
		}
		if len(f.sizes) != 2 || f.sizes[0] != [2]uint16{80, 24} || f.sizes[1] != [2]uint16{120, 50} {
			t.Errorf("sizes: %v", f.sizes)
		}
	})
}

// A caller that gives up ends the command.
func TestExecEndsWithItsCaller(t *testing.T) {
	both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := n.Exec(ctx, taskID, agentapi.Execution{Argv: []string{"hang"}, Stdout: io.Discard, Stderr: io.Discard})
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		<-f.gone
	})
}

func TestLoadImage(t *testing.T) {
	both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
		for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 5 * chunkSize} {
			want := bytes.Repeat([]byte{7}, size)
			refs, err := n.LoadImage(t.Context(), bytes.NewReader(want))
			if err != nil || len(refs) != 1 || refs[0] != "app:1" || !bytes.Equal(f.loaded, want) {
				t.Errorf("%d bytes: %v, %v, %d arrived", size, refs, err, len(f.loaded))
			}
		}
	})
}

// broken gives n bytes and then an error.
type broken struct {
	n   int
	err error
}

func (b *broken) Read(p []byte) (int, error) {
	if b.n == 0 {
		return 0, b.err
	}
	n := min(len(p), b.n)
	b.n -= n
	return n, nil
}

// An archive that breaks off is never taken for a whole one, wherever it breaks and whatever its source says of it: the body
// of a request that breaks off ends with io.ErrUnexpectedEOF.
func TestBrokenOffLoadIsThrownAway(t *testing.T) {
	both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
		for _, size := range []int{0, 10, chunkSize, chunkSize + 10} {
			for _, cause := range []error{errors.New("the disk is broken"), io.ErrUnexpectedEOF} {
				_, err := n.LoadImage(t.Context(), &broken{size, cause})
				if !errors.Is(err, cause) {
					t.Errorf("after %d bytes: got %v, want %v", size, err, cause)
				}
				synctest.Wait()
				f.mu.Lock()
				if f.loaded != nil { // a call that was over before it arrived is none
					t.Errorf("after %d bytes and %v the node took %d bytes for an archive", size, cause, len(f.loaded))
				}
				f.loaded, f.ended = nil, nil
				f.mu.Unlock()
			}
		}
	})
}

// A sender that closes its end without the last word has given up.
func TestLoadNeedsItsEnd(t *testing.T) {
	both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
		c := n.(Client)
		s, err := rpc.Open[loadOut, loadIn](c.context(t.Context()), c.conn, service, "LoadImage")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Send(loadIn{Data: []byte("half")}), s.CloseSend()); err != nil {
			t.Fatal(err)
		}
		if out, err := s.Recv(); err == nil {
			t.Errorf("half an archive gave %v", out)
		}
		synctest.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.ended == nil || f.loaded != nil {
			t.Errorf("the node took %q for an archive", f.loaded)
		}
	})
}
