package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/test/pebble"
)

// dialer connects from where a machine's clients are.
func (m *machine) dialer() func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return dialFrom(ctx, m.outside, network, address)
	}
}

// https asks a machine for a host over TLS, and returns the certificate that it was served with.
func (m *machine) https(host string, roots *x509.CertPool) (*x509.Certificate, error) {
	cfg := &tls.Config{ServerName: host, RootCAs: roots, InsecureSkipVerify: roots == nil}
	tr := &http.Transport{DialContext: m.dialer(), TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, "https://"+m.ip+"/", nil)
	if err != nil {
		return nil, err
	}
	req.Host = host
	res, err := (&http.Client{Transport: tr, Timeout: 15 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK || res.ProtoMajor != 2 {
		return nil, fmt.Errorf("%s answers %s %s, %v", m.name, res.Proto, res.Status, err)
	}
	return res.TLS.PeerCertificates[0], nil
}

// plain asks a machine for a host without TLS.
func (m *machine) plain(host string) (status int, location string, err error) {
	tr := &http.Transport{DialContext: m.dialer(), DisableKeepAlives: true}
	c := &http.Client{Transport: tr, Timeout: 15 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequest(http.MethodGet, "http://"+m.ip+"/", nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	return res.StatusCode, res.Header.Get("Location"), res.Body.Close()
}

// secureWeb is a web service with rules.
func secureWeb(rules, more string) string {
	return fmt.Sprintf(`services:
  web:
    image: baton.test/web:v1
    expose: ["8080"]
    healthcheck: {test: [NONE]}
    x-probes: {ready: {http: {path: /healthz, port: 8080}, every: 200ms, timeout: 2s}}
    x-ingress: %s
    deploy: {replicas: 2, update_config: {monitor: 0s}}
%s`, rules, more)
}

// sameEverywhere waits until all machines serve a host with one certificate, other than old.
func (c *machines) sameEverywhere(host, old string, list ...*machine) (serial string) {
	c.t.Helper()
	eventually(c.t, 90*time.Second, host+" has one certificate everywhere", func() error {
		serial = ""
		for _, m := range list {
			got, err := m.https(host, nil)
			if err != nil {
				return err
			}
			now := got.SerialNumber.String()
			if now == old || serial != "" && now != serial {
				return fmt.Errorf("%s serves %s, after %s and %s", m.name, now, old, serial)
			}
			serial = now
		}
		return nil
	})
	return serial
}

// One certificate is obtained for all nodes, by one order; restarts order none; renewal and revocation one each, also when the leader
// is killed meanwhile.
func TestCertificateOfAnAuthority(t *testing.T) {
	c := newCluster(t, 3, 0)
	m1 := c.list[0]
	s := pebble.Start(t, pebble.Config{
		Start: func(cmd *exec.Cmd) error { return startIn(c.hub, cmd) },
		IP:    switchIP, Ports: [3]int{14000, 8053, 8055}, Answer: c.list[1].ip, HTTPPort: 80,
	})
	c.loadAll("web-v1")
	m1.baton("cert", "acme", "--directory", s.Directory, "--ca", m1.write("roots.pem", string(s.Roots)), "--email", "ops@example.com")
	m1.baton("up", "-f", m1.write("compose.yaml", secureWeb("{host: "+shopHost+", tls: auto}", "")), "-s", "web", "-y")
	first := c.sameEverywhere(shopHost, "", c.list...)
	if n := s.Orders(); n != 1 {
		t.Errorf("%d orders were made, want one", n)
	}
	for _, m := range c.list {
		if status, location, err := m.plain(shopHost); err != nil || status != http.StatusPermanentRedirect || location != "https://"+shopHost+"/" {
			t.Errorf("%s answers plain HTTP with %d, %q, %v", m.name, status, location, err)
		}
	}
	for _, m := range c.list {
		m.stop()
		m.launch()
		m.awaitReady()
	}
	c.ready(3)
	if again := c.sameEverywhere(shopHost, "", c.list...); again != first || s.Orders() != 1 {
		t.Errorf("after restarts the certificate is %s, was %s, with %d orders", again, first, s.Orders())
	}
	m1.baton("cert", "renew", shopHost)
	second := c.sameEverywhere(shopHost, first, c.list...)
	// All managers were just restarted: a leader that loses its term in the middle of an order leaves it to the next one.
	if n := s.Orders(); n != 2 && n != 3 {
		t.Errorf("%d orders were made, want a second one for the renewal, and one more at most", n)
	}
	m1.baton("cert", "revoke", shopHost)
	third := c.sameEverywhere(shopHost, second, c.list...)
	if !strings.Contains(m1.baton("events"), "certificate.revoked") {
		t.Error("no event tells of the revocation")
	}
	c.killLeaderInOrder(s, third)
	for _, m := range c.list {
		if text, err := os.ReadFile(filepath.Join(m.dir, "server.log")); err != nil || strings.Contains(string(text), "PRIVATE KEY") {
			t.Errorf("the log of %s shows a private key, or cannot be read: %v", m.name, err)
		}
	}
}

// killLeaderInOrder kills the leader once its order has begun.
func (c *machines) killLeaderInOrder(s *pebble.Server, old string) {
	c.t.Helper()
	lead, before := c.leader(c.list[0]), s.Orders()
	var left []*machine
	for _, m := range c.list {
		if m != lead {
			left = append(left, m)
		}
	}
	tr := &http.Transport{DialContext: lead.dialer(), DisableKeepAlives: true}
	s.Answer(&http.Client{Transport: tr, Timeout: 15 * time.Second}, left[0].ip) // the edge of the one that is killed learns of no challenge
	lead.baton("cert", "renew", shopHost)
	eventually(c.t, 30*time.Second, "an order is made", func() error {
		if s.Orders() == before {
			return errors.New("none is")
		}
		return nil
	})
	lead.kill()
	c.sameEverywhere(shopHost, old, left...)
	lead.launch()
	lead.awaitReady()
	c.t.Logf("the leader was killed during an order: %d orders in all", s.Orders())
}

// The cluster's own authority and a certificate in secrets, each for its host; a host without TLS is served as before.
func TestInternalAndOwnCertificates(t *testing.T) {
	c := newCluster(t, 1, 0)
	m := c.list[0]
	c.loadAll("web-v1")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(4711), DNSNames: []string{"own.example.com"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, own, own, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	m.write("cert.pem", string(chain))
	m.write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	m.baton("up", "-f", m.write("compose.yaml", secureWeb(
		`[{host: shop.internal, tls: internal}, {host: own.example.com, tls: {cert: chain, key: key}}, {host: plain.example.com}]`,
		"secrets:\n  chain: {file: ./cert.pem}\n  key: {file: ./key.pem}\n")), "-s", "web", "-y")
	eventually(t, 30*time.Second, "the authority is there", func() error {
		if r := m.try("cert", "ca"); r.code != 0 {
			return errors.New(r.stderr)
		}
		return nil
	})
	for host, text := range map[string]string{"shop.internal": m.baton("cert", "ca"), "own.example.com": string(chain)} {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(text))
		eventually(t, 30*time.Second, host+" is served", func() error { _, err := m.https(host, roots); return err })
	}
	if _, err := m.https("plain.example.com", nil); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a host without TLS answers %v, want an unrecognized name", err)
	}
	if status, _, err := m.plain("plain.example.com"); err != nil || status != http.StatusOK {
		t.Errorf("a host without TLS answers plain HTTP with %d, %v", status, err)
	}
	list := batonJSON[[]api.HostCertificate](m, "cert", "ls")
	if len(list) != 2 || list[0].State != "valid" || list[1].State != "valid" || list[0].Source != "secret" || list[1].Source != "internal" {
		t.Errorf("cert ls shows %+v", list)
	}
	tasks := idsOf(m.on("web", m.name))
	m.baton("up", "-f", m.write("compose.yaml", secureWeb(`[{host: plain.example.com}]`, "")), "-s", "web", "-y")
	eventually(t, 30*time.Second, "the port is closed", func() error {
		if _, err := m.https("shop.internal", nil); err == nil || !strings.Contains(err.Error(), "refused") {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	if now := idsOf(m.on("web", m.name)); !slices.Equal(now, tasks) {
		t.Errorf("a change of certificates replaced the tasks %v by %v", tasks, now)
	}
}

func idsOf(tasks []api.Task) (ids []string) {
	for _, t := range tasks {
		ids = append(ids, t.ID.String())
	}
	slices.Sort(ids)
	return ids
}
