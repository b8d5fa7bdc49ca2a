package server

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"baton/client/api"
	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/transport"
)

const (
	tokensMax = 100
	ttlMin    = time.Minute
	lifeMax   = 5 * 365 * 24 * time.Hour // of a user's certificate
)

func (s *Server) clusterRoutes() {
	handle(s, operation{method: http.MethodGet, path: "/v1/cluster", id: "getCluster", summary: "The cluster as a whole", tag: "cluster"},
		func(context.Context, *none) (api.Cluster, error) { return s.cluster(), nil })
	handle(s, operation{method: http.MethodPost, path: "/v1/cluster/authority/rotate", id: "rotateAuthority", summary: "Replace the certificate authority, without downtime", tag: "cluster"},
		func(ctx context.Context, _ *struct{ Body struct{} }) (api.Cluster, error) {
			return s.rotateAuthority(ctx)
		})
	handle(s, operation{method: http.MethodPost, path: "/v1/cluster/mesh/rotate", id: "rotateMesh", summary: "Let all nodes change their mesh keys, without losing connections", tag: "cluster"},
		func(ctx context.Context, _ *struct{ Body struct{} }) (done, error) {
			return done{true}, s.rotateMesh(ctx)
		})
	handle(s, operation{method: http.MethodGet, path: "/v1/tokens", id: "listTokens", summary: "Join tokens, with their secrets", tag: "cluster"},
		func(context.Context, *none) ([]api.JoinToken, error) { return s.listTokens() })
	handle(s, operation{method: http.MethodPost, path: "/v1/tokens", id: "makeToken", summary: "Make a join token", tag: "cluster"},
		func(ctx context.Context, in *struct{ Body api.TokenRequest }) (api.JoinToken, error) {
			return s.makeToken(ctx, in.Body)
		})
	handle(s, operation{method: http.MethodPost, path: "/v1/certificates", id: "signCertificate", summary: "Sign a certificate with which a user reaches the API from elsewhere", tag: "cluster"},
		func(ctx context.Context, in *struct{ Body api.CertificateRequest }) (api.Certificate, error) {
			return s.signCertificate(ctx, in.Body)
		})
	s.backupRoute()
	s.lockRoutes()
	handle(s, operation{method: http.MethodGet, path: "/v1/cluster/doctor", id: "examineCluster", summary: "Look at the cluster and at every connected node: what is wrong, and the mend", tag: "cluster", long: true},
		func(ctx context.Context, _ *none) ([]api.Check, error) { return s.doctor(ctx), nil })
	type removeIn struct {
		NamePath
		Force bool `query:"force" doc:"also when it is connected, or has tasks"`
	}
	handle(s, operation{method: http.MethodDelete, path: "/v1/nodes/{name}", id: "removeNode", summary: "Take a node out of the cluster", tag: "nodes"},
		func(ctx context.Context, in *removeIn) (done, error) {
			return done{true}, s.removeNode(ctx, in.Name, in.Force)
		})
}

// members tells who has the log, by node.
func (s *Server) members() (leader string, voters []string) {
	if s.cfg.Members == nil {
		return "", nil
	}
	return s.cfg.Members()
}

func (s *Server) cluster() api.Cluster {
	snap := s.cfg.Store.Snapshot()
	out := api.Cluster{Name: s.cfg.ClusterName, Managers: []api.Manager{}}
	if settings, ok := snap.Settings(); ok {
		out.Name, out.Mesh, out.Locked = settings.Name, settings.Mesh, len(settings.Unlock) > 0
		out.Level = settings.Level.Or()
	}
	for _, n := range cluster.Behind(store.All[*cluster.Node](snap), cluster.LevelNewest()) {
		out.Behind = append(out.Behind, n.Name)
	}
	leader, voters := s.members()
	for n := range store.All[*cluster.Node](snap) {
		id := n.ID.String()
		if !n.Manager && !slices.Contains(voters, id) {
			continue
		}
		m := api.Manager{Name: n.Name, Address: n.Description.Listen, State: n.State, Voter: slices.Contains(voters, id), Leader: id == leader}
		if m.Leader {
			out.Leader = n.Name
		}
		out.Managers = append(out.Managers, m)
	}
	slices.SortFunc(out.Managers, func(a, b api.Manager) int { return cmp.Compare(a.Name, b.Name) })
	if a, ok := store.Get[*cluster.Authority](snap, cluster.AuthorityID); ok {
		out.Authority, out.Rotating = identity.IssuerHash(a), rotation(snap, a)
	}
	return out
}

