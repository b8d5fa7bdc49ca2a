package server

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// prefixMin is the least that may be given of an id: fewer characters look too much like names.
const prefixMin = 3

// target is what a user named. Exactly the pointers are set that the kind says; a slot has its service, and its task when
// there is one.
type target struct {
	kind    cluster.Kind
	stack   *cluster.Stack
	service *cluster.Service
	slot    int
	task    *cluster.Task
	node    *cluster.Node
}

// resolver finds targets in a snapshot. Names are looked for in the stack hint first, when it is set, and in all others only
// without it.
type resolver struct {
	snap store.Snapshot
	hint string
}

// any finds a service, a slot, a task, a node or a stack, in this order.
func (r resolver) any(name string) (target, error) {
	if name == "" {
		return r.nothing()
	}
	if strings.Contains(name, "/") {
		return r.path(name)
	}
	services, err := r.services(name)
	if err != nil {
		return target{}, err
	}
	switch {
	case len(services) == 1:
		return target{kind: cluster.KindService, service: services[0]}, nil
	case len(services) > 1:
		return target{}, r.ambiguous(name, services)
	}
	if n, ok := r.snap.NodeByName(name); ok {
		return target{kind: cluster.KindNode, node: n}, nil
	}
	if st, ok := r.snap.StackByName(name); ok {
		return target{kind: cluster.KindStack, stack: st}, nil
	}
	if t, ok, err := r.byPrefix(name); ok || err != nil {
		return t, err
	}
	return target{}, r.unknown("service, task, node or stack", name, r.names())
}

func (r resolver) nothing() (target, error) {
	if r.hint == "" {
		return target{}, api.Errorf(api.CodeInvalid, "no target was named").WithMend("name a service, service/slot, task, node or stack")
	}
	st, err := r.stack(r.hint)
	return target{kind: cluster.KindStack, stack: st}, err
}

// path finds service/slot, service/node, stack/service and stack/service/slot.
func (r resolver) path(name string) (target, error) {
	parts := strings.Split(name, "/")
	if len(parts) == 2 {
		if services, err := r.services(parts[0]); err != nil {
			return target{}, err
		} else if len(services) > 0 {
			if t, ok, err := r.inService(name, services, parts[1]); ok || err != nil {
				return t, err
			}
		}
	}
	if len(parts) > 3 {
		return target{}, api.Errorf(api.CodeInvalid, "target %q has too many parts", name).WithMend("write service/slot or stack/service/slot")
	}
	st, ok := r.snap.StackByName(parts[0])
	if !ok {
		return target{}, r.unknown("service or stack", parts[0], r.names())
	}
	inside := resolver{snap: r.snap, hint: st.Name}
	svc, err := inside.service(parts[1])
	if err != nil || len(parts) == 2 {
		return target{kind: cluster.KindService, service: svc}, err
	}
	t, ok, err := inside.inService(name, []*cluster.Service{svc}, parts[2])
	if !ok && err == nil {
		err = api.Errorf(api.CodeNotFound, "service %s has no slot or node %q", parts[1], parts[2]).WithMend("see `baton ps %s`", parts[1])
	}
	return t, err
}

// inService finds a slot by its number or, of a global service, by its node.
func (r resolver) inService(name string, services []*cluster.Service, place string) (target, bool, error) {
	slot, err := strconv.Atoi(place)
	node, isNode := r.snap.NodeByName(place)
	if err != nil && !isNode {
		return target{}, false, nil
	}
	if len(services) > 1 {
		return target{}, false, r.ambiguous(name, services)
	}
	svc := services[0]
	var best *cluster.Task
	for t := range r.snap.TasksByService(svc.ID) {
		here := t.Slot == slot && err == nil || isNode && t.Node == node.ID
		if here && (best == nil || newer(t, best)) {
			best = t
		}
	}
	if best == nil {
		return target{}, false, api.Errorf(api.CodeNotFound, "service %s has no task %s", svc.Name, name).WithMend("see `baton ps %s`", svc.Name)
	}
	return target{kind: cluster.KindTask, service: svc, slot: slot, task: best}, true, nil
}

// newer prefers tasks that have not ended, then wanted ones, then those made last.
func newer(a, b *cluster.Task) bool {
	if a.Observed.Terminal() != b.Observed.Terminal() {
		return !a.Observed.Terminal()
	}
	if (a.Desired == cluster.DesiredRun) != (b.Desired == cluster.DesiredRun) {
		return a.Desired == cluster.DesiredRun
	}
	return a.Created.After(b.Created)
}

func (r resolver) byPrefix(name string) (target, bool, error) {
	if len(name) < prefixMin {
		return target{}, false, nil
	}
	ids := r.snap.FindByPrefix(cluster.KindTask, name)
	switch len(ids) {
	case 0:
		return target{}, false, nil
	case 1:
		t, _ := store.Get[*cluster.Task](r.snap, ids[0])
		svc, _ := store.Get[*cluster.Service](r.snap, t.Service)
		return target{kind: cluster.KindTask, service: svc, slot: t.Slot, task: t}, true, nil
	}
	short := make([]string, len(ids))
	for i, id := range ids {
		short[i] = id.Short()
	}
	return target{}, false, api.Errorf(api.CodeAmbiguous, "%q is the start of several task ids: %s", name, strings.Join(short, ", ")).WithMend("write more of it")
}

