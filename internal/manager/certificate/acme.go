package certificate

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

const (
	// orderMax bounds one order.
	orderMax = 3 * time.Minute
	// presentMax bounds the wait for the edges: those that do not answer in time may be the ones that cannot be reached.
	presentMax = 15 * time.Second
	// ackEvery is how often the edges are looked at while they are waited for.
	ackEvery = 50 * time.Millisecond
)

// auto begins an order for a host when one is due.
func (k *Keeper) auto(ctx context.Context, settings *cluster.Settings, c *cluster.Certificate) error {
	now := time.Now()
	if !due(c, spec.TLSAuto, now) || now.Before(c.Retry) || k.orders[c.ID] != nil || len(k.orders) >= ordersMax {
		return nil
	}
	if c.Version == 0 { // the order writes its challenges into it
		var t store.Txn
		c.Source = spec.TLSAuto
		t.Put(c)
		_, err := k.cfg.Log.Propose(ctx, t)
		return err
	}
	own, cancel := context.WithTimeout(ctx, orderMax)
	k.orders[c.ID] = cancel
	k.all.Go(func() {
		o := order{Keeper: k, id: c.ID, host: c.Host}
		err := o.run(own, settings)
		if err != nil && ctx.Err() == nil && !errors.Is(own.Err(), context.Canceled) {
			err = o.change(ctx, func(c *cluster.Certificate) error { return k.fail(ctx, c, spec.TLSAuto, err.Error(), nil) })
		}
		if err != nil && ctx.Err() == nil {
			k.cfg.Logger.Warn("what came of an order could not be written", "host", c.Host, "err", err)
		}
		select {
		case k.ended <- c.ID:
		case <-ctx.Done():
		}
	})
	return nil
}

// order is one certificate that is being obtained.
type order struct {
	*Keeper
	id   cluster.ID
	host string
	told cluster.Version // that has the last challenge
}

var _ interface {
	acmez.Solver
	acmez.Waiter
} = (*order)(nil)

// run obtains a certificate, after the present one was revoked if that is wanted.
func (o *order) run(ctx context.Context, settings *cluster.Settings) error {
	client, err := o.client(settings.ACME)
	if err != nil {
		return err
	}
	account, err := o.account(ctx, client, settings.ACME)
	if err != nil {
		return err
	}
	if err := o.revoke(ctx, client, account); err != nil {
		return fmt.Errorf("revoke the present certificate: %w", err)
	}
	key, text, err := newKey()
	if err != nil {
		return err
	}
	got, err := client.ObtainCertificateForSANs(ctx, account, key, []string{o.host})
	if err != nil {
		return err
	}
	if len(got) == 0 {
		return errors.New("the authority gave no certificate")
	}
	p, err := newPair(got[0].ChainPEM, text)
	if err != nil {
		return fmt.Errorf("the authority's certificate: %w", err)
	}
	return o.change(ctx, func(c *cluster.Certificate) error { return o.put(ctx, c, spec.TLSAuto, p, nil) })
}

