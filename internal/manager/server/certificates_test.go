package server

import (
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// tlsStack is a stack whose service has a rule with TLS.
func tlsStack(name, path string, from spec.TLSSource) spec.Stack {
	s := stack(name)
	s.Services[0].Ingress = []spec.Ingress{{Host: "a.test", Path: path, Port: 80, TLS: spec.IngressTLS{From: from}}}
	return s
}

// Edges of an older version would serve a rule with TLS as plain HTTP.
func TestTLSNeedsItsLevel(t *testing.T) {
	for level, ok := range map[cluster.Level]bool{cluster.LevelAutoscale: false, cluster.LevelTraffic: true} {
		h := newHarness(t)
		h.at(t, level)
		_, err := h.srv.up(t.Context(), api.UpRequest{Stack: tlsStack("shop", "/", spec.TLSInternal)})
		if ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "x-ingress[0].tls needs feature level 5") {
			t.Errorf("at level %d: got %v", level, err)
		}
		if _, err = h.srv.setACME(t.Context(), api.ACME{Email: "ops@example.com"}); ok != (err == nil) {
			t.Errorf("at level %d: the authority is chosen with %v", level, err)
		}
	}
}

// A host has one certificate, and where rules with TLS are served nothing else is.
func TestTLSConflicts(t *testing.T) {
	publishes := stack("other")
	publishes.Services[0].Ports = []spec.Port{{Target: 80, Published: spec.IngressPortTLS, Protocol: "tcp"}}
	for name, tc := range map[string]struct {
		second spec.Stack
		want   string
	}{
		"another source": {tlsStack("other", "/x", spec.TLSAuto), "a host has one certificate"},
		"none":           {tlsStack("other", "/x", ""), "a host has one certificate"},
		"the port":       {publishes, "port 443/tcp is where ingress rules are served"},
		"the same":       {tlsStack("other", "/x", spec.TLSInternal), ""},
	} {
		h := newHarness(t)
		h.at(t, cluster.LevelTraffic)
		if _, err := h.srv.up(t.Context(), api.UpRequest{Stack: tlsStack("shop", "/", spec.TLSInternal)}); err != nil {
			t.Fatal(err)
		}
		_, err := h.srv.up(t.Context(), api.UpRequest{Stack: tc.second})
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, tc.want)
		}
	}
}

// Only certificates that somebody can make anew are asked for, and a stack's own never.
func TestAskForCertificates(t *testing.T) {
	h := newHarness(t)
	h.at(t, cluster.LevelTraffic)
	var txn store.Txn
	for host, source := range map[string]spec.TLSSource{"auto.test": spec.TLSAuto, "in.test": spec.TLSInternal, "own.test": spec.TLSSecret} {
		txn.Put(&cluster.Certificate{
			Meta: cluster.Meta{ID: cluster.CertificateID(host)}, Host: host, Source: source, Chain: []byte("chain"), Sealed: []byte("sealed"),
			NotAfter: time.Now().Add(time.Hour), Tries: 3, Retry: time.Now().Add(time.Hour),
		})
	}
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		host   string
		revoke bool
		want   string
	}{
		{"auto.test", false, ""}, {"AUTO.test", true, ""}, {"in.test", false, ""}, {"in.test", true, "keeps no list"},
		{"own.test", false, "the stack's own"}, {"own.test", true, "the stack's own"}, {"none.test", false, "no ingress rule"},
	} {
		err := h.srv.askCertificate(t.Context(), tc.host, tc.revoke)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s, revoke %v: got %v, want %q in it", tc.host, tc.revoke, err, tc.want)
		}
	}
	c, _ := store.Get[*cluster.Certificate](h.srv.cfg.Store.Snapshot(), cluster.CertificateID("auto.test"))
	if !c.Renew || !c.Revoke || !c.Retry.IsZero() || c.Tries != 0 {
		t.Errorf("the leader is told %+v", c)
	}
	if _, err := h.srv.setACME(t.Context(), api.ACME{Directory: "http://ca.test/dir"}); err == nil {
		t.Error("a directory without TLS is taken")
	}
}
