package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/archive"
	"baton/internal/manager/consensus"
	"baton/internal/manager/control"
	"baton/internal/manager/identity"
	"baton/internal/manager/measure"
	"baton/internal/manager/server"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// testCluster is a real server, store and control loop over a log in memory, with a node whose containers are only talked
// about: a task whose image is named bad fails, every other one is ready at once.
type testCluster struct {
	t     *testing.T
	store *store.Store
	log   *consensus.Memory
	addr  string
	now   func() time.Time
	files string       // the root of every task
	asked atomic.Int64 // how often the node was asked what it uses

	measures *measure.Keeper

	backupFault error // befalls the server in the middle of a backup
}

// allAcked stands for nodes whose load balancers follow at once.
type allAcked struct{ ch chan struct{} }

func (a allAcked) Acked() cluster.Version { return math.MaxUint64 }
func (a allAcked) Acks() <-chan struct{}  { return a.ch }

// planner previews with the engine of the control loops.
type planner struct{}

func (planner) Preview(_ context.Context, fork *store.Store, stack cluster.ID) ([]api.Action, error) {
	return control.Preview(fork, stack, time.Now(), 1)
}

func (planner) Balance(_ context.Context, fork *store.Store, left bool) (api.Balance, error) {
	return control.PlanBalance(fork, time.Now(), left)
}

func (planner) Suspects(snap store.Snapshot) map[cluster.ID]string {
	return control.Suspects(snap, time.Now())
}

func id(n byte) cluster.ID { return cluster.ID{0: n, 15: n} }

// newCluster starts a cluster whose control loops run when loops is set.
func newCluster(t *testing.T, loops bool) *testCluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "baton")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	st := store.New()
	c := &testCluster{t: t, store: st, log: consensus.NewMemory(st), addr: "unix://" + dir + "/s"}
	sealer, err := identity.NewSealer(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	c.measures = measure.New(measure.Config{
		Task: func(id cluster.ID) (measure.Task, bool) {
			k, ok := store.Get[*cluster.Task](st.Snapshot(), id)
			if !ok {
				return measure.Task{}, false
			}
			return measure.Task{Service: k.Service, Node: k.Node, CPU: 500, Ready: k.Ready}, true
		},
		Service: func(id cluster.ID) bool { _, ok := store.Get[*cluster.Service](st.Snapshot(), id); return ok },
		Nodes:   func() []cluster.ID { return []cluster.ID{id(1), id(2)} },
	})
	srv := server.New(server.Config{
		Measures: c.measures,
		Log:      c.log, Store: st, Sealer: sealer, Planner: planner{}, ClusterName: "test", Version: "1.2.3", Logger: quiet,
		Backup: func(w io.Writer) error {
			_, err := io.WriteString(w, backedUp)
			return errors.Join(err, c.backupFault)
		},
		Nodes: func(n cluster.ID) (agentapi.NodeServices, bool) { return &fakeNode{c}, n == id(1) },
	})
	l, err := server.ListenUnix(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: srv.Handler()}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { _ = hs.Serve(l) })
	c.put(&cluster.Settings{Meta: cluster.Meta{ID: cluster.SettingsID}, Name: "test", TaskPool: netip.MustParsePrefix("10.80.0.0/16"), ServicePool: netip.MustParsePrefix("10.90.0.0/16"), NodeBits: 24},
		&cluster.Node{Meta: cluster.Meta{ID: id(1)}, Name: "n1", Manager: true, Availability: cluster.NodeActive, State: cluster.NodeReady,
			Subnet: netip.MustParsePrefix("10.80.1.0/24"), Description: cluster.NodeDescription{Hostname: "n1", OS: "linux", Arch: "amd64", CPU: 4000, Memory: 8 << 30, Version: "1.2.3"}})
	if loops {
		ctl := control.New(control.Config{Store: st, Log: c.log, Acks: allAcked{make(chan struct{})}, Logger: quiet, Seed: 1})
		wg.Go(func() { _ = ctl.Run(ctx) })
		wg.Go(func() { c.agent(ctx) })
	}
	t.Cleanup(func() {
		srv.Close()
		_ = hs.Close()
		cancel()
		wg.Wait()
	})
	t.Setenv("BATON_HOST", c.addr)
	t.Chdir(dir)
	return c
}

