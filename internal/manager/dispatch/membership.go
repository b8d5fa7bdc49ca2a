package dispatch

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/transport"
)

// membership is what every node must know of the cluster, by role.
type membership struct {
	managers map[cluster.ID]bool
	byRole   map[string]*agentapi.Membership
	hash     map[string]string
}

// of is what a node must know, with a short name for it; nil as long as the cluster has no authority, as in simulations.
func (m membership) of(node cluster.ID) (*agentapi.Membership, string) {
	role := transport.RoleWorker
	if m.managers[node] {
		role = transport.RoleManager
	}
	return m.byRole[role], m.hash[role]
}

// nodesChanged works out anew what depends on the nodes as a whole: the mesh, and the membership.
func (v *view) nodesChanged() {
	nodes := slices.SortedFunc(store.All[*cluster.Node](v.snap), func(a, b *cluster.Node) int { return compareIDs(a.ID, b.ID) })
	if peers := v.mesh(nodes); !slices.Equal(peers, v.peers) {
		v.peers = peers
		v.generation++
	}
	silent := make(map[cluster.ID]bool)
	for _, n := range nodes {
		if n.State != cluster.NodeReady {
			silent[n.ID] = true
		}
	}
	if !maps.Equal(silent, v.silent) {
		v.silent = silent
		v.generation++
	}
	v.members = v.membership(nodes)
}

// mesh lists the nodes that have a place in the mesh. A cluster of one needs none.
func (v *view) mesh(nodes []*cluster.Node) []agentapi.Peer {
	settings, ok := v.snap.Settings()
	if !ok || settings.Mesh == "" {
		return nil
	}
	var peers []agentapi.Peer
	for _, n := range nodes {
		if !n.Address.IsValid() || !n.Subnet.IsValid() || settings.Mesh == cluster.MeshWireGuard && n.Description.MeshKey == "" {
			continue
		}
		peers = append(peers, agentapi.Peer{
			Node: n.ID, Name: n.Name, Subnet: n.Subnet, Key: n.Description.MeshKey,
			Endpoint: netip.AddrPortFrom(n.Address, settings.MeshPort),
		})
	}
	if len(peers) < 2 {
		return nil
	}
	return peers
}

func (v *view) membership(nodes []*cluster.Node) membership {
	m := membership{managers: make(map[cluster.ID]bool), byRole: make(map[string]*agentapi.Membership), hash: make(map[string]string)}
	authority, ok := store.Get[*cluster.Authority](v.snap, cluster.AuthorityID)
	if !ok {
		return m
	}
	var managers []agentapi.Manager
	text := ""
	for _, n := range nodes {
		if n.Manager {
			m.managers[n.ID] = true
			managers = append(managers, agentapi.Manager{Node: n.ID, Address: n.Description.Listen})
			text += n.ID.String() + " " + n.Description.Listen + "\n"
		}
	}
	slices.SortFunc(managers, func(a, b agentapi.Manager) int { return cmp.Compare(a.Node.String(), b.Node.String()) })
	roots, issuer := identity.RootsPEM(authority), identity.IssuerHash(authority)
	for _, role := range []string{transport.RoleWorker, transport.RoleManager} {
		m.byRole[role] = &agentapi.Membership{Role: role, Roots: roots, Issuer: issuer, Managers: managers}
		m.hash[role] = identity.HashText([]byte(role + "\n" + text + issuer + identity.HashText(roots)))
	}
	return m
}
