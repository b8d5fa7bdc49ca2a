package certificate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

const (
	// lookEvery bounds the wait for what no change tells of: the time to renew.
	lookEvery = time.Minute
	// ordersMax bounds the orders under way; authorities limit them too.
	ordersMax = 4
	retryMin  = 10 * time.Second // after an order failed: doubles up to retryMax
	retryMax  = 6 * time.Hour
)

// Proposer writes to the store.
type Proposer interface {
	Propose(ctx context.Context, t store.Txn) (cluster.Version, error)
}

// Sealer encrypts keys for the store.
type Sealer interface {
	Seal(content []byte, kind cluster.Kind, id cluster.ID) ([]byte, error)
	Open(sealed []byte, kind cluster.Kind, id cluster.ID) ([]byte, error)
}

// Config is what a keeper is made of.
type Config struct {
	Store  *store.Store
	Log    Proposer
	Sealer Sealer
	// Acked is the lowest version that the edges of all connected nodes follow.
	Acked  func() cluster.Version
	Logger *slog.Logger
	// UserAgent is what an authority is told of who asks.
	UserAgent string
}

// Keeper keeps the certificates through one term of leadership.
type Keeper struct {
	cfg    Config
	orders map[cluster.ID]context.CancelFunc // under way
	ended  chan cluster.ID
	all    sync.WaitGroup
}

// New makes a keeper.
func New(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, orders: make(map[cluster.ID]context.CancelFunc), ended: make(chan cluster.ID, ordersMax)}
}

// Run works until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer k.all.Wait()
	defer cancel()
	cursor := k.cfg.Store.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindService, cluster.KindSettings, cluster.KindCertificate}})
	defer cursor.Close()
	said := ""
	for {
		cursor.Collect()
		wait := lookEvery
		if err := k.step(ctx); err != nil && ctx.Err() == nil {
			wait = time.Second
			if said != err.Error() && !errors.Is(err, store.ErrConflict) {
				said = err.Error()
				k.cfg.Logger.Warn("certificates do not follow the rules yet", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-cursor.Wait():
		case id := <-k.ended:
			k.orders[id]()
			delete(k.orders, id)
		case <-time.After(k.until(wait)):
		}
	}
}

// until is how long to wait at most, so that a retry that comes due earlier is not late.
func (k *Keeper) until(most time.Duration) time.Duration {
	for c := range store.All[*cluster.Certificate](k.cfg.Store.Snapshot()) {
		if !c.Retry.IsZero() {
			if left := time.Until(c.Retry); left > 0 {
				most = min(most, left)
			}
		}
	}
	return most
}

// want is a host that is to have a certificate.
type want struct {
	host string
	tls  spec.IngressTLS
	rev  *cluster.Revision // that has the rule
}

// wants are the hosts of all rules with TLS, sorted. Deployments refuse two kinds of certificate for one host.
func wants(snap store.Snapshot) []want {
	var out []want
	seen := make(map[string]bool)
	for s := range store.All[*cluster.Service](snap) {
		rev, ok := store.Get[*cluster.Revision](snap, s.Revision)
		if !ok {
			continue
		}
		for _, g := range rev.Spec.Ingress {
			if g.TLS.Enabled() && !seen[g.Host] {
				seen[g.Host] = true
				out = append(out, want{g.Host, g.TLS, rev})
			}
		}
	}
	slices.SortFunc(out, func(a, b want) int { return strings.Compare(a.host, b.host) })
	return out
}

// step brings the certificates to what is wanted, as far as that is possible now.
func (k *Keeper) step(ctx context.Context) error {
	snap := k.cfg.Store.Snapshot()
	settings, ok := snap.Settings()
	if !ok || settings.Level.Or() < cluster.LevelTraffic {
		return nil // an older manager could not read them
	}
	wanted := make(map[cluster.ID]bool)
	var failed error
	for _, w := range wants(snap) {
		id := cluster.CertificateID(w.host)
		wanted[id] = true
		c, ok := store.Get[*cluster.Certificate](snap, id)
		if !ok {
			c = &cluster.Certificate{Meta: cluster.Meta{ID: id, Created: time.Now()}, Host: w.host}
		}
		var err error
		switch w.tls.From {
		case spec.TLSInternal:
			err = k.internal(ctx, settings, c)
		case spec.TLSSecret:
			err = k.own(ctx, c, w)
		case spec.TLSAuto:
			err = k.auto(ctx, settings, c)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("host %s: %w", w.host, err))
		}
	}
	return errors.Join(failed, k.forget(ctx, snap, wanted))
}

