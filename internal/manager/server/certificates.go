package server

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

func (s *Server) certificateRoutes() {
	type HostPath struct {
		Host string `path:"host" doc:"as in ingress rules"`
	}
	type acmeIn struct {
		Body api.ACME
	}
	const tag = "certificates"
	handle(s, operation{method: http.MethodGet, path: "/v1/certificates", id: "listCertificates", summary: "List the certificates of ingress rules", tag: tag},
		func(context.Context, *none) ([]api.HostCertificate, error) { return s.listCertificates(), nil })
	handle(s, operation{method: http.MethodGet, path: "/v1/certificates/authority", id: "serviceAuthority", summary: "The cluster's own authority for services", tag: tag},
		func(context.Context, *none) (api.ServiceAuthority, error) { return s.serviceAuthority() })
	handle(s, operation{method: http.MethodPost, path: "/v1/certificates/{host}/renew", id: "renewCertificate", summary: "Make or obtain another certificate at once", tag: tag},
		func(ctx context.Context, in *HostPath) (done, error) {
			return done{true}, s.askCertificate(ctx, in.Host, false)
		})
	handle(s, operation{method: http.MethodPost, path: "/v1/certificates/{host}/revoke", id: "revokeCertificate", summary: "Revoke a certificate at its authority, and obtain another one", tag: tag},
		func(ctx context.Context, in *HostPath) (done, error) {
			return done{true}, s.askCertificate(ctx, in.Host, true)
		})
	handle(s, operation{method: http.MethodGet, path: "/v1/acme", id: "getACME", summary: "Where certificates of tls: auto come from", tag: tag},
		func(context.Context, *none) (api.ACME, error) { return s.acme(), nil })
	handle(s, operation{method: http.MethodPut, path: "/v1/acme", id: "setACME", summary: "Choose where certificates of tls: auto come from", tag: tag},
		func(ctx context.Context, in *acmeIn) (api.ACME, error) { return s.setACME(ctx, in.Body) })
}

func (s *Server) listCertificates() []api.HostCertificate {
	out := []api.HostCertificate{}
	now := s.cfg.Now()
	for c := range store.All[*cluster.Certificate](s.cfg.Store.Snapshot()) {
		if !c.ForHost() {
			continue
		}
		out = append(out, api.HostCertificate{
			Host: c.Host, Source: string(c.Source), Issuer: c.Issuer, Serial: c.Serial, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
			State: certificateState(c, now), Error: c.Error, Retry: c.Retry,
		})
	}
	slices.SortFunc(out, func(a, b api.HostCertificate) int { return strings.Compare(a.Host, b.Host) })
	return out
}

// certificateState is a word for where a certificate is.
func certificateState(c *cluster.Certificate, now time.Time) string {
	switch {
	case len(c.Chain) == 0 && c.Error != "":
		return "failed"
	case len(c.Chain) == 0:
		return "pending"
	case now.After(c.NotAfter):
		return "expired"
	case c.Renew || c.Revoke || len(c.Challenges) > 0:
		return "renewing"
	}
	return "valid"
}

func (s *Server) serviceAuthority() (api.ServiceAuthority, error) {
	c, ok := store.Get[*cluster.Certificate](s.cfg.Store.Snapshot(), cluster.ServiceAuthorityID)
	if !ok {
		return api.ServiceAuthority{}, api.Errorf(api.CodeNotFound, "the cluster has no authority for services yet").
			WithMend("it is made with the first ingress rule that has tls: internal")
	}
	return api.ServiceAuthority{Certificate: string(c.Chain), NotAfter: c.NotAfter}, nil
}

// askCertificate asks the leader for another certificate.
func (s *Server) askCertificate(ctx context.Context, host string, revoke bool) error {
	host = strings.ToLower(host)
	return s.retry(ctx, func(snap store.Snapshot, _ time.Time) (store.Txn, error) {
		var txn store.Txn
		c, ok := store.Get[*cluster.Certificate](snap, cluster.CertificateID(host))
		switch {
		case !ok:
			return txn, api.Errorf(api.CodeNotFound, "no ingress rule has a certificate for %s", host).WithMend("see `baton cert ls`")
		case c.Source == spec.TLSSecret:
			return txn, api.Errorf(api.CodeInvalid, "the certificate of %s is the stack's own", host).WithMend("put another one into its secrets and deploy the stack")
		case revoke && c.Source != spec.TLSAuto:
			return txn, api.Errorf(api.CodeInvalid, "the certificate of %s is of the cluster's own authority, which keeps no list of revoked ones", host).
				WithMend("`baton cert renew %s` gives it another key and certificate", host)
		case revoke && len(c.Chain) == 0:
			return txn, api.Errorf(api.CodeConflict, "there is no certificate for %s yet", host).WithMend("see `baton cert ls`")
		}
		next := cluster.Copy(c)
		next.Renew, next.Revoke = next.Renew || !revoke, next.Revoke || revoke
		next.Tries, next.Retry = 0, time.Time{}
		txn.Put(next)
		return txn, nil
	}, func(store.Version) {})
}

func (s *Server) acme() api.ACME {
	settings, ok := s.cfg.Store.Snapshot().Settings()
	out := api.ACME{Directory: cluster.DirectoryDefault}
	if ok && settings.ACME != nil {
		out.Email, out.Roots = settings.ACME.Email, string(settings.ACME.Roots)
		if settings.ACME.Directory != "" {
			out.Directory = settings.ACME.Directory
		}
	}
	return out
}

func (s *Server) setACME(ctx context.Context, req api.ACME) (api.ACME, error) {
	if u, err := url.Parse(req.Directory); req.Directory != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		return api.ACME{}, api.Errorf(api.CodeInvalid, "%q is no directory of an ACME authority", req.Directory).At("directory").WithMend("give an address that begins with https://")
	}
	if req.Email != "" && (!strings.Contains(req.Email, "@") || strings.ContainsAny(req.Email, " ,?\r\n")) {
		return api.ACME{}, api.Errorf(api.CodeInvalid, "%q is no mail address", req.Email).At("email")
	}
	if req.Roots != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(req.Roots)) {
		return api.ACME{}, api.Errorf(api.CodeInvalid, "the authorities to trust cannot be read").At("roots").WithMend("give certificates as PEM")
	}
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		settings, ok := snap.Settings()
		if !ok || settings.Level.Or() < cluster.LevelTraffic {
			return txn, api.Errorf(api.CodeInvalid, "certificates need feature level %d", cluster.LevelTraffic).
				WithMend("bring all nodes to this version of baton; `baton cluster status` shows which are behind")
		}
		next := cluster.Copy(settings)
		next.ACME = &cluster.ACME{Directory: req.Directory, Email: req.Email, Roots: []byte(req.Roots)}
		txn.Put(next)
		s.event(&txn, now, "certificate.authority", "certificates are obtained from "+req.Directory+" from now on", func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
	if err != nil {
		return api.ACME{}, err
	}
	return s.acme(), nil
}
