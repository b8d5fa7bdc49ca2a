package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// clientEnv makes this test binary a client that runs in somebody else's network namespace: its value is the request.
const clientEnv = "BATON_E2E_CLIENT"

// request is what a client does: requests of URL by Workers at once, with Pause between two of each, Count in all or until its
// standard input closes.
type request struct {
	Method    string // default GET
	URL       string
	Workers   int
	Count     int
	Pause     time.Duration
	Least     int // how many are made at least, when the end is told before
	KeepAlive bool
	DNS       bool          // ask 127.0.0.11, as a container does
	Timeout   time.Duration // of one request; default 15 s
	Want      []string      // what an answer must contain; it is not kept then
	Serve     string        // answer HTTP on this address instead, until standard input closes
	Host      string        // of the request, if it is not that of URL
	H2C       bool          // speak HTTP/2 without TLS
	Socket    socketUse     // speak over a WebSocket
	GRPC      int           // call the method of the URL with so many messages, each echoed, 50 ms apart
}

// tally is what a client counted.
type tally struct {
	Requests int
	Failures int
	Errors   []string       // the first few
	Last     time.Time      // when the last failed request had begun
	Longest  time.Duration  // that a request took which did not fail
	Bodies   map[string]int // answer → how often
}

const errorsMax = 10

// clientMain is the client process.
func clientMain(spec string) int {
	var r request
	if err := json.Unmarshal([]byte(spec), &r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if r.Count == 0 {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
	}
	if r.Serve != "" {
		return r.serve(ctx)
	}
	if err := json.NewEncoder(os.Stdout).Encode(r.run(ctx)); err != nil {
		return 1
	}
	return 0
}

// serve answers every request with "hello" until ctx ends.
func (r request) serve(ctx context.Context) int {
	l, err := net.Listen("tcp", r.Serve)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	_ = srv.Serve(l) // it always ends with an error: that it was closed
	return 0
}

func (r request) run(ctx context.Context) tally {
	total := tally{Bodies: make(map[string]int)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	left := r.Count
	take := func() bool {
		mu.Lock()
		defer mu.Unlock()
		left--
		return r.Count == 0 || left >= 0
	}
	least := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return total.Requests < r.Least
	}
	client := r.client()
	for range max(r.Workers, 1) {
		wg.Go(func() {
			send, hangUp := r.sender(client)
			defer hangUp()
			for (ctx.Err() == nil || least()) && take() {
				begun := time.Now()
				body, err := send()
				took := time.Since(begun)
				mu.Lock()
				total.Requests++
				if err != nil {
					total.Failures++
					if begun.After(total.Last) {
						total.Last = begun
					}
					if len(total.Errors) < errorsMax {
						total.Errors = append(total.Errors, time.Now().Format("15:04:05.000 ")+err.Error())
					}
				} else {
					total.Longest = max(total.Longest, took)
					total.Bodies[body]++
				}
				mu.Unlock()
				select {
				case <-time.After(r.Pause):
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
	return total
}

func (r request) client() *http.Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	dial := dialer.DialContext
	if r.DNS {
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			addrs, err := lookUp(ctx, host)
			if err != nil {
				return nil, err
			}
			return dialer.DialContext(ctx, network, net.JoinHostPort(addrs[0], port))
		}
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: !r.KeepAlive, MaxIdleConnsPerHost: 64}
	if r.H2C {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Client{Timeout: cmp.Or(r.Timeout, 15*time.Second), Transport: transport}
}

// lookUp asks the name service of a task as often and as patiently as the task's resolv.conf says.
func lookUp(ctx context.Context, host string) (addrs []string, err error) {
	const timeout, attempts = time.Second, 5
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.11:53")
	}}
	for range attempts {
		once, cancel := context.WithTimeout(ctx, timeout)
		addrs, err = resolver.LookupHost(once, host)
		cancel()
		if err == nil || ctx.Err() != nil {
			return addrs, err
		}
	}
	return nil, err
}

// send makes one request and returns the lines of the answer, but for the one that tells who asked.
func (r request) send(c *http.Client) (string, error) {
	req, err := http.NewRequest(r.Method, r.URL, nil)
	if err != nil {
		return "", err
	}
	req.Host = cmp.Or(r.Host, req.Host)
	var came phases
	resp, err := c.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), came.trace())))
	if err != nil {
		return "", fmt.Errorf("%w; it had come to: %s", err, came.String())
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode/100 != 2 {
		return "", fmt.Errorf("status %d: %s", resp.StatusCode, body)
	}
	if len(r.Want) > 0 {
		for _, want := range r.Want {
			if !bytes.Contains(body, []byte(want)) {
				return "", fmt.Errorf("the answer lacks %q: %s", want, came.String())
			}
		}
		return strings.Join(r.Want, ", "), nil
	}
	var lines []string
	for line := range strings.SplitSeq(strings.TrimSpace(string(body)), "\n") {
		if !strings.HasPrefix(line, "client: ") { // it differs for each connection
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, ", "), nil
}

// phases tells how far a request came, for when it fails.
type phases struct {
	mu    sync.Mutex
	steps []string
}

func (p *phases) add(step string) {
	p.mu.Lock()
	p.steps = append(p.steps, time.Now().Format("05.000 ")+step)
	p.mu.Unlock()
}

func (p *phases) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.steps, ", ")
}

func (p *phases) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		DNSDone:      func(i httptrace.DNSDoneInfo) { p.add(fmt.Sprint("name ", i.Addrs, i.Err)) },
		ConnectStart: func(_, addr string) { p.add("connect " + addr) },
		GotConn:      func(i httptrace.GotConnInfo) { p.add("connected from " + i.Conn.LocalAddr().String()) },
		WroteRequest: func(httptrace.WroteRequestInfo) { p.add("sent") },
	}
}

// load is a client at work.
type load struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

// startLoad starts a client in the namespace at path.
func startLoad(t *testing.T, path string, r request) *load {
	t.Helper()
	spec, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), clientEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startIn(path, cmd); err != nil {
		t.Fatal("start client: ", err)
	}
	l := &load{t: t, cmd: cmd, stdin: stdin, out: bufio.NewReader(stdout)}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return l
}

// end stops the client and returns what it counted.
func (l *load) end() tally {
	l.t.Helper()
	if err := l.stdin.Close(); err != nil {
		l.t.Fatal(err)
	}
	return l.wait()
}

// wait lets a client with a Count finish.
func (l *load) wait() tally {
	l.t.Helper()
	var out tally
	if err := json.NewDecoder(l.out).Decode(&out); err != nil {
		l.t.Fatal("client: ", err)
	}
	if err := l.cmd.Wait(); err != nil {
		l.t.Fatal("client: ", err)
	}
	return out
}

// ask makes one request from a namespace.
func (m *machine) ask(ns, url string) (string, error) {
	m.t.Helper()
	r := startLoad(m.t, ns, request{URL: url, Workers: 1, Count: 1, DNS: ns != m.outside && ns != m.ns}).wait()
	if r.Failures > 0 {
		return "", fmt.Errorf("%s", r.Errors[0])
	}
	for body := range r.Bodies {
		return body, nil
	}
	return "", fmt.Errorf("no answer")
}
