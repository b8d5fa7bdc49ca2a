// Package pebble starts a real ACME server for tests: Let's Encrypt's Pebble, with a name server that knows every name. It is built from a
// module of its own (build/pebble), so that nothing of it is in the application's.
//
// Concurrency: a Server is for one test.
package pebble

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// readyMax bounds the wait for the programs to listen.
const readyMax = 20 * time.Second

// Config says where the server listens and what it finds.
type Config struct {
	// Start starts a command; it is for tests that have network namespaces. Default: (*exec.Cmd).Start.
	Start func(*exec.Cmd) error
	// IP is where the programs listen. Ports are those of the directory, the name server and its control.
	IP    string
	Ports [3]int
	// Answer is the address of every name, HTTPPort where challenges are asked.
	Answer   string
	HTTPPort int
	// Life of the certificates; default 90 days.
	Life time.Duration
}

// Server is a running one.
type Server struct {
	Directory string
	Roots     []byte // PEM, to trust the directory
	control   string // of the name server
	t         *testing.T
	log       string
}

// Start starts the server; it ends with the test, and with the process of the test.
func Start(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Start == nil {
		cfg.Start = (*exec.Cmd).Start
	}
	if cfg.Life == 0 {
		cfg.Life = 90 * 24 * time.Hour
	}
	dir := t.TempDir()
	address := func(i int) string { return net.JoinHostPort(cfg.IP, strconv.Itoa(cfg.Ports[i])) }
	s := &Server{t: t, Directory: "https://" + address(0) + "/dir", control: "http://" + address(2), log: filepath.Join(dir, "pebble.log")}
	s.Roots = certificate(t, dir, cfg.IP)
	text, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": address(0), "managementListenAddress": "", "certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": cfg.HTTPPort, "tlsPort": 1, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "for tests", "validityPeriod": int(cfg.Life.Seconds())}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(cfg, "names.log", "Starting challenge servers", "pebble-challtestsrv", "-defaultIPv4", cfg.Answer, "-defaultIPv6", "", "-dnsserver", address(1),
		"-management", address(2), "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "")
	s.run(cfg, "pebble.log", "ACME directory available", "pebble", "-config", filepath.Join(dir, "config.json"), "-dnsserver", address(1))
	return s
}

// run starts a program and waits until it says that it is ready.
func (s *Server) run(cfg Config, log, ready, program string, args ...string) {
	s.t.Helper()
	_, here, _, _ := runtime.Caller(0)
	path := filepath.Join(filepath.Dir(here), "..", "..", "build", "out", "pebble", program)
	if _, err := os.Stat(path); err != nil {
		s.t.Fatalf("%v: run `make pebble` first", err)
	}
	log = filepath.Join(filepath.Dir(s.log), log)
	out, err := os.Create(log)
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// Challenges are looked at at once, each order has its own, and no nonce is refused for practice.
	cmd.Env = []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "PEBBLE_WFE_NONCEREJECT=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cfg.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(readyMax); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(log)
		if err == nil && strings.Contains(string(text), ready) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s is not ready: %s", program, text)
		}
	}
}

// Answer makes every name lead to another address, with a client that reaches the server.
func (s *Server) Answer(c *http.Client, ip string) {
	s.t.Helper()
	res, err := c.Post(s.control+"/set-default-ipv4", "application/json", strings.NewReader(`{"ip":"`+ip+`"}`))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusOK {
		s.t.Fatalf("names are to lead to %s: %s, %v", ip, res.Status, err)
	}
}

// Orders counts the orders that were made.
func (s *Server) Orders() int {
	text, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Count(string(text), "Added order ")
}

// certificate makes the certificate of the directory.
func certificate(t *testing.T, dir, ip string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.ParseIP(ip)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, text := range map[string][]byte{"cert.pem": cert, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(fmt.Errorf("write: %w", err))
		}
	}
	return cert
}
