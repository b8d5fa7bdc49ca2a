package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/transport"
)

// NewToken makes a join token for a role. A zero expires never ends.
func (k *Keeper) NewToken(role string, id cluster.ID, now, expires time.Time) (*cluster.JoinToken, error) {
	secret := make([]byte, transport.TokenSecretBytes)
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
func (k *Keeper) Token(t *cluster.JoinToken, o *cluster.Authority) (transport.Token, error) {
	secret, err := k.sealer.Open(t.Sealed, cluster.KindJoinToken, t.ID)
	if err != nil {
		return transport.Token{}, fmt.Errorf("join token: %w", err)
	}
	return transport.Token{Role: t.Role, Fingerprint: transport.Fingerprint(o.Signer), Secret: secret}, nil
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
