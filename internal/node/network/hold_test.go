package network

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// TestHeldConnection checks that a connection to a service that rests is held by its client's own kernel, wakes the service, and goes
// through once there is a task; and that nobody wakes a service that they may not reach.
func TestHeldConnection(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(214)
	front, other := cluster.NewID(nil), cluster.NewID(nil)
	web, client, stranger := n.attach(10, nil, front), n.attach(11, nil, front), n.attach(12, nil, other)
	inner := n.attach(13, func(a *agent.Attachment) { a.Internal = true }, other)
	web.serve(80)
	resting := service("web", n.vip(5), front)
	resting.Holds = true
	resting.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
	ready := resting
	ready.Endpoints = []agentapi.Endpoint{web.endpoint()}
	members := []*task{web, client, stranger, inner}

	for _, tc := range []struct {
		name string
		ask  func() (name, from string, err error)
	}{
		{"task to service", func() (string, string, error) { return w.askWithin(10*time.Second, client.ns, "tcp", at(n.vip(5), 80)) }},
		{"host to service", func() (string, string, error) { return w.askWithin(10*time.Second, w.host, "tcp", at(n.vip(5), 80)) }},
		{"outside to published", func() (string, string, error) {
			return w.askWithin(10*time.Second, w.outside, "tcp", at(hostAddress, 8080))
		}},
		{"task to published", func() (string, string, error) {
			return w.askWithin(10*time.Second, client.ns, "tcp", at(hostAddress, 8080))
		}},
	} {
		n.apply(state([]agentapi.Service{resting}, members...))
		until(t, "the set to forget what woke the service before", func() bool { return len(n.wokenNow()) == 0 })
		type result struct {
			name string
			err  error
		}
		got := make(chan result, 1)
		go func() {
			name, _, err := tc.ask()
			got <- result{name, err}
		}()
		until(t, tc.name+" to wake the service", func() bool { return slices.Equal(n.wokenNow(), []cluster.ID{resting.ID}) })
		n.apply(state([]agentapi.Service{ready}, members...))
		if r := <-got; r.err != nil || r.name != "host10" {
			t.Errorf("%s: got %q, %v; want the task to answer", tc.name, r.name, r.err)
		}
	}

	n.apply(state([]agentapi.Service{resting}, members...))
	until(t, "the set to forget what woke the service before", func() bool { return len(n.wokenNow()) == 0 })
	for what, err := range map[string]error{
		"a task on another network":              second(stranger.ask("tcp", at(n.vip(5), 80))),
		"a task without a way out":               second(inner.ask("tcp", at(n.vip(5), 80))),
		"a task without a way out, to published": second(inner.ask("tcp", at(hostAddress, 8080))),
	} {
		if err == nil || isTimeout(err) {
			t.Errorf("%s: got %v, want it refused at once", what, err)
		}
	}
	if woken := n.wokenNow(); len(woken) > 0 {
		t.Errorf("who may not reach the service woke it")
	}
}

func (n *node) wokenNow() []cluster.ID {
	n.w.t.Helper()
	list, err := n.Woken()
	check(n.w.t, err)
	return list
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

// TestUsed checks which connections count as use of a task.
func TestUsed(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(216)
	front := cluster.NewID(nil)
	web, client := n.attach(10, nil, front), n.attach(11, nil, front)
	web.serve(80)
	n.apply(state([]agentapi.Service{service("web", n.vip(5), front, web)}, web, client))
	used := func() bool {
		t.Helper()
		m, err := n.Used([]netip.Addr{web.Address})
		check(t, err)
		return m[web.Address]
	}
	if used() {
		t.Error("without any connection the task counts as used")
	}
	if _, _, err := w.fromHost("tcp", at(web.Address, 80)); err != nil {
		t.Fatal(err)
	}
	if used() {
		t.Error("a probe counts as use")
	}
	c, err := w.dial(client.ns, "tcp", at(n.vip(5), 80))
	check(t, err)
	for range 3 {
		if !used() {
			t.Error("an open connection does not count as use")
		}
	}
	check(t, c.Close())
	until(t, "an ended connection to count no more", func() bool { return !used() })
	if _, _, err := client.ask("tcp", at(n.vip(5), 80)); err != nil {
		t.Fatal(err)
	}
	if !used() {
		t.Error("a connection that began and ended since does not count as use")
	}
	until(t, "it to count no more", func() bool { return !used() })
}
