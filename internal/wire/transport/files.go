package transport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"baton/internal/durable"
)

// The files of a machine's credentials, all in one directory that only its owner may enter.
const (
	keyFile   = "node.key" // the private key; it never leaves the machine
	certFile  = "node.crt" // the certificate, then that of the authority that signed it
	rootsFile = "roots.crt"
	keyNext   = "node.key.next" // the key of a certificate that is being installed
)

// ErrNoCertificate means that the machine has not joined a cluster.
var ErrNoCertificate = errors.New("this machine has no certificate: it has not joined a cluster")

// Files are credentials kept on disk:
//
//	DIR/node.key   DIR/node.crt   DIR/roots.crt
//
// A new certificate comes with a new key. Both are written to the side and renamed, the key first; a crash in between leaves a
// pair that does not match, which Open tells from a good one and mends with the copy beside it (node.key.next).
type Files struct {
	dir   string
	save  func(path string, data []byte, mode fs.FileMode) error // durable.Write; tests end it in the middle
	state atomic.Pointer[loaded]
}

// loaded is one consistent set.
type loaded struct {
	cert  *tls.Certificate
	roots *x509.CertPool
	pem   []byte // of the roots
}

var _ Credentials = (*Files)(nil)

// OpenFiles reads what is in dir, making the directory when it is missing. A machine without a certificate is no error.
func OpenFiles(dir string) (*Files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	f := &Files{dir: dir, save: durable.Write}
	if _, err := os.Stat(filepath.Join(dir, certFile)); errors.Is(err, fs.ErrNotExist) {
		f.state.Store(&loaded{roots: x509.NewCertPool()})
		return f, nil
	}
	if err := f.load(); err != nil {
		return nil, fmt.Errorf("credentials in %s: %w: restore them, or let the machine join again", dir, err)
	}
	return f, nil
}

func (f *Files) load() error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(f.dir, certFile), filepath.Join(f.dir, keyFile))
	if err != nil {
		if cert, err = f.mend(err); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(filepath.Join(f.dir, rootsFile))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return errors.New("no authority in " + rootsFile)
	}
	f.state.Store(&loaded{cert: &cert, roots: roots, pem: data})
	return nil
}

// mend finishes an Install that ended after its certificate was written and before its key was: the key waits beside the old
// one. It takes its place at once, because the next Install writes over the waiting one. cause is why the pair does not fit.
func (f *Files) mend(cause error) (tls.Certificate, error) {
	next := filepath.Join(f.dir, keyNext)
	cert, err := tls.LoadX509KeyPair(filepath.Join(f.dir, certFile), next)
	if err != nil {
		return cert, cause
	}
	key, err := os.ReadFile(next)
	if err != nil {
		return cert, err
	}
	return cert, errors.Join(f.write(keyFile, key), os.Remove(next))
}

// Certificate implements Credentials.
func (f *Files) Certificate() (*tls.Certificate, error) {
	if c := f.state.Load().cert; c != nil {
		return c, nil
	}
	return nil, ErrNoCertificate
}

// Roots implements Credentials.
func (f *Files) Roots() *x509.CertPool { return f.state.Load().roots }

// RootsPEM are the certificates of the authorities that are trusted.
func (f *Files) RootsPEM() []byte { return f.state.Load().pem }

// Request is a new private key and the request for its certificate. Only the request leaves the machine.
type Request struct {
	key []byte // PEM
	CSR []byte // DER
}

// NewRequest makes a request for the node with the id.
func NewRequest(id string) (Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Request{}, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Request{}, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
	if err != nil {
		return Request{}, fmt.Errorf("request a certificate: %w", err)
	}
	return Request{key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), CSR: csr}, nil
}

// Install takes the certificate that came for a request, and the roots that are trusted from now on.
func (f *Files) Install(r Request, certPEM, rootsPEM []byte) error {
	if _, err := tls.X509KeyPair(certPEM, r.key); err != nil {
		return fmt.Errorf("the certificate does not fit its request: %w", err)
	}
	if err := f.writeRoots(rootsPEM); err != nil {
		return err
	}
	// The key waits beside the old one until the certificate is there: each of them is in one file with its match at any time.
	if err := f.write(keyNext, r.key); err != nil {
		return err
	}
	if err := f.write(certFile, certPEM); err != nil {
		return err
	}
	if err := f.write(keyFile, r.key); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(f.dir, keyNext)); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	return f.load()
}

// InstallRoots changes whom the machine trusts.
func (f *Files) InstallRoots(rootsPEM []byte) error {
	if bytes.Equal(rootsPEM, f.RootsPEM()) {
		return nil
	}
	if err := f.writeRoots(rootsPEM); err != nil {
		return err
	}
	return f.load()
}

func (f *Files) writeRoots(rootsPEM []byte) error {
	if !x509.NewCertPool().AppendCertsFromPEM(rootsPEM) {
		return errors.New("no certificate among the new roots")
	}
	return f.write(rootsFile, rootsPEM)
}

// write replaces a file so that a power cut leaves the old one or the whole new one.
func (f *Files) write(name string, data []byte) error {
	if err := f.save(filepath.Join(f.dir, name), data, 0o600); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	return nil
}
