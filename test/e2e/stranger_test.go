package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"baton/client/api"
	"baton/internal/wire/transport"
)

// stranger runs baton on a machine that is no member, at the switch of the cluster.
func (c *machines) stranger(stdin string, env []string, args ...string) result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), env...)
	return runIn(c.t, c.hub, cmd, []byte(stdin))
}

func TestStrangersGetNothingButARefusal(t *testing.T) {
	c := newCluster(t, 1, 2)
	m1, w1, w2 := c.list[0], c.list[1], c.list[2]
	line := strings.TrimSpace(m1.baton("token", "ls", "worker", "-q"))
	short := strings.TrimSpace(m1.baton("token", "create", "worker", "--ttl", "1m", "-q"))
	m1.baton("token", "rotate", "worker")
	if now := strings.TrimSpace(m1.baton("token", "ls", "worker", "-q")); now == line {
		t.Error("the token is the same after its rotation")
	}
	other := newMachine(t) // a cluster of its own, with another authority
	foreign := strings.TrimSpace(other.baton("token", "ls", "worker", "-q"))
	foreign = foreign[:strings.Index(foreign, "@")] + "@" + m1.ip + ":7701"
	wrong := line[:strings.Index(line, "@")-4] + "aaaa@" + m1.ip + ":7701"
	for name, try := range map[string]struct{ line, want string }{
		"rotated":         {line, "not valid any more"},
		"rotated, too":    {short, "not valid any more"},
		"wrong secret":    {wrong, "not valid any more, or never was"},
		"another cluster": {foreign, "not of the cluster that the token is for"},
		"no token":        {"hello@" + m1.ip, "not a join token"},
		"half a token":    {line[:strings.Index(line, "@")-4] + "@" + m1.ip, "not a join token"},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.stranger(try.line, nil, "join", "-", "--data-dir", filepath.Join(t.TempDir(), "d"), "--name", "x")
			if r.code == 0 || !strings.Contains(r.stderr, try.want) || strings.Contains(r.stderr, strings.Split(try.line, "@")[0]) {
				t.Errorf("exit %d, want a refusal with %q and without the token:\n%s", r.code, try.want, r.stderr)
			}
		})
	}
	if n := len(decode[[]api.Node](t, m1.baton("node", "ls", "-o", "json"))); n != 3 {
		t.Errorf("there are %d nodes, want 3", n)
	}
	t.Run("taken name", func(t *testing.T) { c.takenName(m1) })
	t.Run("handshakes", func(t *testing.T) { c.handshakes(m1, w1, other) })
	t.Run("images", func(t *testing.T) { c.imagesForMembers(m1, w1, w2, other) })
	t.Run("remote users", func(t *testing.T) { c.remoteUsers(m1, w1) })
	t.Run("removed node", func(t *testing.T) { c.removed(m1, w1, w2) })
}

// tokenLife is the shortest that a join token may have. A test that takes longer makes one first and calls expired at its end.
const tokenLife = time.Minute

func (m *machine) expiringToken() string {
	m.t.Helper()
	return strings.TrimSpace(m.baton("token", "create", "worker", "--ttl", tokenLife.String(), "-q"))
}

// expired joins with a token that was good until tokenLife after it was made.
func (c *machines) expired(line string, made time.Time) {
	c.t.Helper()
	eventually(c.t, tokenLife+10*time.Second, "the token's time is over", func() error {
		if left := tokenLife + time.Second - time.Since(made); left > 0 {
			return fmt.Errorf("it has %s left", left)
		}
		return nil
	})
	r := c.stranger(line, nil, "join", "-", "--data-dir", filepath.Join(c.t.TempDir(), "d"), "--name", "x")
	if r.code == 0 || !strings.Contains(r.stderr, "the join token has expired") || strings.Contains(r.stderr, strings.Split(line, "@")[0]) {
		c.t.Errorf("a token that has expired: exit %d, want a refusal without the token:\n%s", r.code, r.stderr)
	}
}

// takenName joins with a good token under a name that another node has: it fails for the name only.
func (c *machines) takenName(m1 *machine) {
	token := strings.TrimSpace(m1.baton("token", "create", "worker", "--ttl", "1m", "-q"))
	dir := filepath.Join(c.t.TempDir(), "d")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "join", token, "--data-dir", dir, "--name", "m1")
	r := runIn(c.t, c.hub, cmd, nil)
	if !strings.Contains(r.stderr, "a node named m1 is a member already") {
		c.t.Errorf("a good token and a taken name: got exit %d\n%s", r.code, r.stderr)
	}
}

// inNamespace runs f with the network of the namespace at path.
func inNamespace(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// shake tries to speak a protocol with a manager, and reports what the manager made of it.
func shake(address, protocol string, certs []tls.Certificate) error {
	raw, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, Certificates: certs})
	if err := conn.Handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	// A refusal comes after the client's part of the handshake; whoever is let in hears an HTTP/2 server's settings.
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if _, err := conn.Read(make([]byte, 9)); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

// certificates are what a machine shows to others.
func (m *machine) certificates() []tls.Certificate {
	m.t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(m.data, "identity", "node.crt"), filepath.Join(m.data, "identity", "node.key"))
	if err != nil {
		m.t.Fatal(err)
	}
	return []tls.Certificate{cert}
}