// services finds the services of a name: in the hinted stack, else in all.
func (r resolver) services(name string) ([]*cluster.Service, error) {
	if r.hint != "" {
		st, err := r.stack(r.hint)
		if err != nil {
			return nil, err
		}
		if svc, ok := r.snap.ServiceByName(st.ID, name); ok {
			return []*cluster.Service{svc}, nil
		}
		return nil, nil
	}
	var found []*cluster.Service
	for _, st := range r.stacks() {
		if svc, ok := r.snap.ServiceByName(st.ID, name); ok {
			found = append(found, svc)
		}
	}
	return found, nil
}

// service finds exactly one service, by its name or stack/service.
func (r resolver) service(name string) (*cluster.Service, error) {
	t, err := r.any(name)
	if err == nil && t.kind == cluster.KindService {
		return t.service, nil
	}
	if e, ok := err.(*api.Error); ok && e.Code == api.CodeAmbiguous {
		return nil, err
	}
	return nil, r.unknown("service", name, r.serviceNames())
}

func (r resolver) stack(name string) (*cluster.Stack, error) {
	if st, ok := r.snap.StackByName(name); ok {
		return st, nil
	}
	var names []string
	for _, st := range r.stacks() {
		names = append(names, st.Name)
	}
	return nil, r.unknown("stack", name, names)
}

func (r resolver) node(name string) (*cluster.Node, error) {
	if n, ok := r.snap.NodeByName(name); ok {
		return n, nil
	}
	ids := r.snap.FindByPrefix(cluster.KindNode, name)
	if len(ids) == 1 && len(name) >= prefixMin {
		n, _ := store.Get[*cluster.Node](r.snap, ids[0])
		return n, nil
	}
	var names []string
	for n := range store.All[*cluster.Node](r.snap) {
		names = append(names, n.Name)
	}
	return nil, r.unknown("node", name, names)
}

// task finds a task that may have a process: by slot, id, or service when it has just one.
func (r resolver) task(name string) (*cluster.Task, error) {
	t, err := r.any(name)
	if err != nil {
		return nil, err
	}
	switch t.kind {
	case cluster.KindTask:
		return t.task, nil
	case cluster.KindService:
		var best *cluster.Task
		for task := range r.snap.TasksByService(t.service.ID) {
			if task.Observed == cluster.ObservedRunning && (best == nil || task.Desired < best.Desired || task.Desired == best.Desired && task.Slot < best.Slot) {
				best = task
			}
		}
		if best == nil {
			return nil, api.Errorf(api.CodeUnavailable, "service %s has no running task", t.service.Name).WithMend("ask `baton why %s`", t.service.Name)
		}
		return best, nil
	}
	return nil, api.Errorf(api.CodeInvalid, "%q is a %s, not a task", name, t.kind).WithMend("name a service, service/slot or task id; see `baton ps`")
}

func (r resolver) stacks() []*cluster.Stack {
	return slices.SortedFunc(store.All[*cluster.Stack](r.snap), func(a, b *cluster.Stack) int { return cmp.Compare(a.Name, b.Name) })
}

func (r resolver) serviceNames() []string {
	var names []string
	for svc := range store.All[*cluster.Service](r.snap) {
		if r.hint == "" || svc.StackName == r.hint {
			names = append(names, svc.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (r resolver) names() []string {
	names := r.serviceNames()
	for n := range store.All[*cluster.Node](r.snap) {
		names = append(names, n.Name)
	}
	for _, st := range r.stacks() {
		names = append(names, st.Name)
	}
	return names
}

func (r resolver) ambiguous(name string, services []*cluster.Service) error {
	full := make([]string, len(services))
	for i, svc := range services {
		full[i] = svc.StackName + "/" + svc.Name
	}
	return api.Errorf(api.CodeAmbiguous, "%q is in several stacks: %s", name, strings.Join(full, ", ")).WithMend("write stack/service, or choose the stack with -s")
}

func (r resolver) unknown(kind, name string, candidates []string) *api.Error {
	where := ""
	if r.hint != "" && !strings.Contains(kind, "stack") {
		where = " in stack " + r.hint
	}
	e := api.Errorf(api.CodeNotFound, "no %s %q%s", kind, name, where)
	if near := spec.Nearest(name, candidates); near != "" {
		return e.WithMend("did you mean %q?", near)
	}
	switch kind {
	case "stack":
		return e.WithMend("see `baton ls --stacks` for what there is, or deploy it with `baton up`")
	case "node", "volume", "image", "secret":
		return e.WithMend("see `baton %s ls`", kind)
	case "config":
		return e.WithMend("see `baton cfg ls`")
	}
	return e.WithMend("see `baton ls` and `baton ps`")
}
