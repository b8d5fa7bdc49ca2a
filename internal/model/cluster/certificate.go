package cluster

import (
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"baton/internal/model/spec"
)

// Certificate is what the edges serve a host with, or why there is none yet. The leader makes, renews and deletes it as the
// ingress rules say. The one with id ServiceAuthorityID is the cluster's own authority for services: it signs those of source internal,
// and has nothing in common with the Authority of the nodes.
type Certificate struct {
	Meta
	Host   string         `json:"host"` // as in rules
	Source spec.TLSSource `json:"source"`
	// Basis tells what it was made from: of a stack's own, the digests of the secrets; of an internal one, the authority.
	Basis []byte `json:"basis,omitempty"`
	// Chain is the certificate and those that signed it (PEM); empty: there is none yet. Sealed is its private key.
	Chain     []byte    `json:"chain,omitempty"`
	Sealed    []byte    `json:"-" cbor:"sealed,omitempty"`
	Issuer    string    `json:"issuer,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero" cbor:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero" cbor:"notAfter,omitzero"`
	// Renew asks for another one at once.
	Renew bool `json:"renew,omitempty"`
	// Revoke asks for the end of this one, and for another one in its place.
	Revoke bool `json:"revoke,omitempty"`
	// Error is why the last try gave none, Tries how many did in a row, Retry when the next one is due.
	Error string    `json:"error,omitempty"`
	Tries int       `json:"tries,omitempty"`
	Retry time.Time `json:"retry,omitzero" cbor:"retry,omitzero"`
	// Challenges are what the edges answer an authority while a certificate is being obtained: answers by token.
	Challenges map[string]string `json:"challenges,omitempty"`
}

// ServiceAuthorityID is the id of the certificate that signs those of services.
var ServiceAuthorityID = ID{0: 3}

// ACMEAccountID is the id of what has the key of the account at the ACME authority; its Host is the directory that it is of.
var ACMEAccountID = ID{0: 4}

// ForHost reports whether the certificate is one of a host.
func (c *Certificate) ForHost() bool { return c.ID != ServiceAuthorityID && c.ID != ACMEAccountID }

// ACME says where certificates of source auto come from.
type ACME struct {
	Directory string `json:"directory,omitempty"` // URL; empty: DirectoryDefault
	Email     string `json:"email,omitempty"`     // where the authority writes to
	Roots     []byte `json:"roots,omitempty"`     // PEM, to trust in place of the system's when the directory is asked
}

// DirectoryDefault is the directory that is asked when none is set: Let's Encrypt's.
const DirectoryDefault = "https://acme-v02.api.letsencrypt.org/directory"

// CertificateID is the id of a host's certificate.
func CertificateID(host string) ID {
	sum := sha256.Sum256([]byte("certificate of " + host))
	return ID(sum[:16])
}

// Kind implements Object.
func (*Certificate) Kind() Kind { return KindCertificate }

// Clone implements Object.
func (c *Certificate) Clone() Object {
	d := *c
	d.Basis, d.Chain, d.Sealed = slices.Clone(c.Basis), slices.Clone(c.Chain), slices.Clone(c.Sealed)
	d.Challenges = maps.Clone(c.Challenges)
	return &d
}

// RenewAt is when another one is to be made: when a third of its life is left.
func (c *Certificate) RenewAt() time.Time {
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
}
