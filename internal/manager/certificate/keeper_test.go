package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"baton/internal/manager/consensus"
	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/test/pebble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waitMax bounds every wait of these tests.
const waitMax = 60 * time.Second

// leader is a cluster's store with terms of leadership.
type leader struct {
	t      *testing.T
	store  *store.Store
	log    *consensus.Memory
	sealer *identity.Sealer
}

func newLeader(t *testing.T, acme *cluster.ACME) *leader {
	l := &leader{t: t, store: store.New()}
	l.log = consensus.NewMemory(l.store)
	t.Cleanup(func() { _ = l.log.Close() })
	var err error
	if l.sealer, err = identity.NewSealer(make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	l.put(&cluster.Settings{Meta: cluster.Meta{ID: cluster.SettingsID}, Name: "test", Level: cluster.LevelTraffic, ACME: acme})
	return l
}

func (l *leader) put(objects ...cluster.Object) {
	l.t.Helper()
	var txn store.Txn
	for _, o := range objects {
		txn.Put(o)
	}
	if _, err := l.log.Propose(l.t.Context(), txn); err != nil {
		l.t.Fatal(err)
	}
}

// rules gives the only service these rules, and its revision these secrets.
func (l *leader) rules(secrets map[string]cluster.ID, rules ...spec.Ingress) {
	l.t.Helper()
	rev := &cluster.Revision{Meta: cluster.Meta{ID: cluster.NewID(nil)}, Service: cluster.ID{9}, Number: 1, Secrets: secrets, Spec: spec.Service{Name: "web", Ingress: rules}}
	svc := &cluster.Service{Meta: cluster.Meta{ID: cluster.ID{9}}, Name: "web", StackName: "shop"}
	if old, ok := store.Get[*cluster.Service](l.store.Snapshot(), svc.ID); ok {
		svc = cluster.Copy(old)
		prev, _ := store.Get[*cluster.Revision](l.store.Snapshot(), old.Revision)
		rev.Number = prev.Number + 1
	}
	svc.Revision = rev.ID
	l.put(rev, svc)
}

// term leads until the returned function is called.
func (l *leader) term() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	k := New(Config{
		Store: l.store, Log: l.log, Sealer: l.sealer, Logger: slog.New(slog.NewTextHandler(l.t.Output(), nil)), UserAgent: "test",
		Acked: func() cluster.Version { return l.store.Snapshot().Version() },
	})
	go func() { defer close(done); k.Run(ctx) }()
	end = func() { cancel(); <-done }
	l.t.Cleanup(end)
	return end
}

func (l *leader) certificate(host string) (*cluster.Certificate, bool) {
	return store.Get[*cluster.Certificate](l.store.Snapshot(), cluster.CertificateID(host))
}

// until waits for a host's certificate to be as wanted.
func (l *leader) until(what, host string, ok func(c *cluster.Certificate) bool) *cluster.Certificate {
	l.t.Helper()
	for deadline := time.Now().Add(waitMax); ; time.Sleep(5 * time.Millisecond) {
		c, found := l.certificate(host)
		if found && ok(c) {
			return c
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("waited %v: %s; the certificate is %+v", waitMax, what, c)
		}
	}
}

func has(c *cluster.Certificate) bool { return len(c.Chain) > 0 && !c.Renew && !c.Revoke }