// rotation says how far a rotation of the authority has come, and which nodes hold it up.
func rotation(snap store.Snapshot, a *cluster.Authority) string {
	step, ready := "", func(cluster.NodeDescription) bool { return true }
	switch {
	case a.Next != nil:
		step, ready = "nodes learn to trust the new authority", func(d cluster.NodeDescription) bool { return d.Roots == identity.RootsHash(a) }
	case len(a.Roots) > 1:
		step, ready = "nodes get certificates of the new authority", func(d cluster.NodeDescription) bool { return d.Issuer == identity.IssuerHash(a) }
	default:
		return ""
	}
	var names []string
	for n := range store.All[*cluster.Node](snap) {
		if !ready(n.Description) {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return step
	}
	return step + "; waiting for " + strings.Join(names, ", ")
}

func (s *Server) rotateAuthority(ctx context.Context) (api.Cluster, error) {
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		a, ok := store.Get[*cluster.Authority](snap, cluster.AuthorityID)
		if !ok || s.cfg.Keeper == nil {
			return txn, api.Errorf(api.CodeUnsupported, "this cluster has no certificate authority")
		}
		if doing := rotation(snap, a); doing != "" {
			return txn, api.Errorf(api.CodeConflict, "the authority is being rotated: %s", doing).WithMend("wait, or remove nodes that will not come back with `baton node rm`")
		}
		next, err := s.cfg.Keeper.Begin(a, s.cfg.ClusterName, now)
		if err != nil {
			return txn, err
		}
		txn.Put(next)
		s.event(&txn, now, "cluster.authority-rotating", "the certificate authority is being replaced", func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
	if err != nil {
		return api.Cluster{}, err
	}
	return s.cluster(), nil
}

// rotateMesh asks all nodes for new mesh keys. Each node's description tells when it has one.
func (s *Server) rotateMesh(ctx context.Context) error {
	asked := uint64(0)
	return s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		settings, ok := snap.Settings()
		if !ok || settings.Mesh != cluster.MeshWireGuard {
			return txn, api.Errorf(api.CodeUnsupported, "this cluster's mesh has no keys")
		}
		if asked > 0 && settings.MeshEpoch >= asked {
			return txn, nil // an earlier try did it
		}
		c := cluster.Copy(settings)
		c.MeshEpoch++
		asked = c.MeshEpoch
		txn.Put(c)
		s.event(&txn, now, "cluster.mesh-rotating", "the nodes change their mesh keys", func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
}

// joinAddress is where a machine that joins finds a manager.
func joinAddress(snap store.Snapshot) string {
	var addresses []string
	for n := range store.All[*cluster.Node](snap) {
		if n.Manager && n.Description.Listen != "" {
			addresses = append(addresses, n.Description.Listen)
		}
	}
	slices.Sort(addresses)
	if len(addresses) == 0 {
		return "HOST:7701"
	}
	return addresses[0]
}

func (s *Server) token(snap store.Snapshot, t *cluster.JoinToken) (api.JoinToken, error) {
	out := api.JoinToken{ID: t.ID, Role: t.Role, Expires: t.Expires}
	a, ok := store.Get[*cluster.Authority](snap, cluster.AuthorityID)
	if !ok || s.cfg.Keeper == nil {
		return out, api.Errorf(api.CodeUnsupported, "this cluster takes no further machines: its manager has no network")
	}
	text, err := s.cfg.Keeper.Token(t, a)
	if err != nil {
		return out, err
	}
	out.Line = text.String() + "@" + joinAddress(snap)
	return out, nil
}

func (s *Server) listTokens() ([]api.JoinToken, error) {
	snap := s.cfg.Store.Snapshot()
	out := []api.JoinToken{}
	for t := range store.All[*cluster.JoinToken](snap) {
		doc, err := s.token(snap, t)
		if err != nil {
			return nil, err
		}
		out = append(out, doc)
	}
	slices.SortFunc(out, func(a, b api.JoinToken) int {
		return cmp.Or(-cmp.Compare(a.Role, b.Role), a.Expires.Compare(b.Expires), cmp.Compare(a.ID.String(), b.ID.String()))
	})
	return out, nil
}

func (s *Server) makeToken(ctx context.Context, req api.TokenRequest) (api.JoinToken, error) {
	if req.Role != transport.RoleWorker && req.Role != transport.RoleManager {
		return api.JoinToken{}, api.Errorf(api.CodeInvalid, "role %q", req.Role).At("role").WithMend("use worker or manager")
	}
	var life time.Duration
	if req.TTL != "" {
		var err error
		if life, err = time.ParseDuration(req.TTL); err != nil || life < ttlMin {
			return api.JoinToken{}, api.Errorf(api.CodeInvalid, "%q is not a time of at least %s", req.TTL, ttlMin).At("ttl").WithMend("write it like 90m or 24h")
		}
	}
	if s.cfg.Keeper == nil {
		return api.JoinToken{}, api.Errorf(api.CodeUnsupported, "this cluster takes no further machines: its manager has no network")
	}
	id := newID()
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		if _, ok := store.Get[*cluster.JoinToken](snap, id); ok {
			return txn, nil // an earlier try did it
		}
		count := 0
		for t := range store.All[*cluster.JoinToken](snap) {
			over := !t.Expires.IsZero() && !now.Before(t.Expires)
			if over || req.Rotate && t.Role == req.Role {
				txn.Delete(t)
				continue
			}
			count++
		}
		if count >= tokensMax {
			return txn, api.Errorf(api.CodeConflict, "there are %d join tokens already", count).WithMend("rotate them with `baton token rotate`")
		}
		var expires time.Time
		if life > 0 {
			expires = now.Add(life)
		}
		t, err := s.cfg.Keeper.NewToken(req.Role, id, now, expires)
		if err != nil {
			return txn, err
		}
		txn.Put(t)
		what := "made"
		if req.Rotate {
			what = "rotated: earlier ones are not valid any more"
		}
		s.event(&txn, now, "cluster.token", fmt.Sprintf("join token for %ss %s", req.Role, what), func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
	if err != nil {
		return api.JoinToken{}, err
	}
	snap := s.cfg.Store.Snapshot()
	t, ok := store.Get[*cluster.JoinToken](snap, id)
	if !ok {
		return api.JoinToken{}, api.Errorf(api.CodeConflict, "the token was rotated meanwhile").WithMend("see `baton token ls`")
	}
	return s.token(snap, t)
}

// signCertificate makes an administrator's certificate. That it was made is written down.
func (s *Server) signCertificate(ctx context.Context, req api.CertificateRequest) (api.Certificate, error) {
	var out api.Certificate
	life := identity.CertificateLife
	if req.TTL != "" {
		var err error
		if life, err = time.ParseDuration(req.TTL); err != nil || life < ttlMin || life > lifeMax {
			return out, api.Errorf(api.CodeInvalid, "%q is not a time from %s to %s", req.TTL, ttlMin, lifeMax).At("ttl").WithMend("write it like 24h")
		}
	}
	if !validName(req.Name) {
		return out, api.Errorf(api.CodeInvalid, "%q is not a name for a user", req.Name).At("name").WithMend("use letters, digits, dots and dashes")
	}
	snap := s.cfg.Store.Snapshot()
	stored, ok := store.Get[*cluster.Authority](snap, cluster.AuthorityID)
	if !ok || s.cfg.Keeper == nil {
		return out, api.Errorf(api.CodeUnsupported, "this cluster has no certificate authority")
	}
	a, err := s.cfg.Keeper.Open(stored)
	if err != nil {
		return out, err
	}
	out.Certificate, err = a.Sign(req.CSR, identity.Subject{Name: req.Name, Role: transport.RoleAdmin, Life: life}, s.cfg.Now())
	if err != nil {
		return out, api.Errorf(api.CodeInvalid, "%s", err).At("csr")
	}
	out.Roots = identity.RootsPEM(stored)
	for n := range store.All[*cluster.Node](snap) {
		if n.Manager && n.Description.Listen != "" {
			out.Managers = append(out.Managers, n.Description.Listen)
		}
	}
	slices.Sort(out.Managers)
	first := true
	return out, s.retry(ctx, func(_ store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		if first {
			first = false
			s.event(&txn, now, "cluster.certificate", fmt.Sprintf("a certificate for user %s was signed, good for %s", req.Name, life), func(*cluster.Event) {})
		}
		return txn, nil
	}, func(store.Version) {})
}

func roleName(n *cluster.Node) string {
	if n.Manager {
		return transport.RoleManager
	}
	return transport.RoleWorker
}

// mayChangeRole refuses what would leave the cluster without a majority of managers that answer.
func (s *Server) mayChangeRole(snap store.Snapshot, n *cluster.Node, manager bool) error {
	if manager {
		if n.State != cluster.NodeReady {
			return api.Errorf(api.CodeUnavailable, "node %s is %s", n.Name, n.State).WithMend("promote it when it is connected")
		}
		return nil
	}
	return mayLoseManager(snap, n)
}

// mayLoseManager refuses to let a manager go when those that are left, and answer, would not be a majority of those left.
func mayLoseManager(snap store.Snapshot, n *cluster.Node) error {
	left, ready, leads := 0, 0, 0 // leads: may do so
	for o := range store.All[*cluster.Node](snap) {
		if !o.Manager || o.ID == n.ID {
			continue
		}
		left++
		if !o.Witness {
			leads++
		}
		if o.State == cluster.NodeReady {
			ready++
		}
	}
	switch {
	case left > 0 && leads == 0:
		return api.Errorf(api.CodeRefused, "node %s is the only manager that is not a witness", n.Name).WithMend("promote another node first: `baton node promote NAME`")
	case left == 0:
		return api.Errorf(api.CodeRefused, "node %s is the only manager", n.Name).WithMend("promote another node first: `baton node promote NAME`")
	case ready*2 <= left:
		return api.Errorf(api.CodeRefused, "without %s only %d of %d managers would answer: the cluster would lose its quorum", n.Name, ready, left).
			WithMend("bring the other managers back first, or promote others")
	}
	return nil
}

// mayLoseLeases refuses to remove a node that may still run leased tasks: others could be started elsewhere at once.
func mayLoseLeases(snap store.Snapshot, n *cluster.Node) error {
	if n.State == cluster.NodeDown {
		return nil
	}
	for t := range snap.TasksByNode(n.ID) {
		rev, ok := store.Get[*cluster.Revision](snap, t.Revision)
		if !ok || t.Observed.Terminal() {
			continue
		}
		for _, id := range rev.Volumes {
			if v, ok := store.Get[*cluster.Volume](snap, id); ok && v.Leased() {
				return api.Errorf(api.CodeInUse, "node %s is %s and has task %s, the only one that may write to volume %s", n.Name, n.State, t.ID.Short(), v.Name).
					WithMend("drain the node, or stop its machine and wait until it is down, which takes %s", agentapi.DownMin)
			}
		}
	}
	return nil
}

func (s *Server) removeNode(ctx context.Context, name string, force bool) error {
	var gone cluster.ID
	return s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		if _, ok := store.Get[*cluster.Node](snap, gone); !ok && !gone.IsZero() {
			return txn, nil // an earlier try did it
		}
		n, err := (resolver{snap: snap}).node(name)
		if err != nil {
			return txn, err
		}
		if n.Manager {
			if err := mayLoseManager(snap, n); err != nil {
				return txn, err
			}
		}
		if tasks := (reader{snap}).node(n).Tasks; !force && (n.State == cluster.NodeReady || tasks > 0) {
			return txn, api.Errorf(api.CodeInUse, "node %s is %s and has %d tasks", n.Name, n.State, tasks).
				WithMend("drain it with `baton node drain %s` and stop its server first, or give --force", n.Name)
		}
		if err := mayLoseLeases(snap, n); err != nil {
			return txn, err
		}
		gone = n.ID
		txn.Delete(n)
		s.event(&txn, now, "node.removed", fmt.Sprintf("node %s was removed", n.Name), func(e *cluster.Event) { e.Node = n.ID })
		return txn, nil
	}, func(store.Version) {})
}
