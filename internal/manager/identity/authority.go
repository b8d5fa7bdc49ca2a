package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/transport"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// CertificateLife is how long a node's certificate is good; nodes renew it when a third of that is left.
	CertificateLife = 90 * 24 * time.Hour
	// skew is how far the clocks of two machines may be apart: a new certificate is good from that long ago.
	skew = time.Hour
)

// Authority signs the certificates of a cluster's machines.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewAuthority makes a self-signed authority for the named cluster.
func NewAuthority(name string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Baton cluster " + name},
		NotBefore: now.Add(-skew), NotAfter: now.Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	return &Authority{cert: cert, key: key}, nil
}

// LoadAuthority reads an authority from what Certificate and Key gave.
func LoadAuthority(certDER, keyDER []byte) (*Authority, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("the authority's certificate: %w", err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("the authority's key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the authority's key is a %T, which cannot sign", key)
	}
	return &Authority{cert: cert, key: signer}, nil
}

// Certificate is the authority's own certificate (DER).
func (a *Authority) Certificate() []byte { return a.cert.Raw }

// Key is the private key (PKCS 8, DER); it is for sealing only.
func (a *Authority) Key() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(a.key) }

// Subject is whom a certificate is for.
type Subject struct {
	Name  string // the text form of a node's id, or a user's name
	Role  string // transport.RoleManager, RoleWorker or RoleAdmin
	Hosts []string
	Life  time.Duration // default CertificateLife
}

// Sign issues a certificate for the key in a request and returns it with the authority's own behind it (PEM). What the
// request says of its subject is not believed.
func (a *Authority) Sign(csrDER []byte, s Subject, now time.Time) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("request for a certificate: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("request for a certificate: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	life := s.Life
	if life <= 0 {
		life = CertificateLife
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: s.Name, OrganizationalUnit: []string{s.Role}},
		NotBefore: now.Add(-skew), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if s.Role != transport.RoleAdmin {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		t.DNSNames = []string{transport.NodeName(s.Name), "localhost"}
		t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	}
	if s.Role == transport.RoleManager {
		t.DNSNames = append(t.DNSNames, transport.NameManager)
	}
	for _, h := range s.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if givable(h) {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, csr.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return append(encodeCert(der), encodeCert(a.cert.Raw)...), nil
}

// givable reports whether a node may have a name that it asks for. Those of the cluster are the authority's to give, however
// they are written: verifiers ignore case. Patterns would stand for the names of others.
func givable(host string) bool {
	name := strings.TrimRight(strings.ToLower(host), ".")
	return name != "" && name != "internal" && !strings.HasSuffix(name, ".internal") && !strings.Contains(name, "*")
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Keeper is a cluster's authority as it is stored, opened with the sealing key.
type Keeper struct{ sealer *Sealer }

// NewKeeper makes a keeper that opens the stored keys with s.
func NewKeeper(s *Sealer) *Keeper { return &Keeper{sealer: s} }

// Found makes the authority of a new cluster.
func (k *Keeper) Found(name string, now time.Time) (*cluster.Authority, error) {
	a, err := NewAuthority(name, now)
	if err != nil {
		return nil, err
	}
	o := &cluster.Authority{Meta: cluster.Meta{ID: cluster.AuthorityID, Created: now}, Roots: [][]byte{a.Certificate()}, Signer: a.Certificate()}
	o.Sealed, err = k.seal(a)
	return o, err
}

func (k *Keeper) seal(a *Authority) ([]byte, error) {
	der, err := a.Key()
	if err != nil {
		return nil, err
	}
	return k.sealer.Seal(der, cluster.KindAuthority, cluster.AuthorityID)
}

// Open reads the stored authority so that it can sign.
func (k *Keeper) Open(o *cluster.Authority) (*Authority, error) {
	key, err := k.sealer.Open(o.Sealed, cluster.KindAuthority, cluster.AuthorityID)
	if err != nil {
		return nil, fmt.Errorf("the authority's key: %w", err)
	}
	return LoadAuthority(o.Signer, key)
}

// RootsPEM are the authorities that every machine of the cluster must trust.
func RootsPEM(o *cluster.Authority) []byte {
	var out []byte
	for _, der := range o.Roots {
		out = append(out, encodeCert(der)...)
	}
	return out
}

// Begin starts the rotation of the authority: everybody learns to trust the next one while the present one still signs.
func (k *Keeper) Begin(o *cluster.Authority, name string, now time.Time) (*cluster.Authority, error) {
	if o.Next != nil {
		return nil, errors.New("a rotation of the authority is under way")
	}
	a, err := NewAuthority(name, now)
	if err != nil {
		return nil, err
	}
	c := cluster.Copy(o)
	c.Roots, c.Next, c.Since = append(c.Roots, a.Certificate()), a.Certificate(), now
	c.SealedNext, err = k.seal(a)
	return c, err
}

// Step takes the rotation one step further, when all nodes have taken the last one: first the new authority signs, and
// nodes get new certificates; then the old one is forgotten. It returns nil when there is nothing to do yet.
func (k *Keeper) Step(o *cluster.Authority, nodes []*cluster.Node, now time.Time) *cluster.Authority {
	switch {
	case o.Next != nil && all(nodes, func(d cluster.NodeDescription) bool { return d.Roots == RootsHash(o) }):
		c := cluster.Copy(o)
		c.Signer, c.Sealed, c.Next, c.SealedNext, c.Since = o.Next, o.SealedNext, nil, nil, now
		return c
	case o.Next == nil && len(o.Roots) > 1 && all(nodes, func(d cluster.NodeDescription) bool { return d.Issuer == IssuerHash(o) }):
		c := cluster.Copy(o)
		c.Roots, c.Since = [][]byte{o.Signer}, now
		return c
	}
	return nil
}

func all(nodes []*cluster.Node, ok func(cluster.NodeDescription) bool) bool {
	for _, n := range nodes {
		if !ok(n.Description) {
			return false
		}
	}
	return true
}

var hashText = base32.StdEncoding.WithPadding(base32.NoPadding)

// RootsHash names the set of trusted authorities; nodes say in their description which set they have.
func RootsHash(o *cluster.Authority) string { return HashText(RootsPEM(o)) }

// IssuerHash names the authority that signs now.
func IssuerHash(o *cluster.Authority) string { return HashText(o.Signer) }

// HashText is a short name of some bytes.
func HashText(b []byte) string {
	sum := sha256.Sum256(b)
	return strings.ToLower(hashText.EncodeToString(sum[:15]))
}