func (l *leader) pair(c *cluster.Certificate) tls.Certificate {
	l.t.Helper()
	key, err := l.sealer.Open(c.Sealed, cluster.KindCertificate, c.ID)
	if err != nil {
		l.t.Fatal(err)
	}
	p, err := tls.X509KeyPair(c.Chain, key)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

func (l *leader) events(kind string) (n int, last string) {
	for e := range store.All[*cluster.Event](l.store.Snapshot()) {
		if e.Type == kind {
			n, last = n+1, e.Message
		}
	}
	return n, last
}

// The cluster's own authority signs for exact and wildcard hosts; it is made once, and a host without a rule has no certificate.
func TestInternal(t *testing.T) {
	l := newLeader(t, nil)
	own := spec.IngressTLS{From: spec.TLSInternal}
	l.rules(nil, spec.Ingress{Host: "a.test", TLS: own}, spec.Ingress{Host: "*.w.test", TLS: own}, spec.Ingress{Host: "plain.test"})
	end := l.term()
	first := l.until("a.test has one", "a.test", has)
	ca, ok := store.Get[*cluster.Certificate](l.store.Snapshot(), cluster.ServiceAuthorityID)
	if !ok {
		t.Fatal("there is no authority")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Chain)
	for host, name := range map[string]string{"a.test": "a.test", "*.w.test": "x.w.test"} {
		c := l.until("there is one", host, has)
		if _, err := l.pair(c).Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Error(err)
		}
		if strings.Contains(string(c.Sealed), "PRIVATE KEY") {
			t.Error("the key is stored in clear")
		}
	}
	if _, ok := l.certificate("plain.test"); ok {
		t.Error("a rule without TLS has a certificate")
	}
	end()
	l.term() // another leader
	again := cluster.Copy(first)
	again.Renew = true
	l.put(again)
	second := l.until("there is another one", "a.test", func(c *cluster.Certificate) bool { return has(c) && c.Serial != first.Serial })
	if _, err := l.pair(second).Leaf.Verify(x509.VerifyOptions{DNSName: "a.test", Roots: roots}); err != nil {
		t.Error("another authority signed: ", err)
	}
	l.rules(nil, spec.Ingress{Host: "*.w.test", TLS: own})
	for deadline := time.Now().Add(waitMax); ; time.Sleep(5 * time.Millisecond) {
		if _, ok := l.certificate("a.test"); !ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the certificate of a rule that has gone is kept")
		}
	}
}

// Below its level a cluster stores no certificate: a manager of an older version could not read it.
func TestNothingBelowTheLevel(t *testing.T) {
	l := newLeader(t, nil)
	settings, _ := l.store.Snapshot().Settings()
	old := cluster.Copy(settings)
	old.Level = cluster.LevelAutoscale
	l.put(old)
	l.rules(nil, spec.Ingress{Host: "a.test", TLS: spec.IngressTLS{From: spec.TLSInternal}})
	k := New(Config{Store: l.store, Log: l.log, Sealer: l.sealer, Logger: slog.New(slog.DiscardHandler)})
	if err := k.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.certificate("a.test"); ok {
		t.Error("a certificate was stored")
	}
}

