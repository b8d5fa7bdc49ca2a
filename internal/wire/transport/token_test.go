package transport_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"baton/internal/manager/identity"
	"baton/internal/wire/transport"

	"crypto/x509"
)

func token(role string, a *identity.Authority) transport.Token {
	return transport.Token{Role: role, Fingerprint: transport.Fingerprint(a.Certificate()), Secret: bytes.Repeat([]byte{7}, transport.TokenSecretBytes)}
}

func TestTokensReadAsTheyWereWritten(t *testing.T) {
	want := token(transport.RoleWorker, authority(t, "ours"))
	got, address, err := transport.ParseJoin(" " + want.String() + "@10.0.0.1\n")
	if err != nil || got.String() != want.String() || address != "10.0.0.1:7701" {
		t.Errorf("got %q at %q, %v", got, address, err)
	}
	if _, address, err = transport.ParseJoin(want.String() + "@[fd00::1]"); err != nil || address != "[fd00::1]:7701" {
		t.Errorf("IPv6: got %q, %v", address, err)
	}
}

// What is wrong with a token is told without repeating it.
func TestBadTokensAreNotRepeated(t *testing.T) {
	good := token(transport.RoleManager, authority(t, "ours")).String()
	for _, bad := range []string{good[:len(good)-3], strings.Replace(good, "manager", "admin", 1), "x" + good, good + "-x", strings.ToUpper(good)} {
		_, _, err := transport.ParseJoin(bad + "@h")
		if err == nil || strings.Contains(err.Error(), bad[20:]) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseJoin(f *testing.F) {
	f.Add("baton-worker-a-b@h:1")
	f.Fuzz(func(t *testing.T, s string) {
		if token, _, err := transport.ParseJoin(s); err == nil {
			if again, err := transport.ParseToken(token.String()); err != nil || again.String() != token.String() {
				t.Errorf("%q reads as %q, and that as %q, %v", s, token, again, err)
			}
		}
	})
}

// A token opens the way only to a manager of the cluster that it is for.
func TestVerifyManager(t *testing.T) {
	ours, theirs := authority(t, "ours"), authority(t, "theirs")
	chain := func(a *identity.Authority, role string, extra ...*identity.Authority) []*x509.Certificate {
		t.Helper()
		cert, err := credentials(t, a, "m1", role).Certificate()
		if err != nil {
			t.Fatal(err)
		}
		var out []*x509.Certificate
		for _, der := range cert.Certificate {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c)
		}
		for _, e := range extra {
			c, err := x509.ParseCertificate(e.Certificate())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c)
		}
		return out
	}
	mine := token(transport.RoleWorker, ours)
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		ok    bool
	}{
		"a manager":                        {chain(ours, transport.RoleManager), true},
		"a worker of the cluster":          {chain(ours, transport.RoleWorker), false},
		"another cluster":                  {chain(theirs, transport.RoleManager), false},
		"another one that shows our roots": {chain(theirs, transport.RoleManager, ours), false},
		"nobody":                           {nil, false},
	} {
		if err := mine.VerifyManager(c.chain); (err == nil) != c.ok || err != nil && !errors.Is(err, transport.ErrOtherCluster) {
			t.Errorf("%s: got %v, want success: %v", name, err, c.ok)
		}
	}
}