func (c *testCluster) put(objs ...cluster.Object) {
	c.t.Helper()
	var txn store.Txn
	for _, o := range objs {
		txn.Put(o)
	}
	if _, err := c.log.Propose(context.Background(), txn); err != nil {
		c.t.Fatal(err)
	}
}

// agent reports for the one node.
func (c *testCluster) agent(ctx context.Context) {
	cur := c.store.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindTask, cluster.KindVolume}})
	defer cur.Close()
	for {
		d, err := cur.Next(ctx)
		if err != nil {
			return
		}
		for _, o := range d.Changed {
			var txn store.Txn
			switch o := o.(type) {
			case *cluster.Task:
				next := cluster.Copy(o)
				if moved, err := next.Advance(c.report(d.Snapshot, o)); !moved || err != nil {
					continue
				}
				txn.Put(next)
			case *cluster.Volume:
				if !o.Removing {
					continue
				}
				txn.Delete(o)
			}
			if _, err := c.log.Propose(ctx, txn); err != nil && !errors.Is(err, store.ErrConflict) {
				return
			}
		}
	}
}

// report is what the node says of a task.
func (c *testCluster) report(snap store.Snapshot, t *cluster.Task) cluster.Status {
	s := cluster.Status{Task: t.ID, Observed: t.Observed, Ready: t.Ready, Drained: t.Drained, At: time.Now(), Started: t.Started, Reason: t.Reason}
	rev, _ := store.Get[*cluster.Revision](snap, t.Revision)
	switch {
	case t.Node.IsZero() || t.Observed.Terminal():
	case t.Desired >= cluster.DesiredStop:
		s.Observed, s.Ready, s.Exit = cluster.ObservedComplete, false, &cluster.Exit{At: time.Now()}
	case t.Desired == cluster.DesiredDrain:
		s.Drained = true
	case rev != nil && strings.HasPrefix(rev.Spec.Image, "bad"):
		s.Observed, s.Exit, s.Reason = cluster.ObservedFailed, &cluster.Exit{Code: 7, At: time.Now()}, "the process ended"
	default:
		s.Observed, s.Ready, s.Started = cluster.ObservedRunning, true, time.Now()
	}
	return s
}

// fakeNode answers for the containers that are not there.
type fakeNode struct{ cluster *testCluster }

func (*fakeNode) Logs(ctx context.Context, task cluster.ID, o agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	return func(yield func(agentapi.LogLine, error) bool) {
		base := time.Date(2026, 1, 31, 14, 0, 0, 0, time.UTC)
		for i := range 3 {
			at := base.Add(time.Duration(i)*time.Second + time.Duration(task[0])*time.Millisecond)
			if o.Tail >= 0 && i < 3-o.Tail || at.Before(o.Since) {
				continue
			}
			if !yield(agentapi.LogLine{Time: at, Stream: "stdout", Text: fmt.Sprintf("line %d", i+1)}, nil) {
				return
			}
		}
		if o.Follow {
			<-ctx.Done()
		}
	}
}

func (*fakeNode) Exec(_ context.Context, _ cluster.ID, e agentapi.Execution) (int, error) {
	switch e.Argv[0] {
	case "cat":
		_, err := io.Copy(e.Stdout, e.Stdin)
		return 0, err
	case "false":
		_, err := io.WriteString(e.Stderr, "no\n")
		return 42, err
	}
	return 0, errors.New("exec: " + e.Argv[0] + ": no such command in the image")
}

// Dial connects to something that says what it got, in capitals, after the other side has said all; at port 8080 only.
func (*fakeNode) Dial(_ context.Context, task cluster.ID, port uint16) (agentapi.Conn, error) {
	if port != 8080 {
		return nil, fmt.Errorf("nothing listens on port %d in task %s", port, task.Short())
	}
	in, feed := io.Pipe()
	out, answer := io.Pipe()
	go func() {
		b, err := io.ReadAll(in)
		_, _ = answer.Write(bytes.ToUpper(b)) // who dialled may be gone
		_ = answer.CloseWithError(err)
	}()
	return &pipeConn{out, feed}, nil
}