// client speaks to the authority.
func (o *order) client(cfg *cluster.ACME) (*acmez.Client, error) {
	if cfg == nil {
		cfg = &cluster.ACME{}
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.DisableKeepAlives = true // an order is over before a connection pays
	if len(cfg.Roots) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(cfg.Roots) {
			return nil, errors.New("the roots to trust at the authority's directory cannot be read")
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return &acmez.Client{
		Client: &acme.Client{
			Directory: directory(cfg), HTTPClient: &http.Client{Transport: tr, Timeout: 30 * time.Second}, UserAgent: o.cfg.UserAgent,
			PollInterval: time.Second, PollTimeout: time.Minute,
		},
		ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeHTTP01: o},
	}, nil
}

func directory(cfg *cluster.ACME) string {
	if cfg == nil || cfg.Directory == "" {
		return cluster.DirectoryDefault
	}
	return cfg.Directory
}

// account is the cluster's at the authority; its key is stored before it is registered, so that there is one only.
func (o *order) account(ctx context.Context, client *acmez.Client, cfg *cluster.ACME) (acme.Account, error) {
	key, err := o.accountKey(ctx, directory(cfg))
	if err != nil {
		return acme.Account{}, fmt.Errorf("the key of the account: %w", err)
	}
	a := acme.Account{TermsOfServiceAgreed: true, PrivateKey: key}
	if cfg != nil && cfg.Email != "" {
		a.Contact = []string{"mailto:" + cfg.Email}
	}
	// For a key that it knows the authority answers with the account that is there.
	if a, err = client.NewAccount(ctx, a); err != nil {
		return a, fmt.Errorf("the account at %s: %w", directory(cfg), err)
	}
	return a, nil
}

// accountKey reads the account's key, or makes it: for another directory another one.
func (o *order) accountKey(ctx context.Context, at string) (crypto.Signer, error) {
	have, ok := store.Get[*cluster.Certificate](o.cfg.Store.Snapshot(), cluster.ACMEAccountID)
	if ok && have.Host == at {
		text, err := o.cfg.Sealer.Open(have.Sealed, cluster.KindCertificate, have.ID)
		if err != nil {
			return nil, err
		}
		return parseKey(text)
	}
	key, text, err := newKey()
	if err != nil {
		return nil, err
	}
	next := &cluster.Certificate{Meta: cluster.Meta{ID: cluster.ACMEAccountID, Created: time.Now()}, Source: spec.TLSAuto}
	if ok {
		next = cluster.Copy(have)
	}
	next.Host = at
	if next.Sealed, err = o.cfg.Sealer.Seal(text, cluster.KindCertificate, next.ID); err != nil {
		return nil, err
	}
	var t store.Txn
	t.Put(next)
	if _, err := o.cfg.Log.Propose(ctx, t); err != nil {
		return nil, err // another order has made it: the next try finds it
	}
	return key, nil
}

func parseKey(text []byte) (crypto.Signer, error) {
	b, _ := pem.Decode(text)
	if b == nil {
		return nil, errors.New("it is no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("it is a %T, which cannot sign", key)
	}
	return signer, nil
}

// revoke ends the present certificate at the authority if that is wanted. It is served until the next one is there.
func (o *order) revoke(ctx context.Context, client *acmez.Client, account acme.Account) error {
	c, ok := store.Get[*cluster.Certificate](o.cfg.Store.Snapshot(), o.id)
	if !ok || !c.Revoke || c.Source != spec.TLSAuto || len(c.Chain) == 0 {
		return nil
	}
	b, _ := pem.Decode(c.Chain)
	if b == nil {
		return errors.New("it is no PEM")
	}
	leaf, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return err
	}
	var known acme.Problem
	if err := client.RevokeCertificate(ctx, account, leaf, nil, acme.ReasonSuperseded); err != nil &&
		(!errors.As(err, &known) || known.Type != acme.ProblemTypeAlreadyRevoked) {
		return err
	}
	return o.change(ctx, func(c *cluster.Certificate) error {
		next := cluster.Copy(c)
		next.Revoke, next.Renew = false, true
		var t store.Txn
		t.Put(next)
		event(&t, time.Now(), "certificate.revoked", fmt.Sprintf("the certificate of host %s with serial %s was revoked; another one is obtained", c.Host, c.Serial))
		_, err := o.cfg.Log.Propose(ctx, t)
		return err
	})
}

// Present implements acmez.Solver: all edges are to answer the challenge, for the authority may ask any of them.
func (o *order) Present(ctx context.Context, ch acme.Challenge) error {
	return o.challenges(ctx, map[string]string{ch.Token: ch.KeyAuthorization})
}

// Wait implements acmez.Waiter.
func (o *order) Wait(ctx context.Context, _ acme.Challenge) error {
	ctx, cancel := context.WithTimeout(ctx, presentMax)
	defer cancel()
	tick := time.NewTicker(ackEvery)
	defer tick.Stop()
	for o.cfg.Acked() < o.told {
		select {
		case <-ctx.Done():
			return nil // the authority decides whether it was enough
		case <-tick.C:
		}
	}
	return nil
}

// CleanUp implements acmez.Solver.
func (o *order) CleanUp(ctx context.Context, _ acme.Challenge) error { return o.challenges(ctx, nil) }

func (o *order) challenges(ctx context.Context, answers map[string]string) error {
	return o.change(ctx, func(c *cluster.Certificate) error {
		next := cluster.Copy(c)
		next.Challenges = answers
		var t store.Txn
		t.Put(next)
		v, err := o.cfg.Log.Propose(ctx, t)
		o.told = v
		return err
	})
}

// change lets write change the certificate, again when it was changed by others meanwhile.
func (o *order) change(ctx context.Context, write func(*cluster.Certificate) error) (err error) {
	for range 10 {
		c, ok := store.Get[*cluster.Certificate](o.cfg.Store.Snapshot(), o.id)
		if !ok {
			return errors.New("no rule wants it any more")
		}
		if err = write(c); !errors.Is(err, store.ErrConflict) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(ackEvery): // the store follows the log in a moment
		}
	}
	return err
}