// imagesForMembers asks managers and workers for images: only members get any, and a worker's port serves nothing else.
func (c *machines) imagesForMembers(m1, w1, w2, other *machine) {
	for _, to := range []*machine{m1, w2} {
		for _, try := range []struct {
			who      string
			certs    []tls.Certificate
			protocol string
			good     bool
		}{
			{"nobody", nil, transport.ProtocolImage, false},
			{"another cluster's manager", other.certificates(), transport.ProtocolImage, false},
			{"nobody", nil, transport.ProtocolJoin, to == m1},
			{"a worker", w1.certificates(), transport.ProtocolAgent, to == m1},
			{"a worker", w1.certificates(), "h2", to == m1},
			{"a worker", w1.certificates(), transport.ProtocolImage, true},
		} {
			err := inNamespace(c.hub, func() error { return shake(to.ip+":7701", try.protocol, try.certs) })
			if (err == nil) != try.good {
				c.t.Errorf("%s speaks %s with %s: got %v, want good: %v", try.who, try.protocol, to.name, err, try.good)
			}
		}
	}
}

// handshakes tries the protocols between machines without a certificate, with another cluster's, and with a worker's.
func (c *machines) handshakes(m1, w1, other *machine) {
	load := (*machine).certificates
	for _, try := range []struct {
		who      string
		certs    []tls.Certificate
		protocol string
		good     bool
	}{
		{"nobody", nil, transport.ProtocolAgent, false},
		{"nobody", nil, transport.ProtocolRaft, false},
		{"nobody", nil, transport.ProtocolManager, false},
		{"nobody", nil, transport.ProtocolNode, false},
		{"another cluster's manager", load(other), transport.ProtocolAgent, false},
		{"another cluster's manager", load(other), transport.ProtocolManager, false},
		{"a worker", load(w1), transport.ProtocolManager, false},
		{"a worker", load(w1), transport.ProtocolRaft, false},
		{"a worker", load(w1), transport.ProtocolAgent, true}, // the tries before failed for their certificates, not for the network
	} {
		err := inNamespace(c.hub, func() error { return shake(m1.ip+":7701", try.protocol, try.certs) })
		if (err == nil) != try.good {
			c.t.Errorf("%s for %s: got %v, want good: %v", try.who, try.protocol, err, try.good)
		}
		var op *net.OpError
		if !try.good && errors.As(err, &op) && op.Op == "dial" {
			c.t.Errorf("%s for %s: the manager was not reached: %v", try.who, try.protocol, err)
		}
	}
}

// remoteUsers reaches the API over the network: refused without a certificate, served with one.
func (c *machines) remoteUsers(m1, w1 *machine) {
	address := "https://" + m1.ip + ":7701"
	config := "BATON_CONFIG=" + c.t.TempDir()
	exported := m1.baton("context", "export", "prod", "--user", "ann", "-y")
	if r := c.stranger(exported, []string{config}, "context", "import", "-"); r.code != 0 {
		c.t.Fatal(r.stderr)
	}
	if r := c.stranger("", []string{config}, "--context", "prod", "node", "ls", "-q"); r.code != 0 || !strings.Contains(r.stdout, "w1") {
		c.t.Errorf("with a context: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if r := c.stranger("", nil, "--host", address, "node", "ls"); r.code == 0 {
		c.t.Errorf("without a certificate the API answered:\n%s", r.stdout)
	}
	worker, err := tls.LoadX509KeyPair(filepath.Join(w1.data, "identity", "node.crt"), filepath.Join(w1.data, "identity", "node.key"))
	if err != nil {
		c.t.Fatal(err)
	}
	for who, certs := range map[string][]tls.Certificate{"nobody": nil, "a worker": {worker}} {
		var answer string
		err := inNamespace(c.hub, func() error {
			conn, err := tls.Dial("tcp", m1.ip+":7701", &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, Certificates: certs})
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("GET /v1/nodes HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")); err != nil {
				return err
			}
			buf := make([]byte, 4096)
			n, err := conn.Read(buf)
			answer = string(buf[:n])
			return err
		})
		if err != nil || !strings.HasPrefix(answer, "HTTP/1.1 401 ") {
			c.t.Errorf("%s asks the API: got %v, %q, want 401", who, err, answer)
		}
	}
}

// removed takes a node out of the cluster: its certificate is good for nothing from then on.
func (c *machines) removed(m1, w1, w2 *machine) {
	if r := m1.try("node", "rm", "w1"); r.code != 5 || !strings.Contains(r.stderr, "--force") {
		c.t.Errorf("a connected node was removed without --force: exit %d\n%s", r.code, r.stderr)
	}
	certs := w1.certificates()
	m1.baton("node", "rm", "w1", "--force")
	begin := time.Now()
	for _, to := range []struct{ ip, protocol string }{{m1.ip, transport.ProtocolAgent}, {m1.ip, transport.ProtocolImage}, {w2.ip, transport.ProtocolImage}} {
		eventually(c.t, 5*time.Second, "the removed node is refused", func() error {
			if inNamespace(c.hub, func() error { return shake(to.ip+":7701", to.protocol, certs) }) == nil {
				return fmt.Errorf("it is still let in at %s for %s", to.ip, to.protocol)
			}
			return nil
		})
	}
	c.t.Logf("the removed node's certificate was refused after %s", time.Since(begin).Round(time.Millisecond))
	if r := m1.try("node", "rm", "m1", "--force"); r.code != 5 || !strings.Contains(r.stderr, "only manager") {
		c.t.Errorf("the only manager: exit %d\n%s", r.code, r.stderr)
	}
	if r := m1.try("node", "demote", "m1"); r.code != 5 || !strings.Contains(r.stderr, "only manager") {
		c.t.Errorf("the only manager was demoted: exit %d\n%s", r.code, r.stderr)
	}
}