// Files copies out of a directory of this machine and into it, as a node does with the root of a task.
func (f *fakeNode) Files(ctx context.Context, _ cluster.ID, o agentapi.FilesOptions) (agentapi.Conn, error) {
	name := filepath.Join(f.cluster.files, o.Path)
	in, feed := io.Pipe()
	out, answer := io.Pipe()
	if o.Write {
		dir, rename := name, ""
		if info, err := os.Stat(name); err != nil || !info.IsDir() {
			dir, rename = filepath.Split(name)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, errors.New("there is no such directory")
		}
		go func() {
			defer func() { _ = root.Close() }()
			err := archive.Unpack(ctx, root, in, archive.Options{Rename: rename, Owners: o.Owners})
			_, _ = io.Copy(io.Discard, in)
			_ = answer.CloseWithError(err)
		}()
		return &pipeConn{out, feed}, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, errors.New("there is no such file")
	}
	go func() {
		defer func() { _ = file.Close() }()
		_ = answer.CloseWithError(archive.Pack(ctx, answer, file, filepath.Base(name)))
	}()
	return &pipeConn{out, feed}, nil
}

type pipeConn struct {
	*io.PipeReader
	feed *io.PipeWriter
}

func (p *pipeConn) Write(b []byte) (int, error) { return p.feed.Write(b) }
func (p *pipeConn) CloseWrite() error           { return p.feed.Close() }
func (p *pipeConn) Close() error {
	_ = p.feed.CloseWithError(io.ErrClosedPipe)
	return p.PipeReader.Close()
}

// Usage tells of the tasks of the service web that they idle, and of all others that they use half a processor.
func (f *fakeNode) Usage(context.Context) (agentapi.Usage, error) {
	n := time.Duration(f.cluster.asked.Add(1)) // seconds and questions go by together
	at := time.Unix(0, 0).Add(n * time.Second)
	u := agentapi.Usage{At: at, CPU: 3 * n * time.Second, Busy: 3000, Cores: 4000, Memory: 2 << 30, MemorySize: 8 << 30}
	snap := f.cluster.store.Snapshot()
	for t := range store.All[*cluster.Task](snap) {
		st := agentapi.Stats{Task: t.ID, At: at, Memory: 10 << 20, MemoryLimit: 64 << 20, PIDs: 3, Received: 1 << 20, Sent: 5}
		if svc, ok := store.Get[*cluster.Service](snap, t.Service); ok && svc.Name != "web" {
			st.CPU, st.Memory = n*time.Second/2, 5<<20
		}
		u.Tasks = append(u.Tasks, st)
	}
	return u, nil
}

func (*fakeNode) Images(context.Context) ([]agentapi.Image, error) {
	return []agentapi.Image{{Ref: "docker.io/library/web:1", Digest: "sha256:1", Size: 3 << 20}}, nil
}

func (*fakeNode) LoadImage(_ context.Context, archive io.Reader) ([]string, error) {
	b, err := io.ReadAll(archive)
	if string(b) != "archive" {
		return nil, errors.New("this is no archive")
	}
	return []string{"docker.io/library/web:2"}, err
}

func (*fakeNode) RemoveImage(context.Context, string) error { return nil }

func (*fakeNode) Diagnose(_ context.Context, ways []agentapi.Way) (agentapi.Diagnosis, error) {
	d := agentapi.Diagnosis{Began: time.Now(), Ended: time.Now(), Sync: 700 * time.Millisecond, DiskFree: 1 << 30, DiskSize: 100 << 30, Features: []agentapi.Feature{
		{Name: "nftables"}, {Name: "wireguard", Missing: "not in this kernel", Optional: true, Instead: "in process"},
	}}
	for _, w := range ways {
		d.Tried = append(d.Tried, agentapi.Tried{Way: w, Open: true})
	}
	return d, nil
}

// run runs one command line and returns what it printed and its exit code.
func (c *testCluster) run(in string, args ...string) (out, errOut string, code int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var o, e bytes.Buffer
	a := newApp(strings.NewReader(in), &o, &e, Hooks{Version: "1.2.3"})
	if c.now != nil {
		a.now = c.now
	}
	code = a.run(ctx, args)
	return o.String(), e.String(), code
}

// want runs a command that must end with a code.
func (c *testCluster) want(code int, args ...string) string {
	c.t.Helper()
	out, errOut, got := c.run("", args...)
	if got != code {
		c.t.Fatalf("baton %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, errOut)
	}
	return out + errOut
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
