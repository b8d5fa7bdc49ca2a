package runtime

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"

	"baton/internal/model/cluster"
)

const (
	// tasksPerShim is how many tasks one shim serves at most. A shim that dies takes its tasks along, so this is what one such death may
	// cost; a shim's own memory (5 MB) divided by more than this hardly counts beside the rest of a task.
	tasksPerShim = 8
	// openMax is how long a task waits for a shim that is being started for another, which may first have a volume to fill.
	openMax = time.Second
	// joinMax is how long a task that is removed waits for others to join the shim that would end with it.
	joinMax = 10 * time.Second
)

// groups know which task lives in which shim, and choose one for a new task; the package documentation says by which rules. A group is
// called by the task that founded it (package shim keeps that true), and lives as long as one of its tasks is remembered.
//
// What they know comes from the containers' labels when the runtime begins, so it survives every restart.
type groups struct {
	mu  sync.Mutex
	of  map[cluster.ID]member
	all map[cluster.ID]*group
	// changed is closed, and made anew, when a join has come to its end.
	changed chan struct{}
}

// member is a task that is in a shim, or about to be.
type member struct {
	group   cluster.ID
	kin     string // tasks of equal kin are spread
	over    bool   // its process has ended
	joining bool   // its process is not in the shim yet: the shim does not count on it
	leaving bool   // its process is about to go from the shim: the shim may end with it
}

type group struct {
	open    bool          // its shim serves: others may join
	opening chan struct{} // closed when it is no longer to be expected; nil: it is not
}

func newGroups() *groups {
	return &groups{of: map[cluster.ID]member{}, all: map[cluster.ID]*group{}, changed: make(chan struct{})}
}

// kinOf names what a task can replace: other tasks of its service and revision. Tasks of other revisions do not count, because a rollout
// ends them.
func kinOf(t *cluster.Task) string { return t.Service.String() + "/" + t.Revision.String() }

// load takes over what runs: every container with its labels, and its process, if containerd knows one. Shims that another executable
// started are left to their tasks: who joins a shim relies on its version.
func (g *groups) load(cs []containers.Container, procs map[string]*tasktypes.Process, executable string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range cs {
		id, err := cluster.ParseID(c.ID)
		if err != nil {
			continue
		}
		m := member{group: id, kin: c.Labels[labelKin]}
		if founder, err := cluster.ParseID(c.Labels[labelGroup]); err == nil {
			m.group = founder
		}
		p := procs[c.ID]
		m.over = p == nil || p.Status == tasktypes.Status_STOPPED
		grouped := c.Labels[labelGroup] != ""
		g.add(id, m)
		if p != nil && grouped && c.Runtime.Name == executable {
			g.all[m.group].open = true
		}
	}
}

// add makes a task a member; g.mu is held.
func (g *groups) add(id cluster.ID, m member) {
	g.of[id] = m
	if g.all[m.group] == nil {
		g.all[m.group] = &group{}
	}
}

// join makes a task a member of a group and returns that: of one whose shim serves, or of its own, whose shim its start is then to
// start. With alone it is the latter. Every join ends with opened or leave.
func (g *groups) join(ctx context.Context, id cluster.ID, kin string, alone bool) (cluster.ID, error) {
	patience := time.NewTimer(openMax)
	defer patience.Stop()
	for {
		chosen, opening := g.tryJoin(id, kin, alone)
		if opening == nil {
			return chosen, nil
		}
		select {
		case <-opening:
		case <-patience.C:
			alone = true
		case <-ctx.Done():
			return cluster.ID{}, ctx.Err()
		}
	}
}

// tryJoin returns what to wait for when the group that fits is not open yet.
func (g *groups) tryJoin(id cluster.ID, kin string, alone bool) (cluster.ID, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !alone {
		if founder, ok := chooseGroup(g.views(kin)); ok {
			if gr := g.all[founder]; !gr.open {
				return cluster.ID{}, gr.opening
			}
			g.add(id, member{group: founder, kin: kin, joining: true})
			return founder, nil
		}
	}
	g.add(id, member{group: id, kin: kin, joining: true})
	if gr := g.all[id]; !gr.open && gr.opening == nil {
		gr.opening = make(chan struct{})
	}
	return id, nil
}

// opened says that the task's process is in its shim, which thus serves.
func (g *groups) opened(id cluster.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.of[id]
	if !ok {
		return
	}
	m.joining = false
	g.of[id] = m
	gr := g.all[m.group]
	gr.open = true
	gr.settle()
	g.tell()
}

