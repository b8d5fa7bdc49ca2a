package edge

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connectionMemoryMax is what an idle connection, or one whose header never comes to its end, may take of the edge's memory.
const connectionMemoryMax = 24 << 10

// memoryInUse is what the process' heap and stacks take.
func memoryInUse() uint64 {
	runtime.GC()
	runtime.GC() // what the first one only found, finalizers above all
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// openMany opens connections that each send some bytes, and leaves them open until the test ends. They are sockets without anything of Go's,
// so that what they take counts as the edge's.
func openMany(t *testing.T, at string, n int, send string) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < uint64(2*n+500) {
		t.Skipf("this process may open %d files, the test needs %d", limit.Cur, 2*n+500)
	}
	address, err := net.ResolveTCPAddr("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	t.Cleanup(func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	})
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		to := &unix.SockaddrInet4{Port: address.Port, Addr: [4]byte(address.IP.To4())}
		if err := unix.Connect(fd, to); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte(send)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestManyConnections holds 9,000 idle connections, and 2,000 whose headers never end, to a bound of memory, with others served beside them.
func TestManyConnections(t *testing.T) {
	for _, tc := range []struct {
		name string
		n    int
		send string
	}{
		{"headers that do not end", 2_000, "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b"},
		{"idle", 9_000, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := startWitness(t)
			e := newEdge(t, func(c *Config) { c.ConnectionsMax = 12_000 })
			e.Apply(w.state())
			at, _ := serve(t, e)
			before, goroutines := memoryInUse(), runtime.NumGoroutine()
			began := time.Now()
			openMany(t, at, tc.n, tc.send)
			until(t, "the edge to have accepted them", func() bool {
				return runtime.NumGoroutine()-goroutines >= tc.n || time.Since(began) > headerTimeout/2
			})
			if got := fmt.Sprint(sendRaw(t, at, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", 1)); got != "[200]" {
				t.Errorf("another client got %s", got)
			}
			each := (float64(memoryInUse()) - float64(before)) / float64(tc.n)
			t.Logf("%.0f bytes each, opened in %v", each, time.Since(began))
			if each > connectionMemoryMax {
				t.Errorf("a connection takes %.0f bytes, more than %d", each, connectionMemoryMax)
			}
		})
	}
}

// TestSlowHeader holds that a client that sends its header byte by byte is given up.
func TestSlowHeader(t *testing.T) {
	t.Parallel()
	w := startWitness(t)
	e := newEdge(t)
	e.Apply(w.state())
	at, _ := serve(t, e)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: "); err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, c)
		close(closed)
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(headerTimeout + waitMax); ; {
		select {
		case <-closed:
			if lines := w.check(t); len(lines) > 0 {
				t.Errorf("the task got %q", lines)
			}
			return
		case <-tick.C:
			_, _ = io.WriteString(c, "b")
		case <-deadline:
			t.Fatal("the edge still waits for the header")
		}
	}
}

// TestSlowReader holds that a client that takes no bytes makes the edge buffer no answer: the task waits with it.
func TestSlowReader(t *testing.T) {
	const whole = 64 << 20
	sent := make(chan int64, 1)
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n, chunk := int64(0), make([]byte, 32<<10)
		for n < whole {
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Second))
			m, err := w.Write(chunk)
			n += int64(m)
			if err != nil {
				break
			}
		}
		sent <- n
	}))
	e := newEdge(t)
	e.Apply(anyHost(k))
	at, _ := serve(t, e)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReaderSize(c, 16).ReadByte(); err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-sent:
		if n >= whole/2 { // the kernel's buffers of two connections take some MB
			t.Errorf("%d bytes were taken for a client that reads none", n)
		}
	case <-time.After(waitMax):
		t.Fatal("the task still sends")
	}
}
