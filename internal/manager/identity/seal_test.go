package identity

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"baton/internal/model/cluster"
)

func TestSealOpensOnlyAsWhatItWasSealedFor(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenSealer(dir)
	if err != nil {
		t.Fatal(err)
	}
	id, other := cluster.NewID(nil), cluster.NewID(nil)
	content := []byte("correct horse battery staple")
	sealed, err := s.Seal(content, cluster.KindSecret, id)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, content) {
		t.Error("the sealed form shows the content")
	}
	again, err := OpenSealer(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Open(sealed, cluster.KindSecret, id); err != nil || !bytes.Equal(got, content) {
		t.Errorf("after reopening the key: got %q, %v", got, err)
	}
	damaged := bytes.Clone(sealed)
	damaged[len(damaged)-1] ^= 1
	elsewhere, err := OpenSealer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() ([]byte, error){
		"another id":   func() ([]byte, error) { return s.Open(sealed, cluster.KindSecret, other) },
		"another kind": func() ([]byte, error) { return s.Open(sealed, cluster.KindConfig, id) },
		"another key":  func() ([]byte, error) { return elsewhere.Open(sealed, cluster.KindSecret, id) },
		"damaged":      func() ([]byte, error) { return s.Open(damaged, cluster.KindSecret, id) },
		"empty":        func() ([]byte, error) { return s.Open(nil, cluster.KindSecret, id) },
	} {
		if got, err := open(); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: got %q, %v, want ErrSealed", name, got, err)
		}
	}
}

func TestKeyFileMustBePrivate(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenSealer(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, keyFile)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSealer(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("world-readable key: got %v, want an error with the mend", err)
	}
}

func TestDigestTellsEqualContents(t *testing.T) {
	s, err := OpenSealer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Digest([]byte("a")), s.Digest([]byte("a"))) || bytes.Equal(s.Digest([]byte("a")), s.Digest([]byte("b"))) {
		t.Error("digests must be equal exactly for equal contents")
	}
}