// tell wakes those who wait for the end of a join; g.mu is held.
func (g *groups) tell() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// depart says that the task's process is about to be taken from its shim, which ends if it was the last. It waits for those that are
// joining the shim; from its return on nobody joins one that has none but leaving tasks.
func (g *groups) depart(ctx context.Context, id cluster.ID) {
	patience := time.NewTimer(joinMax)
	defer patience.Stop()
	for {
		g.mu.Lock()
		m, ok := g.of[id]
		if m.joining { // its start has failed: no one need wait for it
			m.joining = false
			g.of[id] = m
			g.tell()
		}
		wait := false
		for other, o := range g.of {
			wait = wait || o.joining && o.group == m.group && other != id
		}
		if ok && !wait {
			m.leaving = true
			g.of[id] = m
		}
		changed := g.changed
		g.mu.Unlock()
		if !ok || !wait {
			return
		}
		select {
		case <-changed:
		case <-patience.C:
			return // the join fails if this was the last, and is tried again
		case <-ctx.Done():
			return
		}
	}
}

// settle wakes those that wait for the group.
func (gr *group) settle() {
	if gr.opening != nil {
		close(gr.opening)
		gr.opening = nil
	}
}

// shut lets nobody join a group any more: its shim does not answer.
func (g *groups) shut(founder cluster.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gr := g.all[founder]; gr != nil {
		gr.open = false
		gr.settle()
	}
}

// ended says that a task's process has ended; it stays a member until its container goes.
func (g *groups) ended(id cluster.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m, ok := g.of[id]; ok {
		m.over = true
		g.of[id] = m
	}
}

// groupOf returns the group of a task, its own if it is in none, and whether other tasks are in it.
func (g *groups) groupOf(id cluster.ID) (founder cluster.ID, shared bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	founder = id
	if m, ok := g.of[id]; ok {
		founder = m.group
	}
	for other, m := range g.of {
		shared = shared || other != id && m.group == founder
	}
	return founder, shared
}

// leave forgets a task.
func (g *groups) leave(id cluster.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.of[id]
	if !ok {
		return
	}
	delete(g.of, id)
	defer g.tell()
	if m.group == id && !g.all[id].open {
		g.all[id].settle() // it founded what it leaves
	}
	for _, other := range g.of {
		if other.group == m.group {
			return
		}
	}
	g.all[m.group].settle()
	delete(g.all, m.group)
}

// known reports whether the founder's group has members.
func (g *groups) known(founder cluster.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all[founder] != nil
}

// groupView is what counts when a group is chosen.
type groupView struct {
	founder cluster.ID
	open    bool // or opening, and not about to end with the last of its tasks
	size    int  // its tasks, also those that have ended: the shim still holds them
	kin     int  // of these, those that run and that the new task can replace
}

// views shows every group that is open or opening to a task of a kin; g.mu is held.
func (g *groups) views(kin string) []groupView {
	by := make(map[cluster.ID]groupView, len(g.all))
	for founder := range g.all {
		by[founder] = groupView{founder: founder}
	}
	for _, m := range g.of {
		v, gr := by[m.group], g.all[m.group]
		v.size++
		v.open = v.open || !m.leaving && (gr.open || gr.opening != nil)
		if m.kin == kin && !m.over {
			v.kin++
		}
		by[m.group] = v
	}
	return slices.Collect(maps.Values(by))
}

// chooseGroup picks a group for one more task, or none when it is to found one. While all of its kin are in one group it goes to another,
// so that no one shim's death takes them all; then it goes where the fewest of them are, and where the most tasks are in all, which
// leaves the fewest shims.
func chooseGroup(views []groupView) (cluster.ID, bool) {
	with := 0
	for _, v := range views {
		if v.kin > 0 {
			with++
		}
	}
	fits := slices.DeleteFunc(views, func(v groupView) bool {
		return !v.open || v.size >= tasksPerShim || with == 1 && v.kin > 0
	})
	if len(fits) == 0 {
		return cluster.ID{}, false
	}
	return slices.MinFunc(fits, func(a, b groupView) int {
		return cmp.Or(cmp.Compare(a.kin, b.kin), -cmp.Compare(a.size, b.size), strings.Compare(a.founder.String(), b.founder.String()))
	}).founder, true
}

// loadGroups learns of the shims that an earlier runtime started.
func (r *Runtime) loadGroups(ctx context.Context) error {
	cs, procs, err := r.listAll(ctx)
	if err != nil {
		return err
	}
	r.groups.load(cs, procs, r.cfg.Shim)
	return nil
}
