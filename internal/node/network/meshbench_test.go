package network

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// BenchmarkMesh compares, in one run, what a connection and a transfer cost over each mesh with what they cost between two
// tasks of one node. The CPU time is of this process, which has both ends and in-process WireGuard.
func BenchmarkMesh(b *testing.B) {
	reference := make(map[string]float64) // by what is measured: seconds on one node
	for _, mesh := range append([]cluster.Mesh{""}, meshes...) {
		name, to := string(mesh), 1
		if mesh == "" {
			name, to = "one node", 0
		}
		b.Run(name, func(b *testing.B) {
			u := newMesh(b, mesh, 2)
			front := cluster.NewID(nil)
			client, web := u.attach(0, 10, front), u.attach(to, 11, front)
			svc := service("web", u.nodes[0].vip(5), front, web)
			u.apply([]agentapi.Service{svc}, client, web)
			web.serve(80)
			web.drain(81)
			for _, c := range []struct{ what, address string }{{"direct", at(web.Address, 80)}, {"service", at(svc.Address, 80)}} {
				b.Run("connect/"+c.what, func(b *testing.B) { benchConnect(b, client, c.address, reference) })
			}
			b.Run("transfer", func(b *testing.B) { benchTransfer(b, client, at(svc.Address, 81), reference) })
		})
	}
}

// against reports one operation's time as a ratio to the one on one node.
func against(b *testing.B, what string, each, cpu time.Duration, reference map[string]float64) {
	b.ReportMetric(float64(cpu.Microseconds()), "cpu-µs/op")
	if _, ok := reference[what]; !ok {
		reference[what] = each.Seconds()
	}
	b.ReportMetric(each.Seconds()/reference[what], "×one-node")
}

func benchConnect(b *testing.B, client *task, address string, reference map[string]float64) {
	const connections = 200 // per operation
	w := client.node.w
	begin, cpu, count := time.Now(), cpuTime(b), 0
	for b.Loop() {
		for range connections {
			if _, _, err := w.ask(client.ns, "tcp", address); err != nil {
				b.Fatal(err)
			}
		}
		count++
	}
	against(b, "connect", time.Since(begin)/time.Duration(count), (cpuTime(b)-cpu)/time.Duration(count), reference)
	b.ReportMetric(float64(time.Since(begin).Microseconds())/float64(count*connections), "µs/connection")
}

func benchTransfer(b *testing.B, client *task, address string, reference map[string]float64) {
	const size = 64 << 20
	b.SetBytes(size)
	chunk := make([]byte, 1<<17)
	begin, cpu, count := time.Now(), cpuTime(b), 0
	for b.Loop() {
		c, err := client.node.w.dial(client.ns, "tcp", address)
		check(b, err)
		for sent := 0; sent < size; sent += len(chunk) {
			_, err := c.Write(chunk)
			check(b, err)
		}
		check(b, c.(*net.TCPConn).CloseWrite())
		_, err = io.ReadAll(c) // the other side has everything
		check(b, err)
		check(b, c.Close())
		count++
	}
	against(b, "transfer", time.Since(begin)/time.Duration(count), (cpuTime(b)-cpu)/time.Duration(count), reference)
}

// drain reads everything that comes on a port.
func (tk *task) drain(port int) {
	t := tk.node.w.t
	t.Helper()
	var l net.Listener
	check(t, within(tk.ns, func() (err error) {
		l, err = net.Listen("tcp4", at(tk.Address, port))
		return err
	}))
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
}

func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	check(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
