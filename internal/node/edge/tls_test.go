package edge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// signed makes a self-signed certificate for a host.
func signed(t *testing.T, host string) agentapi.HostCertificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return agentapi.HostCertificate{
		Host: host, Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k}),
	}
}

// secured is an edge that serves both ports.
type secured struct {
	edge         *Edge
	plain, https string
	state        agentapi.NetworkState
}

func newSecured(t *testing.T) *secured {
	k := startTask(t, "127.0.0.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Proto")+" "+r.Header.Get("Forwarded"))
	}))
	s := &secured{edge: New(Config{Log: slog.New(slog.DiscardHandler)})}
	v := agentapi.Service{ID: cluster.ID{1}, Stack: "shop", Name: "web", Endpoints: []agentapi.Endpoint{{Address: k.address}}}
	for _, host := range []string{"a.test", "*.w.test", "b.test", "none.test"} {
		v.Ingress = append(v.Ingress, spec.Ingress{Host: host, Path: "/", Port: k.port, TLS: spec.IngressTLS{From: spec.TLSInternal}})
	}
	v.Ingress = append(v.Ingress, spec.Ingress{Host: "plain.test", Path: "/", Port: k.port}, spec.Ingress{Path: "/", Port: k.port})
	s.state = agentapi.NetworkState{
		Services: []agentapi.Service{v}, Certificates: []agentapi.HostCertificate{signed(t, "a.test"), signed(t, "*.w.test"), signed(t, "b.test")},
		Challenges: []agentapi.Challenge{{Host: "none.test", Token: "tok", Answer: "tok.print"}},
	}
	s.edge.Apply(s.state)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	for i, serve := range []func(context.Context, <-chan struct{}, time.Duration, net.Listener) error{s.edge.ServeUntil, s.edge.ServeTLSUntil} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			s.plain = l.Addr().String()
		} else {
			s.https = l.Addr().String()
		}
		go func() { _ = serve(ctx, nil, time.Second, l); done <- struct{}{} }()
	}
	t.Cleanup(func() { cancel(); <-done; <-done })
	return s
}

// ask makes a request, over TLS with a server name if there is one.
func (s *secured) ask(t *testing.T, sni, host, path string, http2 bool) (*http.Response, string, error) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: sni}, ForceAttemptHTTP2: http2}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: waitMax, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	url := "http://" + s.plain + path
	if sni != "" {
		url = "https://" + s.https + path
	}
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	res, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

// Every host is served with its own certificate, over HTTP/1.1 and HTTP/2, and the task hears that it was https.
func TestServesWithTheHostsCertificate(t *testing.T) {
	s := newSecured(t)
	for _, http2 := range []bool{false, true} {
		for host, name := range map[string]string{"a.test": "a.test", "x.w.test": "*.w.test", "b.test": "b.test"} {
			res, body, err := s.ask(t, host, host, "/", http2)
			if err != nil {
				t.Fatal(host, err)
			}
			if got := res.TLS.PeerCertificates[0].DNSNames[0]; got != name {
				t.Errorf("%s is served with the certificate of %s", host, got)
			}
			if res.StatusCode != http.StatusOK || !strings.HasPrefix(body, "https ") || !strings.HasSuffix(body, ";proto=https") || (res.ProtoMajor == 2) != http2 {
				t.Errorf("%s answers %d %s %q", host, res.StatusCode, res.Proto, body)
			}
		}
	}
}

// Without a certificate for a name the handshake ends with unrecognized_name, and no other host's certificate is shown.
func TestRefusesNamesWithoutCertificate(t *testing.T) {
	s := newSecured(t)
	for _, name := range []string{"none.test", "unknown.test", "x.y.w.test", "w.test", "plain.test"} {
		_, _, err := s.ask(t, name, name, "/", false)
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%s: got %v, want an unrecognized name", name, err)
		}
	}
	c, err := tls.Dial("tcp", s.https, &tls.Config{InsecureSkipVerify: true}) // no name at all
	if err == nil {
		_ = c.Close()
		t.Error("a client that asks for no name got a certificate")
	}
}

