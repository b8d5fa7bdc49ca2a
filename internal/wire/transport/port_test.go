package transport_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"baton/internal/manager/identity"
	"baton/internal/wire/transport"
	"baton/internal/wire/transport/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// credentials are those of a machine with a certificate of a, which trusts it.
func credentials(t testing.TB, a *identity.Authority, name, role string, trusted ...*identity.Authority) *transport.Files {
	t.Helper()
	f := openFiles(t, filepath.Join(t.TempDir(), "identity"))
	if err := install(t, f, a, identity.Subject{Name: name, Role: role}, append(trusted, a)...); err != nil {
		t.Fatal(err)
	}
	return f
}

// site is a network with a manager's port on it.
type site struct {
	net  *memnet.Network
	port *transport.Listener
}

const managerAt = "m1:7701"

func newSite(t testing.TB, creds transport.Credentials, allow func(transport.Peer, string) error) *site {
	t.Helper()
	s := &site{net: memnet.New(func(string, string) time.Duration { return time.Millisecond })}
	var err error
	s.port, err = transport.Listen(context.Background(), managerAt, transport.Config{
		Network: s.net.Host("m1"), Credentials: creds, Allow: allow, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) close(t testing.TB) {
	if err := s.port.Close(); err != nil {
		t.Error(err)
	}
}

func (s *site) dial(from string, creds transport.Credentials, protocol, name string) (*transport.Conn, error) {
	d := transport.Dialer{Network: s.net.Host(from), Credentials: creds}
	return d.Dial(context.Background(), managerAt, protocol, name)
}

// reaches says whether a dialled connection is served: TLS 1.3 tells a caller of its refusal at the first read only.
func (s *site) reaches(t testing.TB, c *transport.Conn, protocol string) bool {
	t.Helper()
	part := s.port.Protocol(protocol)
	got := make(chan net.Conn, 1)
	go func() {
		in, err := part.Accept()
		if err == nil {
			_, _ = in.Write([]byte("hello"))
		}
		got <- in
	}()
	buf := make([]byte, 5)
	_, err := io.ReadFull(c, buf)
	_ = part.Close()
	if in := <-got; in != nil {
		_ = in.Close()
	}
	return err == nil
}

// Each protocol gives way only to those who show the certificate that it needs.
func TestProtocolsNeedTheirCertificate(t *testing.T) {
	const member, stranger, nobody = "a member", "a stranger", "nobody"
	for _, p := range []string{transport.ProtocolRaft, transport.ProtocolManager, transport.ProtocolAgent, transport.ProtocolNode, transport.ProtocolJoin} {
		for _, w := range []string{member, stranger, nobody} {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := authority(t, "ours"), authority(t, "theirs")
				creds := map[string]transport.Credentials{
					member:   credentials(t, ours, "w1", transport.RoleWorker),
					stranger: credentials(t, theirs, "w1", transport.RoleWorker, ours),
					nobody:   none{credentials(t, ours, "w1", transport.RoleWorker)},
				}
				s := newSite(t, credentials(t, ours, "m1", transport.RoleManager), nil)
				defer s.close(t)
				want := w == member || p == transport.ProtocolJoin
				c, err := s.dial("w1", creds[w], p, transport.NameManager)
				got := err == nil && s.reaches(t, c, p)
				if got != want {
					t.Errorf("%s with %s: served: %v (%v), want %v", p, w, got, err, want)
				}
				if c != nil {
					_ = c.Close()
				}
			})
		}
	}
}

// none shows no certificate.
type none struct{ *transport.Files }

func (none) Certificate() (*tls.Certificate, error) { return new(tls.Certificate), nil }

// The caller does not go on with somebody else than whom it wanted.
func TestDialChecksWhoAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		signer string
		role   string
		want   string
		says   string
	}{
		"a manager":                    {"ours", transport.RoleManager, transport.NameManager, ""},
		"the node":                     {"ours", transport.RoleManager, transport.NodeName("m1"), ""},
		"another node":                 {"ours", transport.RoleManager, transport.NodeName("m2"), "not the node that was expected"},
		"a worker instead":             {"ours", transport.RoleWorker, transport.NameManager, "not a manager"},
		"a manager of another cluster": {"theirs", transport.RoleManager, transport.NameManager, "another cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := map[string]*identity.Authority{"ours": authority(t, "ours"), "theirs": authority(t, "theirs")}
				ours := all["ours"]
				s := newSite(t, credentials(t, all[c.signer], "m1", c.role, ours), nil)
				defer s.close(t)
				conn, err := s.dial("w1", credentials(t, ours, "w1", transport.RoleWorker), transport.ProtocolAgent, c.want)
				if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want %q in it", err, c.says)
				}
				if conn != nil {
					_ = conn.Close()
				}
			})
		})
	}
}

// An expired certificate opens nothing, on either side; a new one works at once and without a restart.
func TestExpiredCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authority(t, "ours")
		manager, worker := credentials(t, a, "m1", transport.RoleManager), credentials(t, a, "w1", transport.RoleWorker)
		s := newSite(t, manager, nil)
		defer s.close(t)
		time.Sleep(identity.CertificateLife + time.Hour)
		if c, err := s.dial("w1", worker, transport.ProtocolAgent, transport.NameManager); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Fatalf("the manager's has expired: %v, %v", c, err)
		}
		if err := install(t, manager, a, identity.Subject{Name: "m1", Role: transport.RoleManager}, a); err != nil {
			t.Fatal(err)
		}
		c, err := s.dial("w1", worker, transport.ProtocolAgent, transport.NameManager)
		if err == nil && s.reaches(t, c, transport.ProtocolAgent) {
			t.Error("a worker whose certificate has expired is served")
		}
		if c != nil {
			_ = c.Close()
		}
		if err := install(t, worker, a, identity.Subject{Name: "w1", Role: transport.RoleWorker}, a); err != nil {
			t.Fatal(err)
		}
		if c, err = s.dial("w1", worker, transport.ProtocolAgent, transport.NameManager); err != nil || !s.reaches(t, c, transport.ProtocolAgent) {
			t.Fatalf("both are new: %v", err)
		}
		_ = c.Close()
	})
}

