package transport

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

const (
	// TokenSecretBytes is the size of the random part of a join token.
	TokenSecretBytes = 16
	// fingerprintBytes is how much of an authority's SHA-256 a join token carries: enough that nobody finds another authority
	// with the same.
	fingerprintBytes = 20
)

var tokenText = base32.NewEncoding("abcdefghijkmnpqrstuvwxyz23456789").WithPadding(base32.NoPadding)

// Fingerprint names an authority's certificate (DER) in join tokens.
func Fingerprint(certDER []byte) []byte {
	sum := sha256.Sum256(certDER)
	return sum[:fingerprintBytes]
}

// Token is a join token. Its text form is
//
//	baton-worker-FINGERPRINT-SECRET   or   baton-manager-FINGERPRINT-SECRET
//
// The fingerprint binds it to the cluster's authority, so that whoever joins cannot be fooled by a machine in between.
type Token struct {
	Role        string
	Fingerprint []byte
	Secret      []byte
}

// String is the text form. It is a secret.
func (t Token) String() string {
	return "baton-" + t.Role + "-" + tokenText.EncodeToString(t.Fingerprint) + "-" + tokenText.EncodeToString(t.Secret)
}

// ParseToken reads the text form. Its errors do not repeat the token.
func ParseToken(s string) (Token, error) {
	f := strings.Split(strings.TrimSpace(s), "-")
	bad := func(why string) (Token, error) {
		return Token{}, fmt.Errorf("this is not a join token (%s): copy the whole line that `baton token ls` prints on a manager", why)
	}
	if len(f) != 4 || f[0] != "baton" {
		return bad("it has another form")
	}
	if f[1] != RoleWorker && f[1] != RoleManager {
		return bad("it is for neither a worker nor a manager")
	}
	fp, err := tokenText.DecodeString(f[2])
	if err != nil || len(fp) != fingerprintBytes {
		return bad("its fingerprint is incomplete")
	}
	secret, err := tokenText.DecodeString(f[3])
	if err != nil || len(secret) != TokenSecretBytes {
		return bad("its end is missing or has wrong letters")
	}
	return Token{Role: f[1], Fingerprint: fp, Secret: secret}, nil
}

// ParseJoin splits TOKEN@HOST[:PORT].
func ParseJoin(s string) (Token, string, error) {
	text, address, ok := strings.Cut(strings.TrimSpace(s), "@")
	if !ok || address == "" {
		return Token{}, "", errors.New("want TOKEN@HOST:PORT: copy the whole line that `baton token ls` prints on a manager")
	}
	token, err := ParseToken(text)
	if err != nil {
		return Token{}, "", err
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), strconv.Itoa(PortDefault))
	}
	return token, address, nil
}

// trusts reports whether a certificate (DER) is the authority that the token is bound to.
func (t Token) trusts(certDER []byte) bool { return bytes.Equal(t.Fingerprint, Fingerprint(certDER)) }

// ErrOtherCluster refuses a machine that pretends to be the cluster of a token.
var ErrOtherCluster = errors.New("the manager at this address is not of the cluster that the token is for, or somebody in between pretends to be it: check the address, and get the token anew with `baton token ls` on a manager")

// VerifyManager checks that the certificate chain is that of a manager, signed by the authority that the token is bound to.
func (t Token) VerifyManager(chain []*x509.Certificate) error {
	roots := x509.NewCertPool()
	known := false
	for _, c := range chain {
		if t.trusts(c.Raw) {
			roots.AddCert(c)
			known = true
		}
	}
	if !known {
		return ErrOtherCluster
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: NameManager}); err != nil {
		return fmt.Errorf("%w (%w)", ErrOtherCluster, err)
	}
	return nil
}
