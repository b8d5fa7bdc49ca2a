package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/transport"
)

// secretBytes is the random part of a join token.
const secretBytes = 16

var tokenText = base32.NewEncoding("abcdefghijkmnpqrstuvwxyz23456789").WithPadding(base32.NoPadding)

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
	if f[1] != transport.RoleWorker && f[1] != transport.RoleManager {
		return bad("it is for neither a worker nor a manager")
	}
	fp, err := tokenText.DecodeString(f[2])
	if err != nil || len(fp) != fingerprintBytes {
		return bad("its fingerprint is incomplete")
	}
	secret, err := tokenText.DecodeString(f[3])
	if err != nil || len(secret) != secretBytes {
		return bad("its end is missing or has wrong letters")
	}
	return Token{Role: f[1], Fingerprint: fp, Secret: secret}, nil
}

// NewToken makes a join token for a role. A zero expires never ends.
func (k *Keeper) NewToken(role string, id cluster.ID, now, expires time.Time) (*cluster.JoinToken, error) {
	secret := make([]byte, secretBytes)
	if _, err := rand.Read(secret); err != nil {
		return nil, fmt.Errorf("make a token: %w", err)
	}
	sealed, err := k.sealer.Seal(secret, cluster.KindJoinToken, id)
	if err != nil {
		return nil, err
	}
	return &cluster.JoinToken{
		Meta: cluster.Meta{ID: id, Created: now}, Role: role, Sealed: sealed, Hash: hashSecret(secret), Expires: expires,
	}, nil
}

// Token is the text form of a stored token, for users who may let machines join.
func (k *Keeper) Token(t *cluster.JoinToken, o *cluster.Authority) (Token, error) {
	secret, err := k.sealer.Open(t.Sealed, cluster.KindJoinToken, t.ID)
	if err != nil {
		return Token{}, fmt.Errorf("join token: %w", err)
	}
	return Token{Role: t.Role, Fingerprint: Fingerprint(o.Signer), Secret: secret}, nil
}

// ErrToken refuses a machine; it does not tell a wrong token from a rotated one.
var ErrToken = errors.New("the join token is not valid any more, or never was: get the present one with `baton token ls` on a manager")

// ErrTokenExpired refuses a token that was right once.
var ErrTokenExpired = errors.New("the join token has expired: get another one with `baton token ls` on a manager")

// Check finds the stored token that has this secret and says for which role it is.
func Check(secret []byte, tokens []*cluster.JoinToken, now time.Time) (role string, err error) {
	want := hashSecret(secret)
	for _, t := range tokens {
		if subtle.ConstantTimeCompare(want, t.Hash) != 1 {
			continue
		}
		if !t.Expires.IsZero() && !now.Before(t.Expires) {
			return "", ErrTokenExpired
		}
		return t.Role, nil
	}
	return "", ErrToken
}

func hashSecret(secret []byte) []byte {
	sum := sha256.Sum256(append([]byte("baton join token/"), secret...))
	return sum[:]
}

// Trusts reports whether a certificate (DER) is the authority that the token is bound to.
func (t Token) Trusts(certDER []byte) bool { return bytes.Equal(t.Fingerprint, Fingerprint(certDER)) }
