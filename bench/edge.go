package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

const (
	edgeClients = 32
	// edgeCPUMax is how many times the CPU of a plain httputil.ReverseProxy a request may cost in the edge.
	edgeCPUMax = 1.15
	// edgeIdle are the idle connections of which the memory is measured.
	edgeIdle = 1000
)

// proxied is what requests through one proxy took.
type proxied struct {
	wall, cpu time.Duration
	requests  int
	took      []time.Duration
}

// proxy is a process that passes requests on to the backend.
type proxy struct {
	name, at string
	cmd      *exec.Cmd
}

// edge compares the edge with other proxies before the same backend. They take turns within a round.
func (b *bench) edge(ctx context.Context) (err error) {
	dir := filepath.Join(dataTop, "edge") // what a killed run leaves there the next one removes
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dataTop)) }() // the node is gone already
	self, err := os.Executable()
	if err != nil {
		return err
	}
	const backend, at = "127.0.0.1:28080", "127.0.0.1:2808"
	server, err := startProxy(ctx, "backend", backend, exec.CommandContext(ctx, self, roleBackend, backend, ""))
	if err != nil {
		return err
	}
	defer server.stop()
	nginx, err := nginxCommand(ctx, dir, at+"3", backend)
	if err != nil {
		return err
	}
	var proxies []*proxy
	for _, c := range []struct {
		name, at string
		cmd      *exec.Cmd
	}{
		{"httputil", at + "1", exec.CommandContext(ctx, self, rolePlain, at+"1", backend)},
		{"edge", at + "2", exec.CommandContext(ctx, self, roleEdge, at+"2", backend)},
		{"nginx, one worker", at + "3", nginx},
	} {
		p, err := startProxy(ctx, c.name, c.at, c.cmd)
		if err != nil {
			return err
		}
		defer p.stop()
		proxies = append(proxies, p)
	}
	for _, size := range []struct {
		name, path string
		requests   int
	}{{"100 B", "/small", b.size.requests}, {"100 KiB", "/large", b.size.requests / 4}} {
		of := make([]proxied, len(proxies))
		for range 3 {
			for i, p := range proxies {
				if err := p.ask(ctx, size.path, size.requests, &of[i]); err != nil {
					return err
				}
			}
		}
		plain := of[0].cpu / time.Duration(of[0].requests)
		for i, p := range proxies {
			o := &of[i]
			b.table.told(fmt.Sprintf("%s, %s: requests/s, p50, p99", p.name, size.name), fmt.Sprintf("%.0f, %s, %s",
				float64(o.requests)/o.wall.Seconds(), short(percentile(o.took, 50)), short(percentile(o.took, 99))))
			most := 0.0
			if p.name == "edge" {
				most = edgeCPUMax
			}
			b.table.times(fmt.Sprintf("%s, %s: CPU per request", p.name, size.name), o.cpu/time.Duration(o.requests), "httputil", plain, most)
		}
	}
	for _, p := range proxies {
		grown, err := p.idle(ctx)
		if err != nil {
			return err
		}
		b.table.told(fmt.Sprintf("%s: memory per %d idle connections", p.name, edgeIdle), number(grown)+" MB")
	}
	return nil
}

// startProxy returns once the process accepts connections.
func startProxy(ctx context.Context, name, at string, cmd *exec.Cmd) (*proxy, error) {
	cmd.SysProcAttr = sysProc(cmd.SysProcAttr)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &proxy{name: name, at: at, cmd: cmd}
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", at)
		if err == nil {
			return p, c.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			p.stop()
			return nil, fmt.Errorf("%s does not listen: %w", name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// sysProc lets a process end with the bench, also when that is killed.
func sysProc(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	if a == nil {
		a = new(syscall.SysProcAttr)
	}
	a.Pdeathsig = syscall.SIGKILL
	return a
}

func (p *proxy) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// ask sends n requests on kept connections and adds what they took.
func (p *proxy) ask(ctx context.Context, path string, n int, to *proxied) error {
	tr := &http.Transport{MaxIdleConnsPerHost: edgeClients, DisableCompression: true}
	defer tr.CloseIdleConnections()
	before, err := processCPU(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	var left atomic.Int64
	left.Store(int64(n))
	took, failed := make([][]time.Duration, edgeClients), make([]error, edgeClients)
	began := time.Now()
	var all sync.WaitGroup
	for i := range edgeClients {
		all.Go(func() {
			for left.Add(-1) >= 0 && failed[i] == nil {
				start := time.Now()
				failed[i] = fetch(ctx, tr, "http://"+p.at+path)
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	all.Wait()
	to.wall += time.Since(began)
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	after, err := processCPU(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	to.cpu += after - before
	to.requests += n
	to.took = slices.Concat(append(took, to.took)...)
	return nil
}

func fetch(ctx context.Context, tr *http.Transport, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, res.Status)
	}
	return nil
}

// idle is how many MB the process grows by with connections that had a request each and have none now.
func (p *proxy) idle(ctx context.Context) (float64, error) {
	before, _, err := memory(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	answer := make([]byte, 4096)
	for range edgeIdle {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.at)
		if err != nil {
			return 0, err
		}
		conns = append(conns, c)
		if _, err := io.WriteString(c, "GET /small HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
			return 0, err
		}
		if _, err := c.Read(answer); err != nil {
			return 0, err
		}
	}
	after, _, err := memory(p.cmd.Process.Pid)
	return after - before, err
}

// nginxCommand unpacks the image and runs it in its own root, as one process: its CPU is that of one pid then.
func nginxCommand(ctx context.Context, dir, at, backend string) (*exec.Cmd, error) {
	top, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	oci, root := filepath.Join(dir, "oci"), filepath.Join(dir, "root")
	for _, d := range []string{oci, root, filepath.Join(root, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if out, err := exec.CommandContext(ctx, "tar", "-xf", filepath.Join(top, "build", "out", "images", "nginx.tar"), "-C", oci).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("unpack nginx.tar (`make images` makes it): %w: %s", err, out)
	}
	index, err := layout.ImageIndexFromPath(oci)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) == 0 {
		return nil, fmt.Errorf("nginx.tar has no image: %w", err)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, err
	}
	files := mutate.Extract(image)
	defer files.Close()
	untar := exec.CommandContext(ctx, "tar", "-x", "-C", root)
	untar.Stdin = files
	if out, err := untar.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("unpack nginx: %w: %s", err, out)
	}
	conf := fmt.Sprintf(`daemon off; master_process off; user root; pid /tmp/nginx.pid; error_log /tmp/error.log;
events { worker_connections 8192; }
http {
  access_log off; keepalive_requests 100000000;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
  upstream b { server %s; keepalive %d; keepalive_requests 100000000; }
  server { listen %s; location / { proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $remote_addr; } }
}
`, backend, edgeClients, at)
	if err := os.WriteFile(filepath.Join(root, "tmp", "bench.conf"), []byte(conf), 0o644); err != nil {
		return nil, err
	}
	program := ""
	for _, p := range []string{"/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/nginx/sbin/nginx"} {
		if _, err := os.Stat(filepath.Join(root, p)); err == nil {
			program = p
		}
	}
	if program == "" {
		return nil, errors.New("nginx.tar has no nginx in it")
	}
	cmd := exec.CommandContext(ctx, program, "-c", "/tmp/bench.conf")
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: root}
	return cmd, nil
}
