package edgeproc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// secureHost is the host of the rule with TLS.
const secureHost = "shop.test"

// secured adds a certificate and a rule with TLS to leads.
func secured(t *testing.T, task netip.AddrPort) agentapi.NetworkState {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{secureHost}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	st := leads(task)
	v := &st.Services[1]
	v.Ingress = append(v.Ingress, spec.Ingress{Host: secureHost, Path: "/", Port: task.Port(), TLS: spec.IngressTLS{From: spec.TLSInternal}})
	st.Certificates = []agentapi.HostCertificate{{
		Host: secureHost, Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k}),
	}}
	return st
}

// secureClient keeps a connection to the port with TLS.
func (s *site) secureClient() func(body string) error {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: secureHost}, ForceAttemptHTTP2: true}
	s.t.Cleanup(tr.CloseIdleConnections)
	c := &http.Client{Transport: tr, Timeout: waitMax}
	return func(body string) error {
		req, err := http.NewRequest(http.MethodPost, "https://"+s.secure+"/", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Host = secureHost
		res, err := c.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		if err == nil && (res.StatusCode != http.StatusOK || string(got) != body) {
			err = fmt.Errorf("got %d, %q", res.StatusCode, got)
		}
		return err
	}
}

// secureLoad posts until the returned function is called; it fails the test for each error.
func (s *site) secureLoad() (end func()) {
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 2 {
		post := s.secureClient()
		all.Go(func() {
			for n := 0; n < 20 || !isClosed(stop); n++ {
				if err := post(fmt.Sprint("body ", n)); err != nil {
					s.t.Error(err)
					return
				}
			}
		})
	}
	return func() { close(stop); all.Wait() }
}

// The port with TLS survives baton, and another build takes it over, without a failed request.
func TestTLSPortOutlivesBaton(t *testing.T) {
	s := newSite(t)
	st := secured(t, startTask(t, "127.0.1.1:0"))
	e, stop := s.baton()
	s.apply(e, st)
	s.served()
	old := s.one()
	end := s.secureLoad()
	stop()
	next, stopNext := s.baton()
	s.apply(next, st)
	if now := s.one(); now != old {
		t.Errorf("process %d serves, want the one that was there, %d", now, old)
	}
	stopNext()
	s.cfg.Program = build(t, "another build")
	last, _ := s.baton()
	s.apply(last, st)
	s.until("the old process ends", func() bool { return !slices.Contains(s.pids(), old) })
	end()
	if len(s.restarted) > 0 || len(s.failed) > 0 {
		t.Errorf("told of restarts %v, failures %v", s.restarted, s.failed)
	}
}

// A process that is killed gets both listeners again, and the keys: it has them in its memory only.
func TestTLSPortOfAKilledProcess(t *testing.T) {
	s := newSite(t)
	st := secured(t, startTask(t, "127.0.1.1:0"))
	e, _ := s.baton()
	s.apply(e, st)
	s.served()
	if err := unix.Kill(s.one(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.until("another process answers with TLS", func() bool { return s.secureClient()("again") == nil })
	key := string(st.Certificates[0].Key)
	err := filepath.WalkDir(filepath.Dir(s.cfg.Dir), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), key[40:80]) {
			t.Errorf("the private key is in %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The port is open while there is a rule with TLS, and when it is taken, plain HTTP is served all the same.
func TestTLSPortIsOpenOnlyWithRules(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	st := secured(t, task)
	e, _ := s.baton()
	open := func() bool {
		c, err := net.Dial("tcp", s.secure)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	s.apply(e, leads(task))
	s.served()
	if open() {
		t.Error("the port is open without a rule")
	}
	s.apply(e, st)
	if err := s.secureClient()("body"); err != nil {
		t.Error(err)
	}
	s.apply(e, leads(task))
	s.until("the port is closed", func() bool { return !open() })
	l, err := net.Listen("tcp", s.secure)
	if err != nil {
		t.Fatal(err)
	}
	s.apply(e, st)
	s.served()
	s.until("it is told of", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.failed) == 1 })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.until("it answers", func() bool { return s.secureClient()("body") == nil })
}