// forget deletes what no rule wants any more.
func (k *Keeper) forget(ctx context.Context, snap store.Snapshot, wanted map[cluster.ID]bool) error {
	var t store.Txn
	for c := range store.All[*cluster.Certificate](snap) {
		if c.ForHost() && !wanted[c.ID] {
			if stop := k.orders[c.ID]; stop != nil {
				stop()
			}
			t.Delete(c)
		}
	}
	if t.Empty() {
		return nil
	}
	_, err := k.cfg.Log.Propose(ctx, t)
	return err
}

// due reports whether a certificate is to be replaced by another one of a source.
func due(c *cluster.Certificate, source spec.TLSSource, now time.Time) bool {
	return len(c.Chain) == 0 || c.Source != source || c.Renew || c.Revoke || !now.Before(c.RenewAt())
}

// put stores a new certificate in the place of c.
func (k *Keeper) put(ctx context.Context, c *cluster.Certificate, source spec.TLSSource, p pair, basis []byte) error {
	next, now := cluster.Copy(c), time.Now()
	var err error
	if next.Sealed, err = k.cfg.Sealer.Seal(p.key, cluster.KindCertificate, c.ID); err != nil {
		return err
	}
	what, verb := "certificate.obtained", "has"
	if len(c.Chain) > 0 {
		what, verb = "certificate.renewed", "has another"
	}
	next.Source, next.Basis, next.Chain = source, basis, p.chain
	next.Issuer, next.Serial = p.leaf.Issuer.String(), fmt.Sprintf("%x", p.leaf.SerialNumber)
	next.NotBefore, next.NotAfter = p.leaf.NotBefore, p.leaf.NotAfter
	next.Renew, next.Revoke, next.Error, next.Tries, next.Retry, next.Challenges = false, false, "", 0, time.Time{}, nil
	var t store.Txn
	t.Put(next)
	event(&t, now, what, fmt.Sprintf("host %s %s certificate of %s, good until %s", c.Host, verb, next.Issuer, next.NotAfter.UTC().Format(time.RFC3339)))
	_, err = k.cfg.Log.Propose(ctx, t)
	return err
}

// fail stores why there is no new certificate. The event is written for the first of equal failures in a row.
func (k *Keeper) fail(ctx context.Context, c *cluster.Certificate, source spec.TLSSource, reason string, basis []byte) error {
	next, now := cluster.Copy(c), time.Now()
	if len(c.Chain) == 0 {
		next.Source = source
	}
	next.Basis, next.Error, next.Tries, next.Challenges = basis, reason, c.Tries+1, nil
	next.Retry = now.Add(min(retryMin<<min(c.Tries, 16), retryMax))
	var t store.Txn
	t.Put(next)
	if reason != c.Error {
		event(&t, now, "certificate.failed", fmt.Sprintf("host %s gets no certificate: %s", c.Host, reason))
	}
	_, err := k.cfg.Log.Propose(ctx, t)
	return err
}

func event(t *store.Txn, now time.Time, kind, message string) {
	t.Put(&cluster.Event{Meta: cluster.Meta{ID: cluster.NewID(nil), Created: now}, At: now, Type: kind, Message: message, Who: "leader"})
}
