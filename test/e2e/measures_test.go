package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"baton/client/api"
	"baton/internal/wire/agentapi"
)

// scrape asks for /metrics and returns the samples, by name and labels as they are written.
func (m *machine) scrape() map[string]float64 {
	m.t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", m.socket)
	}}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("http://baton/metrics")
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		m.t.Fatalf("metrics: status %d, %v: %s", res.StatusCode, err, body)
	}
	out := make(map[string]float64)
	for line := range strings.Lines(string(body)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if i := strings.LastIndex(line, "} "); i >= 0 {
			name, value = line[:i+1], strings.TrimSpace(line[i+2:])
		}
		if ok && !strings.HasPrefix(line, "#") {
			if out[name], err = strconv.ParseFloat(value, 64); err != nil {
				m.t.Fatalf("metrics: %q: %v", line, err)
			}
		}
	}
	return out
}

// requestsTotal is what /metrics has of the web service's requests, by class.
func (m *machine) requestsTotal() map[string]int {
	m.t.Helper()
	out := make(map[string]int)
	samples := m.scrape()
	for _, code := range []string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"} {
		if n := int(samples[`baton_requests_total{code="`+code+`",service="web",stack="site"}`]); n > 0 {
			out[code] = n
		}
	}
	return out
}

// send makes a number of requests through the edge, four at once.
func (m *machine) send(path string, n int) {
	m.t.Helper()
	if got := startLoad(m.t, m.outside, request{URL: "http://" + machineIP + path, Workers: 4, Count: n}).wait(); got.Requests != n {
		m.t.Fatalf("%d requests of %d", got.Requests, n)
	}
}

// Every request through the edge is seen in top, status and /metrics: exactly as many, of the right classes, as slow as they
// were. They stay counted when their task is replaced; a killed baton begins anew, and nothing goes backwards.
func TestRequestsAreMeasured(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	file := func(round int) string {
		return m.write("compose.yaml", webFile("    x-ingress: {path: /, port: 8080}\n", probed, fmt.Sprintf("    environment: {ROUND: \"%d\"}\n", round),
			"    x-rollout: {drain: 2s}\n", deploy("replicas: 2, "+quickUpdate+", resources: {reservations: {cpus: \"0.1\"}}")))
	}
	m.baton("up", "-f", file(1), "-y")
	base := m.edgeServes()
	began := time.Now()
	m.send("/slow?ms=20", 60)
	m.send("/slow?ms=400", 40)
	m.send("/no-such-page", 7)
	m.send("/slow?ms=many", 3)
	want := map[string]int{"2xx": base["2xx"] + 100, "4xx": 10}
	if base["5xx"] > 0 {
		want["5xx"] = base["5xx"]
	}
	m.counted("all are counted", want)
	took := time.Since(began)

	samples := m.scrape()
	of := `{service="web",stack="site"}`
	if n := samples["baton_request_duration_seconds_count"+of]; int(n) < 110 {
		t.Errorf("%v latencies", n)
	}
	if sum := samples["baton_request_duration_seconds_sum"+of]; sum < 60*0.020+40*0.400 || sum > 4*took.Seconds()+60 {
		t.Errorf("all together took %v s", sum)
	}
	if n := samples["baton_requests_in_flight"+of]; n != 0 {
		t.Errorf("%v in flight", n)
	}
	m.checkLoads(took)

	m.baton("up", "-f", file(2), "-y")
	m.counted("the tasks are replaced, their requests are kept", want)
	m.send("/slow?ms=1", 25)
	want["2xx"] += 25
	m.counted("those of the new tasks are added", want)

	m.kill()
	m.start()
	m.awaitReady()
	before := m.settled()
	m.send("/slow?ms=1", 12)
	before["2xx"] += 12
	m.counted("the new ones are counted, and nothing else", before)
	for _, s := range batonJSON[topDocument](m, "top").Services {
		if s.Rate < 0 || s.Requests > 200 || s.InFlight != 0 {
			t.Errorf("after the crash: %+v", s)
		}
	}
}

// edgeServes waits until the edge serves and has counted what this took, which may be more than one request.
func (m *machine) edgeServes() map[string]int {
	m.t.Helper()
	eventually(m.t, 30*time.Second, "the edge serves", func() error {
		_, err := m.ask(m.outside, "http://"+machineIP+"/")
		return err
	})
	var base map[string]int
	eventually(m.t, 30*time.Second, "the first request is counted", func() error {
		if base = m.requestsTotal(); base["2xx"] == 0 {
			return errors.New("none")
		}
		return nil
	})
	return base
}

