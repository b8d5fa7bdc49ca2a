package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

const (
	registryCheckMax = 15 * time.Second // of one attempt to log in
	credentialMax    = 64 << 10         // bytes of a name or a password; tokens of clouds are several KiB
)

func (s *Server) registryRoutes() {
	type HostPath struct {
		Host string `path:"host" doc:"as in image names: docker.io, registry.example:5000"`
	}
	type setIn struct {
		HostPath
		Body api.RegistryRequest
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/registries", id: "listRegistries", summary: "List registries with credentials, without passwords", tag: "registries"},
		func(context.Context, *none) ([]api.Registry, error) { return s.listRegistries(), nil })
	handle(s, operation{method: http.MethodPut, path: "/v1/registries/{host}", id: "setRegistry", summary: "Check and store the credentials for a registry", tag: "registries"},
		func(ctx context.Context, in *setIn) (api.Registry, error) {
			return s.setRegistry(ctx, in.Host, in.Body)
		})
	handle(s, operation{method: http.MethodDelete, path: "/v1/registries/{host}", id: "removeRegistry", summary: "Forget the credentials for a registry", tag: "registries"},
		func(ctx context.Context, in *HostPath) (done, error) {
			return done{true}, s.removeRegistry(ctx, in.Host)
		})
}

func registryView(r *cluster.Registry) api.Registry {
	return api.Registry{Host: r.Host, Username: r.Username, Updated: r.Updated}
}

func (s *Server) listRegistries() []api.Registry {
	out := []api.Registry{}
	for r := range store.All[*cluster.Registry](s.cfg.Store.Snapshot()) {
		out = append(out, registryView(r))
	}
	slices.SortFunc(out, func(a, b api.Registry) int { return strings.Compare(a.Host, b.Host) })
	return out
}

func cleanHost(name string) (string, error) {
	host := spec.CleanRegistryHost(name)
	if host == "" {
		return "", api.Errorf(api.CodeInvalid, "%q is not the address of a registry", name).WithMend("give it as image names do, such as docker.io or registry.example:5000")
	}
	return host, nil
}

// setRegistry stores credentials once the registry has accepted them.
func (s *Server) setRegistry(ctx context.Context, name string, req api.RegistryRequest) (api.Registry, error) {
	host, err := cleanHost(name)
	if err != nil {
		return api.Registry{}, err
	}
	switch {
	case req.Username == "" || req.Password == "":
		return api.Registry{}, api.Errorf(api.CodeInvalid, "user name and password must not be empty").WithMend("run `baton registry login %s -u USER --password-stdin`", host)
	case len(req.Username) > credentialMax || len(req.Password) > credentialMax:
		return api.Registry{}, api.Errorf(api.CodeTooLarge, "user name and password may have %d bytes each", credentialMax)
	}
	if !req.Unchecked {
		if err := checkRegistry(ctx, host, req); err != nil {
			return api.Registry{}, err
		}
	}
	var out *cluster.Registry
	err = s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		out = &cluster.Registry{Meta: cluster.Meta{ID: newID(), Created: now}, Host: host}
		if old, ok := snap.RegistryByHost(host); ok {
			out = cluster.Copy(old)
		}
		var err error
		if out.Sealed, err = s.cfg.Sealer.Seal([]byte(req.Password), cluster.KindRegistry, out.ID); err != nil {
			return txn, fmt.Errorf("seal the credentials for %s: %w", host, err)
		}
		out.Username, out.Updated = req.Username, now
		txn.Put(out)
		s.event(&txn, now, "registry.set", fmt.Sprintf("credentials of %s for registry %s were stored", out.Username, host), func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
	if err != nil {
		return api.Registry{}, err
	}
	return registryView(out), nil
}

func (s *Server) removeRegistry(ctx context.Context, name string) error {
	host, err := cleanHost(name)
	if err != nil {
		return err
	}
	return s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		old, ok := snap.RegistryByHost(host)
		if !ok {
			return txn, api.Errorf(api.CodeNotFound, "there are no credentials for registry %s", host).WithMend("see `baton registry ls`")
		}
		txn.Delete(old)
		s.event(&txn, now, "registry.removed", "credentials for registry "+host+" were removed", func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
}

// checkRegistry logs in to a registry as a node would, with a token where it asks for one.
func checkRegistry(ctx context.Context, host string, req api.RegistryRequest) error {
	ctx, cancel := context.WithTimeout(ctx, registryCheckMax)
	defer cancel()
	// No redirects: the credentials are for this host.
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	auth := docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(string) (string, string, error) {
		return req.Username, req.Password, nil
	}))
	var answers []*http.Response
	for range 2 {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, registryURL(host), nil)
		if err != nil {
			return err
		}
		if err := auth.Authorize(ctx, r); err != nil {
			return registryRefused(host, err)
		}
		resp, err := client.Do(r)
		if err != nil {
			return registryRefused(host, err)
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, credentialMax))
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		if resp.StatusCode != http.StatusUnauthorized {
			return registryRefused(host, fmt.Errorf("it answers with %s", resp.Status))
		}
		answers = append(answers, resp)
		if err := auth.AddResponses(ctx, answers); err != nil {
			break // it accepts neither password nor token, or has refused them
		}
	}
	return registryRefused(host, docker.ErrInvalidAuthorization)
}

func registryRefused(host string, err error) error {
	// Of a token server the library says only what it answered.
	if text := err.Error(); errors.Is(err, docker.ErrInvalidAuthorization) || strings.Contains(text, "401") || strings.Contains(text, "403") {
		return api.Errorf(api.CodeRefused, "registry %s does not accept this user name and password", host).WithMend("check them; some registries want an access token in place of the password")
	}
	return api.Errorf(api.CodeUnavailable, "registry %s could not be asked: %s", host, err).WithMend("check its address, or store the credentials without asking it: --no-check")
}

// registryURL is where a registry's API begins: without TLS only on this machine, as for pulls.
func registryURL(host string) string {
	if host == "docker.io" {
		host = "registry-1.docker.io"
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	scheme := "https"
	if ip := net.ParseIP(strings.Trim(name, "[]")); name == "localhost" || ip != nil && ip.IsLoopback() {
		scheme = "http"
	}
	return scheme + "://" + host + "/v2/"
}
