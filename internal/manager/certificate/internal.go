package certificate

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// internalLife is how long a certificate of the cluster's own authority is good.
	internalLife = 90 * 24 * time.Hour
	// skew is how far clocks may be apart.
	skew = time.Hour
)

// pair is a certificate with its chain and its key, both PEM.
type pair struct {
	chain, key []byte
	leaf       *x509.Certificate
}

// newPair reads a pair, and refuses one that does not fit together.
func newPair(chain, key []byte) (pair, error) {
	c, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return pair{}, err
	}
	return pair{chain, key, c.Leaf}, nil
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func serial() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126)) }

// newAuthority makes the cluster's authority for services. It signs for hosts only, not for further authorities.
func newAuthority(name string, now time.Time) (pair, error) {
	key, text, err := newKey()
	if err != nil {
		return pair{}, err
	}
	n, err := serial()
	if err != nil {
		return pair{}, err
	}
	t := &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{CommonName: "Baton services of " + name}, NotBefore: now.Add(-skew), NotAfter: now.Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return pair{}, err
	}
	return newPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), text)
}

// sign makes a certificate for a host.
func (a pair) sign(host string, now time.Time) (pair, error) {
	signer, err := tls.X509KeyPair(a.chain, a.key)
	if err != nil {
		return pair{}, err
	}
	key, text, err := newKey()
	if err != nil {
		return pair{}, err
	}
	n, err := serial()
	if err != nil {
		return pair{}, err
	}
	t := &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{CommonName: commonName(host)}, DNSNames: []string{host}, NotBefore: now.Add(-skew), NotAfter: now.Add(internalLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.leaf, key.Public(), signer.PrivateKey)
	if err != nil {
		return pair{}, err
	}
	return newPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), text)
}

// commonName is the host where it fits into the field; clients look at the names only.
func commonName(host string) string { return host[:min(len(host), 64)] }

// authority opens the cluster's authority for services, and makes it on first use.
func (k *Keeper) authority(ctx context.Context, settings *cluster.Settings) (pair, error) {
	if o, ok := store.Get[*cluster.Certificate](k.cfg.Store.Snapshot(), cluster.ServiceAuthorityID); ok {
		key, err := k.cfg.Sealer.Open(o.Sealed, cluster.KindCertificate, o.ID)
		if err != nil {
			return pair{}, err
		}
		return newPair(o.Chain, key)
	}
	a, err := newAuthority(settings.Name, time.Now())
	if err != nil {
		return pair{}, err
	}
	o := &cluster.Certificate{
		Meta: cluster.Meta{ID: cluster.ServiceAuthorityID, Created: time.Now()}, Source: spec.TLSInternal, Chain: a.chain,
		Issuer: a.leaf.Issuer.String(), Serial: fmt.Sprintf("%x", a.leaf.SerialNumber), NotBefore: a.leaf.NotBefore, NotAfter: a.leaf.NotAfter,
	}
	if o.Sealed, err = k.cfg.Sealer.Seal(a.key, cluster.KindCertificate, o.ID); err != nil {
		return pair{}, err
	}
	var t store.Txn
	t.Put(o)
	_, err = k.cfg.Log.Propose(ctx, t)
	return a, err
}

// internal makes a host's certificate with the cluster's authority.
func (k *Keeper) internal(ctx context.Context, settings *cluster.Settings, c *cluster.Certificate) error {
	now := time.Now()
	if !due(c, spec.TLSInternal, now) {
		return nil
	}
	a, err := k.authority(ctx, settings)
	if err != nil {
		return fmt.Errorf("the authority for services: %w", err)
	}
	p, err := a.sign(c.Host, now)
	if err != nil {
		return err
	}
	return k.put(ctx, c, spec.TLSInternal, p, nil)
}

// own takes the certificate that a stack has in its secrets.
func (k *Keeper) own(ctx context.Context, c *cluster.Certificate, w want) error {
	var contents [][]byte
	sum := sha256.New()
	for _, name := range []string{w.tls.Cert, w.tls.Key} {
		s, ok := store.Get[*cluster.Secret](k.cfg.Store.Snapshot(), w.rev.Secrets[name])
		if !ok {
			return fmt.Errorf("secret %s is gone", name)
		}
		content, err := k.cfg.Sealer.Open(s.Sealed, cluster.KindSecret, s.ID)
		if err != nil {
			return fmt.Errorf("secret %s: %w", name, err)
		}
		contents = append(contents, content)
		sum.Write(s.ID[:])
	}
	basis := sum.Sum(nil)
	if bytes.Equal(c.Basis, basis) {
		return nil
	}
	p, err := Check(contents[0], contents[1], w.host, time.Now())
	if err != nil {
		return k.fail(ctx, c, spec.TLSSecret, fmt.Sprintf("secrets %s and %s: %v", w.tls.Cert, w.tls.Key, err), basis)
	}
	return k.put(ctx, c, spec.TLSSecret, p, basis)
}

// Check reads a certificate with its chain and its key, and refuses what clients of a host would.
func Check(chain, key []byte, host string, now time.Time) (pair, error) {
	p, err := newPair(chain, key)
	if err != nil {
		return pair{}, fmt.Errorf("%w; put the certificate, its intermediates behind it, and its key there, as PEM", err)
	}
	name := host
	if suffix, wild := strings.CutPrefix(host, "*."); wild {
		name = "any." + suffix
	}
	if err := p.leaf.VerifyHostname(name); err != nil {
		return pair{}, err
	}
	if now.After(p.leaf.NotAfter) {
		return pair{}, errors.New("the certificate ended on " + p.leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return p, nil
}