// A stack's own certificate is taken if it fits; a later one that does not leaves the present one in place, and says why.
func TestOwn(t *testing.T) {
	l := newLeader(t, nil)
	a, err := newAuthority("elsewhere", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret := func(text []byte) cluster.ID {
		id := cluster.NewID(nil)
		sealed, err := l.sealer.Seal(text, cluster.KindSecret, id)
		if err != nil {
			t.Fatal(err)
		}
		l.put(&cluster.Secret{Meta: cluster.Meta{ID: id}, Name: id.String(), Number: 1, Sealed: sealed})
		return id
	}
	p, err := a.sign("a.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	q, err := a.sign("a.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	rule := spec.Ingress{Host: "a.test", TLS: spec.IngressTLS{From: spec.TLSSecret, Cert: "c", Key: "k"}}
	l.rules(map[string]cluster.ID{"c": secret(p.chain), "k": secret(p.key)}, rule)
	l.term()
	good := l.until("it is taken", "a.test", has)
	l.rules(map[string]cluster.ID{"c": secret(q.chain), "k": secret(p.key)}, rule) // of two pairs
	bad := l.until("it is refused", "a.test", func(c *cluster.Certificate) bool { return c.Error != "" })
	if string(bad.Chain) != string(good.Chain) || l.pair(bad).Leaf.SerialNumber.Cmp(p.leaf.SerialNumber) != 0 {
		t.Error("the certificate that was in place is gone")
	}
	if n, said := l.events("certificate.failed"); n != 1 || !strings.Contains(said, "secrets c and k") {
		t.Errorf("%d events tell of it, %q; want one", n, said)
	}
	l.rules(map[string]cluster.ID{"c": secret(q.chain), "k": secret(q.key)}, rule)
	l.until("the next one is taken", "a.test", func(c *cluster.Certificate) bool { return c.Error == "" && string(c.Chain) == string(q.chain) })
	if _, err := Check(p.chain, p.key, "b.test", time.Now()); err == nil {
		t.Error("a certificate of another host is taken")
	}
	if _, err := Check(p.chain, p.key, "a.test", time.Now().Add(2*internalLife)); err == nil {
		t.Error("a certificate that has ended is taken")
	}
}

// edges answers challenges as the edges do: by what is stored.
func (l *leader) edges() (port int) {
	l.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		if c, ok := l.certificate(host); ok {
			if answer, ok := c.Challenges[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]; ok {
				_, _ = w.Write([]byte(answer))
				return
			}
		}
		http.NotFound(w, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	l.t.Cleanup(func() { _ = srv.Close(); <-done })
	return ln.Addr().(*net.TCPAddr).Port
}

// freePorts are ports that nobody has in this moment.
func freePorts(t *testing.T) (ports [3]int) {
	t.Helper()
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

// authority starts an ACME server whose challenges the leader's edges answer.
func (l *leader) authority() *pebble.Server {
	l.t.Helper()
	s := pebble.Start(l.t, pebble.Config{IP: "127.0.0.1", Ports: freePorts(l.t), Answer: "127.0.0.1", HTTPPort: l.edges()})
	settings, _ := l.store.Snapshot().Settings()
	next := cluster.Copy(settings)
	next.ACME = &cluster.ACME{Directory: s.Directory, Roots: s.Roots}
	l.put(next)
	return s
}

// A real authority issues once; another leader asks for nothing; renewal and revocation give another certificate each.
func TestACME(t *testing.T) {
	l := newLeader(t, nil)
	s := l.authority()
	l.rules(nil, spec.Ingress{Host: "a.test", TLS: spec.IngressTLS{From: spec.TLSAuto}})
	end := l.term()
	first := l.until("it is obtained", "a.test", has)
	if err := l.pair(first).Leaf.VerifyHostname("a.test"); err != nil {
		t.Error(err)
	}
	if len(first.Challenges) > 0 {
		t.Errorf("challenges are left: %v", first.Challenges)
	}
	end()
	end = l.term()
	again := cluster.Copy(first)
	again.Renew = true
	l.put(again)
	second := l.until("it is renewed", "a.test", func(c *cluster.Certificate) bool { return has(c) && c.Serial != first.Serial })
	if n := s.Orders(); n != 2 {
		t.Errorf("%d orders were made, want two: for another leader none", n)
	}
	again = cluster.Copy(second)
	again.Revoke = true
	l.put(again)
	l.until("there is another one", "a.test", func(c *cluster.Certificate) bool { return has(c) && c.Serial != second.Serial })
	if n, _ := l.events("certificate.revoked"); n != 1 {
		t.Errorf("%d events tell of the revocation, want one", n)
	}
	if b, _ := pem.Decode(second.Chain); b == nil {
		t.Error("the chain is no PEM")
	}
	end()
}

// A leader that goes in the middle of an order leaves it to the next one, and one certificate comes of it.
func TestLeaderGoesDuringAnOrder(t *testing.T) {
	l := newLeader(t, nil)
	s := l.authority()
	l.rules(nil, spec.Ingress{Host: "a.test", TLS: spec.IngressTLS{From: spec.TLSAuto}})
	end := l.term()
	l.until("a challenge is set", "a.test", func(c *cluster.Certificate) bool { return len(c.Challenges) > 0 })
	end()
	l.term()
	l.until("it is obtained", "a.test", has)
	if n, _ := l.events("certificate.obtained"); n != 1 {
		t.Errorf("%d events tell of a certificate, want one; %d orders", n, s.Orders())
	}
}

// What an authority refuses is told, and tried again later only.
func TestAuthorityThatRefuses(t *testing.T) {
	l := newLeader(t, &cluster.ACME{Directory: "https://127.0.0.1:1/dir"})
	l.rules(nil, spec.Ingress{Host: "a.test", TLS: spec.IngressTLS{From: spec.TLSAuto}})
	l.term()
	c := l.until("it has failed", "a.test", func(c *cluster.Certificate) bool { return c.Error != "" })
	if c.Tries != 1 || !c.Retry.After(time.Now()) || !strings.Contains(c.Error, "127.0.0.1:1") {
		t.Errorf("got %d tries, the next at %v, error %q", c.Tries, c.Retry, c.Error)
	}
	if n, _ := l.events("certificate.failed"); n != 1 {
		t.Errorf("%d events tell of it, want one", n)
	}
}