// Whoever is signed by an authority that is trusted no more is refused from then on.
func TestReplacedRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := authority(t, "old"), authority(t, "next")
		manager := credentials(t, old, "m1", transport.RoleManager, next)
		s := newSite(t, manager, nil)
		defer s.close(t)
		late := credentials(t, old, "w1", transport.RoleWorker, next)
		early := credentials(t, next, "w2", transport.RoleWorker, old)
		served := func(from string, creds transport.Credentials) bool {
			c, err := s.dial(from, creds, transport.ProtocolAgent, transport.NameManager)
			if err != nil {
				return false
			}
			defer c.Close()
			return s.reaches(t, c, transport.ProtocolAgent)
		}
		if !served("w1", late) || !served("w2", early) {
			t.Fatal("while both are trusted, both must be served")
		}
		if err := install(t, manager, next, identity.Subject{Name: "m1", Role: transport.RoleManager}, next); err != nil {
			t.Fatal(err)
		}
		if served("w1", late) {
			t.Error("the old authority's certificate still opens the port")
		}
		if !served("w2", early) {
			t.Error("the next authority's certificate does not open the port")
		}
	})
}

// Allow decides after the handshake, and Recheck ends what it has come to refuse, and nothing else.
func TestAllowAndRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authority(t, "ours")
		var gone atomic.Pointer[string]
		s := newSite(t, credentials(t, a, "m1", transport.RoleManager), func(p transport.Peer, _ string) error {
			if p.Role != transport.RoleWorker {
				return errors.New("only workers")
			}
			if g := gone.Load(); g != nil && *g == p.Name {
				return errors.New("gone")
			}
			return nil
		})
		defer s.close(t)
		other, err := s.dial("m2", credentials(t, a, "m2", transport.RoleManager), transport.ProtocolAgent, transport.NameManager)
		if err == nil && s.reaches(t, other, transport.ProtocolAgent) {
			t.Error("whom Allow refuses is served")
		}
		if other != nil {
			_ = other.Close()
		}
		part := s.port.Protocol(transport.ProtocolAgent)
		ends := make(map[string]*transport.Conn)
		for _, name := range []string{"w1", "w2"} {
			c, err := s.dial(name, credentials(t, a, name, transport.RoleWorker), transport.ProtocolAgent, transport.NameManager)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			in, err := part.Accept()
			if err != nil {
				t.Fatal(err)
			}
			conn := in.(*transport.Conn)
			if conn.Peer.Name != name || conn.Peer.Role != transport.RoleWorker || conn.Protocol != transport.ProtocolAgent {
				t.Errorf("peer: %+v on %s", conn.Peer, conn.Protocol)
			}
			ends[name] = conn
		}
		name := "w1"
		gone.Store(&name)
		s.port.Recheck()
		if _, err := ends["w1"].Write([]byte("x")); err == nil {
			t.Error("Recheck left the connection of one who lost its right")
		}
		if _, err := ends["w2"].Write([]byte("x")); err != nil {
			t.Errorf("Recheck ended the connection of another: %v", err)
		}
	})
}

// A host that begins handshakes and says nothing keeps nobody else out, and is let go in the end.
func TestSilentStrangersHoldNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authority(t, "ours")
		s := newSite(t, credentials(t, a, "m1", transport.RoleManager), nil)
		defer s.close(t)
		var open []net.Conn
		for range 8 * transport.HandshakesOfHost {
			c, err := s.net.Host("stranger").Dial(t.Context(), managerAt)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
			synctest.Wait()
		}
		begun := time.Now()
		c, err := s.dial("w1", credentials(t, a, "w1", transport.RoleWorker), transport.ProtocolAgent, transport.NameManager)
		if err != nil || !s.reaches(t, c, transport.ProtocolAgent) {
			t.Fatalf("a member is not served: %v", err)
		}
		if took := time.Since(begun); took > 100*time.Millisecond {
			t.Errorf("a member waited %s for strangers", took)
		}
		_ = c.Close()
		time.Sleep(transport.HandshakeMax + time.Second)
		for _, c := range open {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Fatal("a silent connection is still open")
			}
			_ = c.Close()
		}
	})
}

// Close ends what waits to be accepted, of every protocol.
func TestCloseEndsWhatWaits(t *testing.T) {
	for _, p := range []string{transport.ProtocolAgent, "h2"} {
		synctest.Test(t, func(t *testing.T) {
			a := authority(t, "ours")
			s := newSite(t, credentials(t, a, "m1", transport.RoleManager), nil)
			c, err := s.dial("w1", credentials(t, a, "w1", transport.RoleWorker), p, transport.NameManager)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			synctest.Wait()
			s.close(t)
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			begun := time.Now()
			if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(begun) > time.Second {
				t.Errorf("%s: a waiting connection outlives the port: %v after %s", p, err, time.Since(begun))
			}
			if _, err := s.port.Protocol(transport.ProtocolAgent).Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept after Close: %v", err)
			}
		})
	}
}
