package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/release"
)

// users are the people who deploy, scale, restart, roll back and remove stacks, and drain nodes.
type users struct {
	w     *World
	files map[string]spec.Stack // what each stack's file says
	image int                   // versions built so far
}

const (
	stacksMax   = 3
	replicasMax = 4
)

func (u *users) start(w *World) {
	u.w, u.files = w, make(map[string]spec.Stack)
	for i := range 1 + w.rng.IntN(stacksMax) {
		name := fmt.Sprintf("s%d", i+1)
		w.after(w.between(0, 3*time.Second), "user deploys "+name, func() { u.deploy(name, u.stack(name)) })
	}
	u.next()
}

func (u *users) next() {
	u.w.after(u.w.between(200*time.Millisecond, 12*time.Second), "user acts", func() {
		if u.w.busy {
			u.act()
			u.next()
		}
	})
}

// act is one random operation on one random stack or node.
func (u *users) act() {
	w := u.w
	name := fmt.Sprintf("s%d", 1+w.rng.IntN(stacksMax))
	file, ok := u.files[name]
	switch p := w.rng.IntN(20); {
	case !ok || p == 0:
		u.deploy(name, u.stack(name))
	case p < 8:
		u.deploy(name, u.edit(file))
	case p < 10:
		u.deploy(name, file) // up twice changes nothing
	case p < 13:
		u.change(name, func(s *cluster.Service, sp *spec.Service) {
			if sp.Mode != spec.Global {
				s.Replicas, s.Scaled, s.Status.Converged = w.rng.IntN(replicasMax+1), true, false
			}
		})
	case p < 15:
		u.change(name, func(s *cluster.Service, _ *spec.Service) { s.RestartAt, s.Status.Converged = w.now, false })
	case p < 17:
		u.rollback(name)
	case p == 17:
		u.down(name, w.rng.IntN(2) == 0)
	default:
		u.availability()
	}
}

// write proposes what build makes of the present state, again after a conflict, as the server does.
func (u *users) write(build func(snap store.Snapshot) (store.Txn, error)) error {
	const tries = 5
	var err error
	for range tries {
		var t store.Txn
		if t, err = build(u.w.store.Snapshot()); err != nil || t.Empty() {
			return err
		}
		if _, err = u.w.log.Propose(context.Background(), t); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return err
}

var errSkip = errors.New("not now")

// deploy is `up`: the same planner and view as the server's.
func (u *users) deploy(name string, file spec.Stack) {
	w := u.w
	want := file
	want.Services = slices.Clone(file.Services)
	want.SetDefaults()
	if err := want.Validate(); err != nil {
		w.fail("the workload is not valid: %v", err)
		return
	}
	err := u.write(func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		st, ok := snap.StackByName(name)
		if ok && st.Removing {
			return t, errSkip
		}
		secrets, fresh := u.secrets(snap, st, want)
		d, err := release.Deploy(release.DeployInput{
			View: stacks.View{Snap: snap}, Want: want, Secrets: secrets, New: fresh, IDs: w.newID, Now: w.now,
		})
		if err != nil {
			return t, err
		}
		for _, o := range d.Put {
			t.Put(o)
		}
		w.tracef("  deploy %s:\n%s", name, d.Diff)
		return t, nil
	})
	if err != nil {
		w.tracef("  deploy %s: %v", name, err)
		return
	}
	u.files[name] = file
}

// secrets finds the stored versions of the stack's secrets; now and then the content is new.
func (u *users) secrets(snap store.Snapshot, st *cluster.Stack, want spec.Stack) (map[string]cluster.ID, []cluster.Object) {
	ids := make(map[string]cluster.ID)
	var fresh []cluster.Object
	for _, s := range want.Secrets {
		number := 0
		if st != nil {
			if old, ok := snap.SecretByName(st.ID, s.Name); ok {
				number = old.Number
				ids[s.Name] = old.ID
				if u.w.rng.IntN(4) > 0 {
					continue
				}
			}
		}
		made := &cluster.Secret{
			Meta: cluster.Meta{ID: u.w.newID(), Created: u.w.now}, Name: s.Name, Number: number + 1,
			Sealed: []byte("content"), Digest: []byte{byte(number)}, Size: 7,
		}
		if st != nil {
			made.Stack = st.ID
		}
		ids[s.Name] = made.ID
		fresh = append(fresh, made)
	}
	return ids, fresh
}

// change writes a changed copy of a random service.
func (u *users) change(stack string, f func(s *cluster.Service, sp *spec.Service)) {
	pick := u.w.rng.IntN(8)
	err := u.write(func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		st, ok := snap.StackByName(stack)
		if !ok {
			return t, errSkip
		}
		list := slices.Collect(snap.ServicesByStack(st.ID))
		if len(list) == 0 {
			return t, errSkip
		}
		svc := list[pick%len(list)]
		rev, ok := store.Get[*cluster.Revision](snap, svc.Revision)
		if svc.Removing || !ok {
			return t, errSkip
		}
		c := cluster.Copy(svc)
		f(c, &rev.Spec)
		t.Put(c)
		u.w.tracef("  service %s/%s: replicas %d, restart at %s", stack, c.Name, c.Replicas, c.RestartAt)
		return t, nil
	})
	if err != nil {
		u.w.tracef("  change of %s: %v", stack, err)
	}
}

func (u *users) rollback(stack string) {
	err := u.write(func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		st, ok := snap.StackByName(stack)
		if !ok || st.Removing {
			return t, errSkip
		}
		d, err := release.Rollback(release.RollbackInput{View: stacks.View{Snap: snap}, Stack: st, Reason: "asked for", IDs: u.w.newID, Now: u.w.now})
		if err != nil {
			return t, err
		}
		for _, o := range d.Put {
			t.Put(o)
		}
		return t, nil
	})
	u.w.tracef("  rollback of %s: %v", stack, err)
}

// down is what the server writes to remove a stack.
func (u *users) down(stack string, volumes bool) {
	err := u.write(func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		st, ok := snap.StackByName(stack)
		if !ok || st.Removing {
			return t, errSkip
		}
		c := cluster.Copy(st)
		c.Removing = true
		t.Put(c)
		for svc := range snap.ServicesByStack(st.ID) {
			c := cluster.Copy(svc)
			c.Removing = true
			t.Put(c)
		}
		for v := range snap.VolumesByStack(st.ID) {
			if volumes {
				c := cluster.Copy(v)
				c.Removing = true
				t.Put(c)
			}
		}
		return t, nil
	})
	u.w.tracef("  down %s, volumes %v: %v", stack, volumes, err)
	if err == nil {
		delete(u.files, stack)
	}
}

func (u *users) availability() {
	w := u.w
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	to := []cluster.Availability{cluster.NodeActive, cluster.NodeActive, cluster.NodeDrain, cluster.NodePause}[w.rng.IntN(4)]
	err := u.write(func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		old, ok := store.Get[*cluster.Node](snap, n.id)
		if !ok || old.Availability == to {
			return t, errSkip
		}
		c := cluster.Copy(old)
		c.Availability = to
		t.Put(c)
		return t, nil
	})
	w.tracef("  %s: %s: %v", n.name, to, err)
}