func TestRefusesOldTLS(t *testing.T) {
	s := newSecured(t)
	c, err := tls.Dial("tcp", s.https, &tls.Config{InsecureSkipVerify: true, ServerName: "a.test", MaxVersion: tls.VersionTLS11})
	if err == nil {
		_ = c.Close()
		t.Error("TLS 1.1 was accepted")
	}
	c, err = tls.Dial("tcp", s.https, &tls.Config{
		InsecureSkipVerify: true, ServerName: "a.test", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA},
	})
	if err == nil {
		_ = c.Close()
		t.Error("a suite without authenticated encryption was accepted")
	}
}

// A connection is for the hosts of its certificate only; rules without TLS are not served over it.
func TestMisdirectedRequests(t *testing.T) {
	s := newSecured(t)
	for _, tc := range []struct {
		sni, host string
		want      int
	}{
		{"a.test", "b.test", http.StatusMisdirectedRequest},
		{"a.test", "plain.test", http.StatusMisdirectedRequest},
		{"x.w.test", "y.w.test", http.StatusOK}, // one certificate
		{"a.test", "unknown.test", http.StatusMisdirectedRequest},
	} {
		for _, http2 := range []bool{false, true} {
			res, _, err := s.ask(t, tc.sni, tc.host, "/", http2)
			if err != nil || res.StatusCode != tc.want {
				t.Errorf("%s on a connection of %s: got %v, %v; want %d", tc.host, tc.sni, res, err, tc.want)
			}
		}
	}
}

// Plain HTTP leads to https, but where there is no certificate yet, and for challenges of authorities.
func TestPlainHTTPOfRulesWithTLS(t *testing.T) {
	s := newSecured(t)
	for _, tc := range []struct {
		host, path string
		status     int
		location   string
		body       string
	}{
		{"a.test", "/x/%2e?q=1", http.StatusPermanentRedirect, "https://a.test/x/%2e?q=1", ""},
		{"A.test:80", "//evil.example", http.StatusPermanentRedirect, "https://a.test//evil.example", ""},
		{"plain.test", "/", http.StatusOK, "", "http "},
		{"none.test", "/", http.StatusServiceUnavailable, "", "no certificate"},
		{"none.test", "/.well-known/acme-challenge/tok", http.StatusOK, "", "tok.print"},
		{"none.test", "/.well-known/acme-challenge/other", http.StatusServiceUnavailable, "", ""},
		{"a.test", "/.well-known/acme-challenge/tok", http.StatusPermanentRedirect, "https://a.test/.well-known/acme-challenge/tok", ""},
	} {
		res, body, err := s.ask(t, "", tc.host, tc.path, false)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != tc.status || res.Header.Get("Location") != tc.location || !strings.Contains(body, tc.body) {
			t.Errorf("%s%s: got %d, location %q, %q", tc.host, tc.path, res.StatusCode, res.Header.Get("Location"), body)
		}
	}
}

// Another certificate is used from the next handshake on; one that cannot be read leaves the others alone.
func TestAnotherCertificate(t *testing.T) {
	s := newSecured(t)
	first, _, err := s.ask(t, "a.test", "a.test", "/", false)
	if err != nil {
		t.Fatal(err)
	}
	kept := s.edge.certificates.Load().find("b.test")
	s.state.Certificates = []agentapi.HostCertificate{signed(t, "a.test"), {Host: "*.w.test", Chain: []byte("x"), Key: []byte("y")}, s.state.Certificates[2]}
	s.edge.Apply(s.state)
	second, _, err := s.ask(t, "a.test", "a.test", "/", false)
	if err != nil {
		t.Fatal(err)
	}
	if first.TLS.PeerCertificates[0].Equal(second.TLS.PeerCertificates[0]) {
		t.Error("the old certificate is still used")
	}
	if s.edge.certificates.Load().find("b.test") != kept {
		t.Error("a certificate that did not change was parsed again: connections for it would be misdirected")
	}
	if _, _, err := s.ask(t, "x.w.test", "x.w.test", "/", false); err == nil {
		t.Error("a certificate that cannot be read is used")
	}
}
