package process

import (
	"net"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"baton/internal/wire/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSelf(t *testing.T) *self {
	t.Helper()
	s, err := identify(t.TempDir(), "one")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is given is kept for the next start, and wins over what was kept.
func TestPlaceIsKept(t *testing.T) {
	s := newSelf(t)
	for _, c := range []struct{ bind, advertise, wantBind, wantListen string }{
		{":7800", "10.0.0.1", ":7800", "10.0.0.1:7800"},
		{"", "", ":7800", "10.0.0.1:7800"},
		{"10.0.0.2:7801", "", "10.0.0.2:7801", "10.0.0.1:7801"},
		{"", "fd00::1", "10.0.0.2:7801", "[fd00::1]:7801"},
		{"", "", "10.0.0.2:7801", "[fd00::1]:7801"},
	} {
		if err := s.place(c.bind, c.advertise); err != nil {
			t.Fatal(err)
		}
		if f := s.get(); f.Bind != c.wantBind || f.listen() != c.wantListen {
			t.Errorf("%q, %q: listens on %s, others reach %s; want %s, %s", c.bind, c.advertise, f.Bind, f.listen(), c.wantBind, c.wantListen)
		}
		again, err := identify(dirOf(s), "")
		if err != nil || again.get().Bind != c.wantBind || again.get().listen() != c.wantListen {
			t.Errorf("read again: %+v, %v", again.get(), err)
		}
	}
}

func dirOf(s *self) string { return strings.TrimSuffix(s.path, "/node.json") }

func TestBadPlacesAreRefused(t *testing.T) {
	for _, c := range []struct{ bind, advertise, says string }{
		{"10.0.0.1", "", "HOST:PORT"}, {":", "", "HOST:PORT"}, {":0", "", "from 1 to 65535"}, {":http", "", "from 1 to 65535"},
		{":70000", "", "from 1 to 65535"}, {":-1", "", "from 1 to 65535"},
		{":7701", "example.com", "IP address"}, {":7701", "0.0.0.0", "IP address"}, {":7701", "::", "IP address"}, {":7701", "10.0.0.1:7701", "IP address"},
	} {
		s := newSelf(t)
		if err := s.place(c.bind, c.advertise); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q, %q: got %v, want %q in it", c.bind, c.advertise, err, c.says)
		}
		if f := s.get(); f.Bind != "" || f.Advertise != "" {
			t.Errorf("%q, %q: kept %q, %q", c.bind, c.advertise, f.Bind, f.Advertise)
		}
	}
}

// Several nodes on one machine get ports of their own, and keep them.
func TestPortsAreChosenApart(t *testing.T) {
	a := newSelf(t)
	if err := a.place("", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", a.get().Bind)
	if err != nil {
		t.Skipf("somebody else took the port in between: %v", err)
	}
	defer l.Close()
	b := newSelf(t)
	if err := b.place("", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	pa, pb := int(a.get().port()), int(b.get().port())
	if pa == pb || pa < transport.PortDefault || pb < transport.PortDefault || pb >= transport.PortDefault+portTries {
		t.Errorf("ports %d and %d", pa, pb)
	}
	if err := a.place("", ""); err != nil || a.get().Bind != ":"+strconv.Itoa(pa) {
		t.Errorf("on its next start, while its port is in use: %s, %v", a.get().Bind, err)
	}
}