// settled is what a new baton knows of the edge that serves on, once it has heard of all that the edge counted: what is of the last minute
// counts.
func (m *machine) settled() (base map[string]int) {
	m.t.Helper()
	m.edgeServes()
	since := time.Now()
	eventually(m.t, time.Minute, "no more requests are counted", func() error {
		if now := m.requestsTotal(); !maps.Equal(now, base) {
			base, since = now, time.Now()
		}
		if quiet := time.Since(since); quiet < 3*agentapi.MeasureEvery {
			return fmt.Errorf("%v ago they were", quiet)
		}
		return nil
	})
	return base
}

// counted waits until /metrics has as many requests of each class.
func (m *machine) counted(what string, want map[string]int) {
	m.t.Helper()
	eventually(m.t, 30*time.Second, what, func() error {
		if got := m.requestsTotal(); !maps.Equal(got, want) {
			return fmt.Errorf("/metrics has %v, want %v", got, want)
		}
		return nil
	})
}

// checkLoads looks at top and status while the first requests are of the last minute.
func (m *machine) checkLoads(took time.Duration) {
	t := m.t
	t.Helper()
	if took > 40*time.Second {
		t.Logf("the machine is too busy: the requests took %v, top shows one minute", took)
		return
	}
	var load api.Load
	eventually(t, 20*time.Second, "top has all of the last minute", func() error {
		doc := batonJSON[topDocument](m, "top")
		if len(doc.Services) != 1 || doc.Services[0].Classes["4xx"] != 10 || doc.Services[0].Classes["2xx"] < 100 {
			return fmt.Errorf("services %+v", doc.Services)
		}
		load = doc.Services[0].Load
		if load.CPUShare == nil || load.Memory == 0 {
			return errors.New("what the tasks use is not known yet: that takes two reports of it")
		}
		tasks := uint64(0)
		for _, k := range doc.Tasks {
			if k.Load != nil {
				tasks += k.Load.Classes["4xx"]
			}
		}
		if tasks != 10 {
			return fmt.Errorf("the tasks have %d requests with 4xx, want 10", tasks)
		}
		return nil
	})
	// 40 of 110 took 400 ms or more; the median is one of those of 20 ms.
	if load.P95 < 400*time.Millisecond*10/12 || load.P95 > took || load.P50 > load.P95 || load.P50 < 20*time.Millisecond*10/12 {
		t.Errorf("latencies: p50 %v, p95 %v, p99 %v", load.P50, load.P95, load.P99)
	}
	if load.Tasks != 2 || load.Missing != 0 {
		t.Errorf("use: %+v", load)
	}
	if st := batonJSON[api.Status](m, "status"); st.Services[0].Load == nil || st.Services[0].Load.Classes["4xx"] != 10 {
		t.Errorf("status: %+v", st.Services)
	}
	if text := m.baton("status"); !strings.Contains(text, "over the last minute") || !strings.Contains(text, "REQ/S") {
		t.Errorf("status:\n%s", text)
	}
	t.Log("\n" + m.baton("top") + "\n" + m.baton("status"))
}

// Prometheus scrapes the port with an exported certificate, and nobody does without.
func TestMetricsAreScrapedFromElsewhere(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var saved struct {
		Address string
		TLS     struct{ Roots, Certificate, Key []byte }
	}
	if err := json.Unmarshal([]byte(m.baton("context", "export", "prometheus", "--user", "prometheus")), &saved); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(saved.TLS.Roots) {
		t.Fatal("no roots in the context")
	}
	pair, err := tls.X509KeyPair(saved.TLS.Certificate, saved.TLS.Key)
	if err != nil {
		t.Fatal(err)
	}
	get := func(certs ...tls.Certificate) (int, string, error) {
		tr := &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return dialFrom(ctx, m.outside, network, address)
			},
			TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs, ServerName: "manager.baton.internal"}, ForceAttemptHTTP2: true,
		}
		defer tr.CloseIdleConnections()
		res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get(saved.Address + "/metrics")
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return res.StatusCode, string(body), err
	}
	if code, body, err := get(pair); err != nil || code != http.StatusOK || !strings.Contains(body, "baton_manager_leader 1") {
		t.Errorf("with the certificate: status %d, %v: %.200s", code, err, body)
	}
	if code, body, err := get(); err == nil && (code != http.StatusUnauthorized || strings.Contains(body, "baton_manager_leader")) {
		t.Errorf("without a certificate: status %d: %.200s", code, body)
	}
}

// dialFrom connects out of the network namespace at path.
func dialFrom(ctx context.Context, path, network, address string) (net.Conn, error) {
	type outcome struct {
		conn net.Conn
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err != nil {
			done <- outcome{err: err}
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			done <- outcome{err: err}
			return
		}
		// An address needs no lookups and no second family, so that the socket is made on this thread.
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		done <- outcome{c, err}
	}()
	o := <-done
	return o.conn, o.err
}
