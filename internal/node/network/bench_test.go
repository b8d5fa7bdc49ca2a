package network

import (
	"net/netip"
	"testing"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// big is a cluster of 10,000 services with 10 tasks each, all on one of 100 networks.
func big() agentapi.NetworkState {
	const services, replicas, networks = 10000, 10, 100
	var s agentapi.NetworkState
	ids := make([]cluster.ID, networks)
	for i := range ids {
		ids[i] = cluster.NewID(nil)
	}
	at := func(first byte, i int) netip.Addr {
		return netip.AddrFrom4([4]byte{first, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	s.Services = make([]agentapi.Service, services)
	for i := range s.Services {
		svc := agentapi.Service{ID: cluster.NewID(nil), Name: "web", Stack: "s" + ids[0].Short(), Address: at(11, i+1), Networks: map[cluster.ID][]string{ids[i%networks]: nil}}
		for j := range replicas {
			e := agentapi.Endpoint{Task: cluster.NewID(nil), Address: at(10, 1<<17+i*replicas+j)}
			svc.Endpoints = append(svc.Endpoints, e)
			s.Members = append(s.Members, agentapi.Member{Task: e.Task, Address: e.Address, Networks: []cluster.ID{ids[i%networks]}})
		}
		s.Services[i] = svc
	}
	return s
}

func BenchmarkBig(b *testing.B) {
	w := newWorld(b)
	n := w.newNode(210)
	n.attach(10, nil)
	s := big()
	b.Run("build", func(b *testing.B) {
		for b.Loop() {
			n.installed = nil // as after a restart
			check(b, n.Apply(b.Context(), s))
		}
	})
	b.Run("change", func(b *testing.B) {
		all := s.Services[7].Endpoints
		for i := 0; b.Loop(); i++ {
			next := s
			next.Services = append([]agentapi.Service(nil), s.Services...)
			next.Services[7].Endpoints = all[:9+i%2]
			check(b, n.Apply(b.Context(), next))
		}
	})
}

func BenchmarkAttachDetach(b *testing.B) {
	w := newWorld(b)
	n := w.newNode(210)
	n.apply(agentapi.NetworkState{})
	for b.Loop() {
		tk := n.attach(10, nil)
		check(b, n.Detach(b.Context(), tk.Task))
		check(b, tk.ns.Close())
	}
}
