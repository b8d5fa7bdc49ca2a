package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"time"

	"baton/internal/wire/agentapi"
)

// challengePath is where authorities look for the proof that a host is the cluster's (RFC 8555, HTTP-01).
const challengePath = "/.well-known/acme-challenge/"

// certificates are the hosts that can be served with TLS. They do not change once they are in use.
type certificates struct {
	exact, wild map[string]*certificate // by host, by what follows "*."
	challenges  map[challengeKey]string
}

type certificate struct {
	pair       *tls.Certificate
	chain, key []byte
}

type challengeKey struct{ host, token string }

// newCertificates parses what is not in before. What cannot be parsed is left out, and returned.
func newCertificates(s agentapi.NetworkState, before *certificates) (c *certificates, bad map[string]error) {
	c = &certificates{exact: make(map[string]*certificate), wild: make(map[string]*certificate), challenges: make(map[challengeKey]string)}
	for _, in := range s.Certificates {
		suffix, wild := strings.CutPrefix(in.Host, "*.")
		into, from := c.exact, (map[string]*certificate)(nil)
		if wild {
			into = c.wild
		}
		if before != nil {
			if from = before.exact; wild {
				from = before.wild
			}
		}
		if old := from[suffix]; old != nil && bytes.Equal(old.chain, in.Chain) && bytes.Equal(old.key, in.Key) {
			into[suffix] = old
			continue
		}
		pair, err := tls.X509KeyPair(in.Chain, in.Key)
		if err != nil {
			if bad == nil {
				bad = make(map[string]error)
			}
			bad[in.Host] = err
			continue
		}
		into[suffix] = &certificate{pair: &pair, chain: in.Chain, key: in.Key}
	}
	for _, h := range s.Challenges {
		c.challenges[challengeKey{h.Host, h.Token}] = h.Answer
	}
	return c, bad
}

// find returns the certificate for a host; nil: there is none.
func (c *certificates) find(host string) *certificate {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if own := c.exact[host]; own != nil {
		return own
	}
	_, parent, _ := strings.Cut(host, ".")
	return c.wild[parent]
}

// follow takes the certificates of a state.
func (e *Edge) follow(s agentapi.NetworkState) {
	next, bad := newCertificates(s, e.certificates.Load())
	for host, err := range bad {
		e.cfg.Log.Error("a certificate cannot be read; its host is not served with TLS", "host", host, "err", err)
	}
	e.certificates.Store(next)
}

// ServeTLSUntil is ServeUntil with TLS.
func (e *Edge) ServeTLSUntil(ctx context.Context, quit <-chan struct{}, grace time.Duration, l net.Listener) error {
	return e.serveUntil(ctx, quit, grace, l, e.tlsConfig())
}

// tlsConfig chooses the certificate by the name that a client asks for. Without one for it the handshake is refused with
// unrecognized_name, which is what crypto/tls does when it gets neither a certificate nor an error: never is a client shown another host's.
func (e *Edge) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2: forward secret and authenticated only
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if own := e.certificates.Load().find(h.ServerName); own != nil {
				return own.pair, nil
			}
			return nil, nil
		},
	}
}

// challenge answers an authority, and reports whether it did.
func (e *Edge) challenge(w http.ResponseWriter, r *http.Request) bool {
	token, asked := strings.CutPrefix(r.URL.Path, challengePath)
	if !asked || r.TLS != nil {
		return false
	}
	answer, known := e.certificates.Load().challenges[challengeKey{hostname(r.Host), token}]
	if known {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write([]byte(answer))
	}
	return known
}

// misdirected answers a request that came the wrong way: a connection for another host's certificate, plain HTTP for a rule with TLS, or
// TLS for one without. It reports whether it did.
func (e *Edge) misdirected(w http.ResponseWriter, r *http.Request, rule *route) bool {
	host := hostname(r.Host)
	switch {
	case r.TLS == nil && rule.tls && e.certificates.Load().find(host) == nil:
		// A redirect would lead to a refused handshake, and be remembered by browsers.
		w.Header().Set("Retry-After", "5")
		http.Error(w, "this host is served with TLS only, and there is no certificate for it yet", http.StatusServiceUnavailable)
	case r.TLS == nil && rule.tls:
		// Never a path that begins with two slashes: with the host before it that is no other host's address.
		http.Redirect(w, r, "https://"+host+r.URL.RequestURI(), http.StatusPermanentRedirect)
	case r.TLS == nil:
		return false
	case e.certificates.Load().find(r.TLS.ServerName) != e.certificates.Load().find(host):
		http.Error(w, "this connection is for another host", http.StatusMisdirectedRequest)
	case !rule.tls:
		http.Error(w, "no rule with TLS for this host and path", http.StatusNotFound)
	default:
		return false
	}
	return true
}
