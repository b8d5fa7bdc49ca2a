package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/wire/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// signed is the certificate that a gives for a request whose subject says something else.
func signed(t testing.TB, a *Authority, s Subject) *x509.Certificate {
	t.Helper()
	r, err := transport.NewRequest("an id that is believed by nobody")
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.Sign(r.CSR, s, now)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

func parse(t testing.TB, chainPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(chainPEM)
	if block == nil {
		t.Fatal("no certificate")
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestSignBelievesNothingOfTheRequest(t *testing.T) {
	a, err := NewAuthority("ours", now)
	if err != nil {
		t.Fatal(err)
	}
	c := signed(t, a, Subject{Name: "n1", Role: transport.RoleWorker})
	if c.Subject.CommonName != "n1" || !slices.Equal(c.Subject.OrganizationalUnit, []string{transport.RoleWorker}) || c.IsCA {
		t.Errorf("subject: %v, authority: %v", c.Subject, c.IsCA)
	}
	if c.NotAfter.Sub(now) != CertificateLife {
		t.Errorf("life: %v", c.NotAfter.Sub(now))
	}
	admin := signed(t, a, Subject{Name: "ada", Role: transport.RoleAdmin})
	if slices.Contains(admin.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || len(admin.DNSNames) > 0 {
		t.Errorf("an administrator can pass as a server: %v, %v", admin.ExtKeyUsage, admin.DNSNames)
	}
	r, err := transport.NewRequest("n1")
	if err != nil {
		t.Fatal(err)
	}
	r.CSR[len(r.CSR)-1] ^= 1
	if _, err := a.Sign(r.CSR, Subject{Name: "n1", Role: transport.RoleWorker}, now); err == nil {
		t.Error("a request that its key did not sign was taken")
	}
}

// A worker that asks for the names of others gets none by which anybody would take it for them, however it writes them.
func TestSignGivesNoNamesOfOthers(t *testing.T) {
	a, err := NewAuthority("ours", now)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{
		transport.NameManager, "Manager.Baton.Internal", "manager.baton.INTERNAL", transport.NameManager + ".", "*.baton.internal", "*.baton.INTERNAL",
		"*.node.baton.Internal", transport.NodeName("n2"), strings.ToUpper(transport.NodeName("n2")), "internal", "*", "*.INTERNAL",
	} {
		c := signed(t, a, Subject{Name: "n1", Role: transport.RoleWorker, Hosts: []string{host, "h1.example.com", "10.0.0.7"}})
		for _, name := range []string{transport.NameManager, transport.NodeName("n2")} {
			if c.VerifyHostname(name) == nil {
				t.Errorf("who asked for %q passes as %s", host, name)
			}
		}
		for _, name := range []string{transport.NodeName("n1"), "h1.example.com", "10.0.0.7", "localhost"} {
			if err := c.VerifyHostname(name); err != nil {
				t.Errorf("who asked for %q does not pass as %s: %v", host, name, err)
			}
		}
	}
	if c := signed(t, a, Subject{Name: "n1", Role: transport.RoleManager}); c.VerifyHostname(transport.NameManager) != nil {
		t.Error("a manager does not pass as one")
	}
}

func newKeeper(t testing.TB) *Keeper {
	t.Helper()
	s, err := NewSealer([]byte(strings.Repeat("k", 32)))
	if err != nil {
		t.Fatal(err)
	}
	return NewKeeper(s)
}

func TestKeptAuthoritySigns(t *testing.T) {
	k := newKeeper(t)
	o, err := k.Found("ours", now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := k.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	c := signed(t, a, Subject{Name: "n1", Role: transport.RoleWorker})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(RootsPEM(o))
	if _, err := c.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("the cluster does not trust its own certificate: %v", err)
	}
	other, err := NewSealer([]byte(strings.Repeat("x", 32)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewKeeper(other).Open(o); !errors.Is(err, ErrSealed) {
		t.Errorf("opened with another key: %v", err)
	}
}

func TestTokens(t *testing.T) {
	k := newKeeper(t)
	o, err := k.Found("ours", now)
	if err != nil {
		t.Fatal(err)
	}
	make := func(role string, expires time.Time) (*cluster.JoinToken, transport.Token) {
		t.Helper()
		stored, err := k.NewToken(role, cluster.NewID(nil), now, expires)
		if err != nil {
			t.Fatal(err)
		}
		shown, err := k.Token(stored, o)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fmt.Sprintf("%s %x", stored.Sealed, stored.Hash), string(shown.Secret)) {
			t.Error("what is stored shows the secret")
		}
		return stored, shown
	}
	worker, w := make(transport.RoleWorker, time.Time{})
	manager, m := make(transport.RoleManager, now.Add(time.Hour))
	_, gone := make(transport.RoleManager, time.Time{})
	all := []*cluster.JoinToken{worker, manager}
	for name, c := range map[string]struct {
		secret []byte
		at     time.Time
		role   string
		err    error
	}{
		"worker":                {w.Secret, now, transport.RoleWorker, nil},
		"worker, much later":    {w.Secret, now.AddDate(9, 0, 0), transport.RoleWorker, nil},
		"manager":               {m.Secret, now, transport.RoleManager, nil},
		"just before its end":   {m.Secret, now.Add(time.Hour - 1), transport.RoleManager, nil},
		"at its end":            {m.Secret, now.Add(time.Hour), "", ErrTokenExpired},
		"rotated":               {gone.Secret, now, "", ErrToken},
		"none":                  {nil, now, "", ErrToken},
		"the beginning of one":  {w.Secret[:8], now, "", ErrToken},
		"the stored hash of it": {worker.Hash, now, "", ErrToken},
	} {
		if role, err := Check(c.secret, all, c.at); role != c.role || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %v, want %q, %v", name, role, err, c.role, c.err)
		}
	}
}

// node is a node of the rotation's model: whom it trusts, and who signed its certificate.
type node struct {
	trusts map[string]bool
	issuer string
}

// trust is the set of authorities that a node trusts which was told o.
func trust(o *cluster.Authority) map[string]bool {
	m := make(map[string]bool)
	for _, r := range o.Roots {
		m[HashText(r)] = true
	}
	return m
}

// Whatever order nodes follow in, and however often the authority is rotated, any two nodes trust each other at any time, and
// in the end all are of the last authority.
func TestRotationNeverParts(t *testing.T) {
	k := newKeeper(t)
	rapid.Check(t, func(t *rapid.T) {
		o, err := k.Found("ours", now)
		if err != nil {
			t.Fatal(err)
		}
		nodes := make([]*node, rapid.IntRange(1, 5).Draw(t, "nodes"))
		seen := make([]*cluster.Authority, len(nodes)) // as each node was told last
		for i := range nodes {
			nodes[i], seen[i] = &node{trusts: trust(o), issuer: IssuerHash(o)}, o
		}
		check := func() {
			for i, a := range nodes {
				for j, b := range nodes {
					if !a.trusts[b.issuer] {
						t.Fatalf("node %d does not trust node %d any more", i, j)
					}
				}
			}
		}
		step := func() bool {
			var list []*cluster.Node
			for i, n := range nodes {
				list = append(list, &cluster.Node{Description: cluster.NodeDescription{Roots: RootsHash(seen[i]), Issuer: n.issuer}})
			}
			next := k.Step(o, list, now)
			if next != nil {
				o = next
			}
			return next != nil
		}
		follow := func(i int) {
			nodes[i].trusts, seen[i] = trust(o), o
			check()
			nodes[i].issuer = IssuerHash(o)
			check()
		}
		begun := 0
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				next, err := k.Begin(o, "ours", now)
				if (err != nil) != (o.Next != nil) {
					t.Fatalf("Begin: %v", err)
				}
				if err == nil && begun < 3 { // making keys takes time
					o, begun = next, begun+1
				}
			case 1:
				step()
			default:
				follow(rapid.IntRange(0, len(nodes)-1).Draw(t, "node"))
			}
			check()
		}
		for range 3 {
			for i := range nodes {
				follow(i)
			}
			step()
		}
		if o.Next != nil || len(o.Roots) != 1 || IssuerHash(o) != HashText(o.Roots[0]) || step() {
			t.Fatalf("the rotation does not end: %d roots", len(o.Roots))
		}
	})
}

// A rotation changes nothing of the object that it started from.
func TestRotationCopies(t *testing.T) {
	k := newKeeper(t)
	o, err := k.Found("ours", now)
	if err != nil {
		t.Fatal(err)
	}
	o.Roots = append(make([][]byte, 0, 4), o.Roots...) // room for somebody else's write
	before := RootsHash(o)
	a, err := k.Begin(o, "ours", now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.Begin(o, "ours", now)
	if err != nil {
		t.Fatal(err)
	}
	if RootsHash(o) != before || RootsHash(a) == RootsHash(b) {
		t.Error("two rotations share their roots")
	}
	if _, err := k.Begin(a, "ours", now); err == nil {
		t.Error("a second rotation began while one is under way")
	}
}
