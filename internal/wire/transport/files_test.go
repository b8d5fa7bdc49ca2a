package transport_test

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"baton/internal/durable"
	"baton/internal/manager/identity"
	"baton/internal/wire/transport"
)

// authority is a cluster's, for tests.
func authority(t testing.TB, name string) *identity.Authority {
	t.Helper()
	a, err := identity.NewAuthority(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func roots(list ...*identity.Authority) []byte {
	var out []byte
	for _, a := range list {
		out = append(out, pemOf(a.Certificate())...)
	}
	return out
}

// install gives f a certificate of a.
func install(t testing.TB, f *transport.Files, a *identity.Authority, s identity.Subject, trusted ...*identity.Authority) error {
	t.Helper()
	r, err := transport.NewRequest(s.Name)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(r.CSR, s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return f.Install(r, cert, roots(trusted...))
}

func openFiles(t testing.TB, dir string) *transport.Files {
	t.Helper()
	f, err := transport.OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var errCrash = errors.New("the power is gone")

// crashing lets n writes pass.
func crashing(n int) func(string, []byte, fs.FileMode) error {
	return func(path string, data []byte, mode fs.FileMode) error {
		if n--; n < 0 {
			return errCrash
		}
		return durable.Write(path, data, mode)
	}
}

// A crash in the middle of Install leaves a certificate that has its key, whichever step it hits, and however often it
// happens in a row; and what was left is no obstacle to the next Install.
func TestInstallSurvivesCrashesAtEveryStep(t *testing.T) {
	a := authority(t, "one")
	const steps = 4
	for first := range steps + 1 {
		for second := range steps + 1 {
			dir := filepath.Join(t.TempDir(), "identity")
			subject := identity.Subject{Name: "n1", Role: transport.RoleWorker}
			if err := install(t, openFiles(t, dir), a, subject, a); err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{first, second} {
				f := openFiles(t, dir)
				f.Saving(crashing(n))
				if err := install(t, f, a, subject, a); (err != nil) != (n < steps) || err != nil && !errors.Is(err, errCrash) {
					t.Fatalf("crash at %d: Install gave %v", n, err)
				}
			}
			f := openFiles(t, dir)
			if _, err := f.Certificate(); err != nil {
				t.Errorf("crashes after %d and %d writes: %v", first, second, err)
			}
			if err := install(t, f, a, subject, a); err != nil {
				t.Errorf("crashes after %d and %d writes, then Install: %v", first, second, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "node.key.next")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the waiting key is left behind: %v", err)
			}
		}
	}
}

// A crash in the middle of the very first Install leaves a machine without a certificate, or one with all of it.
func TestFirstInstallSurvivesCrashes(t *testing.T) {
	a := authority(t, "one")
	for n := range 4 {
		dir := filepath.Join(t.TempDir(), "identity")
		f := openFiles(t, dir)
		f.Saving(crashing(n))
		if err := install(t, f, a, identity.Subject{Name: "n1", Role: transport.RoleWorker}, a); !errors.Is(err, errCrash) {
			t.Fatalf("crash at %d: %v", n, err)
		}
		_, err := openFiles(t, dir).Certificate()
		if whole := n == 3; whole != (err == nil) || !whole && !errors.Is(err, transport.ErrNoCertificate) {
			t.Errorf("crash after %d writes: %v", n, err)
		}
	}
}

func TestDamagedCredentialsAreAnError(t *testing.T) {
	a := authority(t, "one")
	for name, damage := range map[string]func(dir string) error{
		"roots are missing":       func(d string) error { return os.Remove(filepath.Join(d, "roots.crt")) },
		"roots are empty":         func(d string) error { return os.WriteFile(filepath.Join(d, "roots.crt"), nil, 0o600) },
		"the key is missing":      func(d string) error { return os.Remove(filepath.Join(d, "node.key")) },
		"the certificate is none": func(d string) error { return os.WriteFile(filepath.Join(d, "node.crt"), []byte("x"), 0o600) },
	} {
		dir := filepath.Join(t.TempDir(), "identity")
		if err := install(t, openFiles(t, dir), a, identity.Subject{Name: "n1", Role: transport.RoleWorker}, a); err != nil {
			t.Fatal(err)
		}
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := transport.OpenFiles(dir); err == nil || !strings.Contains(err.Error(), "join again") {
			t.Errorf("%s: got %v, want an error with the mend", name, err)
		}
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	a := authority(t, "one")
	if err := install(t, openFiles(t, dir), a, identity.Subject{Name: "n1", Role: transport.RoleWorker}, a); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"": 0o700, "node.key": 0o600} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%q: %v, %v, want %v", name, st.Mode(), err, want)
		}
	}
}

func TestInstallRefusesWhatDoesNotFit(t *testing.T) {
	a := authority(t, "one")
	f := openFiles(t, filepath.Join(t.TempDir(), "identity"))
	if err := install(t, f, a, identity.Subject{Name: "n1", Role: transport.RoleWorker}, a); err != nil {
		t.Fatal(err)
	}
	before, err := f.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	mine, other := request(t), request(t)
	cert, err := a.Sign(other.CSR, identity.Subject{Name: "n1", Role: transport.RoleWorker}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Install(mine, cert, roots(a)); err == nil {
		t.Error("a certificate for another key was installed")
	}
	if err := f.Install(other, cert, []byte("no roots")); err == nil {
		t.Error("roots that are none were installed")
	}
	if err := f.InstallRoots(nil); err == nil {
		t.Error("no roots at all were installed")
	}
	if after, err := f.Certificate(); err != nil || !equalChain(before, after) {
		t.Errorf("after refusals: another certificate, %v", err)
	}
}

func request(t testing.TB) transport.Request {
	t.Helper()
	r, err := transport.NewRequest("n1")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func equalChain(a, b *tls.Certificate) bool {
	return len(a.Certificate) == len(b.Certificate) && string(a.Certificate[0]) == string(b.Certificate[0])
}
