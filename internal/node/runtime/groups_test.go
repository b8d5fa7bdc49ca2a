package runtime

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"pgregory.net/rapid"

	"baton/internal/model/cluster"
)

func mustJoin(t *testing.T, g *groups, kin string) (task, founder cluster.ID) {
	t.Helper()
	task = cluster.NewID(nil)
	founder, err := g.join(t.Context(), task, kin, false)
	if err != nil {
		t.Fatal(err)
	}
	g.opened(task)
	return task, founder
}

func TestGroupsSpreadAndFill(t *testing.T) {
	g := newGroups()
	var web []cluster.ID
	shims := map[cluster.ID]int{}
	for range 2 * tasksPerShim {
		_, f := mustJoin(t, g, "web")
		web = append(web, f)
		shims[f]++
	}
	if web[0] == web[1] || len(shims) != 2 || shims[web[0]] != tasksPerShim {
		t.Errorf("sixteen tasks of a service are in %v, want eight in each of two, the first two apart", shims)
	}
	if _, f := mustJoin(t, g, "web"); shims[f] != 0 {
		t.Error("a full group was joined")
	}
	_, db := mustJoin(t, g, "db")
	if _, cache := mustJoin(t, g, "cache"); cache != db || shims[db] != 0 {
		t.Error("two services of one task are not in the one shim that has room")
	}
}

// A replacement goes where the others of its service are not, though the one that it replaces is still there.
func TestGroupsIgnoreTheEnded(t *testing.T) {
	g := newGroups()
	a, in := mustJoin(t, g, "web")
	_, other := mustJoin(t, g, "web")
	g.ended(a)
	if _, f := mustJoin(t, g, "web"); f != in {
		t.Errorf("the replacement is in %s, want it apart from the one in %s", f, other)
	}
}

func TestGroupsWaitForTheFounder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroups()
		first := cluster.NewID(nil)
		if f, err := g.join(t.Context(), first, "a", false); err != nil || f != first {
			t.Fatalf("the first: %s, %v; want a group of its own", f, err)
		}
		join := func() (got <-chan cluster.ID) {
			c := make(chan cluster.ID, 1)
			go func() {
				f, _ := g.join(t.Context(), cluster.NewID(nil), "b", false)
				c <- f
			}()
			synctest.Wait()
			return c
		}
		second := join()
		select {
		case f := <-second:
			t.Fatalf("joined %s before its shim serves", f)
		default:
		}
		g.opened(first)
		if f := <-second; f != first {
			t.Errorf("the second is in %s, want %s", f, first)
		}
		// A founder that takes its time is not waited for, and one that fails is not joined.
		g.shut(first)
		slow := cluster.NewID(nil)
		if _, err := g.join(t.Context(), slow, "a", false); err != nil {
			t.Fatal(err)
		}
		third, began := join(), time.Now()
		if f := <-third; f == slow || time.Since(began) != openMax {
			t.Errorf("the third is in %s after %s, want one of its own after %s", f, time.Since(began), openMax)
		}
		g = newGroups()
		if _, err := g.join(t.Context(), slow, "a", false); err != nil {
			t.Fatal(err)
		}
		fourth := join()
		g.leave(slow)
		if f := <-fourth; f == slow {
			t.Error("joined a group whose founder failed")
		}
		g = newGroups()
		if _, err := g.join(t.Context(), slow, "a", false); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.join(ctx, first, "b", false); !errors.Is(err, context.Canceled) {
			t.Errorf("a wait that is given up: %v", err)
		}
	})
}

// A shim ends with its last task: that waits for a task which is joining, and is joined no more once it goes.
func TestGroupsDepart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroups()
		last, founder := mustJoin(t, g, "web")
		next := cluster.NewID(nil)
		if f, err := g.join(t.Context(), next, "db", false); err != nil || f != founder {
			t.Fatalf("%s, %v; want it to join %s", f, err, founder)
		}
		gone := make(chan struct{})
		go func() {
			g.depart(t.Context(), last)
			close(gone)
		}()
		synctest.Wait()
		select {
		case <-gone:
			t.Fatal("the last task goes while another joins")
		default:
		}
		g.opened(next)
		<-gone
		g.leave(last)
		g.depart(t.Context(), next)
		if _, f := mustJoin(t, g, "cache"); f == founder {
			t.Error("joined a shim whose last task is going")
		}
		// One that is stuck in joining is not waited for for ever.
		g = newGroups()
		last, _ = mustJoin(t, g, "web")
		if _, err := g.join(t.Context(), next, "db", false); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if g.depart(t.Context(), last); time.Since(began) != joinMax {
			t.Errorf("it goes after %s, want %s", time.Since(began), joinMax)
		}
	})
}

// What runs is all that is needed to know the groups.
func TestGroupsLoad(t *testing.T) {
	ids := []cluster.ID{cluster.NewID(nil), cluster.NewID(nil), cluster.NewID(nil), cluster.NewID(nil)}
	box := func(i, founder int, executable string) containers.Container {
		return containers.Container{
			ID: ids[i].String(), Runtime: containers.RuntimeInfo{Name: executable},
			Labels: map[string]string{labelGroup: ids[founder].String(), labelKin: "web"},
		}
	}
	alone := box(3, 3, "/shim")
	alone.Labels = nil // of an earlier version
	cs := []containers.Container{box(0, 0, "/shim"), box(1, 0, "/shim"), box(2, 2, "/older"), alone}
	procs := map[string]*tasktypes.Process{
		ids[1].String(): {Status: tasktypes.Status_RUNNING}, ids[2].String(): {Status: tasktypes.Status_RUNNING}, ids[3].String(): {Status: tasktypes.Status_RUNNING},
	}
	g := newGroups()
	g.load(cs, procs, "/shim")
	if f, shared := g.groupOf(ids[1]); f != ids[0] || !shared {
		t.Errorf("the second task is in %s, shared %v; want the group of the first", f, shared)
	}
	if f, shared := g.groupOf(ids[3]); f != ids[3] || shared {
		t.Errorf("a task without a label is in %s, shared %v; want it by itself", f, shared)
	}
	if _, f := mustJoin(t, g, "db"); f != ids[0] {
		t.Errorf("a new task joins %s, want the group whose shim serves and is of this version", f)
	}
	g.leave(ids[0])
	if !g.known(ids[0]) {
		t.Error("a group is forgotten while a task is in it")
	}
}

// Whatever tasks come and go: no group is too large, and a task never joins the one group that has all of its kin.
func TestGroupsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := newGroups()
		var tasks []cluster.ID
		rand := rapid.Uint64()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			pick := func() int { return int(rand.Draw(t, "which") % uint64(len(tasks))) }
			switch op := rapid.IntRange(0, 5).Draw(t, "op"); {
			case op <= 2 || len(tasks) == 0:
				id, kin := cluster.NewID(nil), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "kin")
				homes := map[cluster.ID]int{}
				for _, m := range g.of {
					if m.kin == kin && !m.over {
						homes[m.group]++
					}
				}
				f, err := g.join(context.Background(), id, kin, false)
				if err != nil {
					t.Fatal(err)
				}
				g.opened(id)
				if len(homes) == 1 && homes[f] > 0 {
					t.Fatalf("a task joined the only group of its kin")
				}
				tasks = append(tasks, id)
			case op == 3:
				g.ended(tasks[pick()])
			case op == 4:
				f, _ := g.groupOf(tasks[pick()])
				g.shut(f)
			default:
				i := pick()
				g.leave(tasks[i])
				tasks = append(tasks[:i], tasks[i+1:]...)
			}
			size := map[cluster.ID]int{}
			for _, m := range g.of {
				size[m.group]++
				if size[m.group] > tasksPerShim || g.all[m.group] == nil {
					t.Fatalf("group of %d tasks, known %v", size[m.group], g.all[m.group] != nil)
				}
			}
			if len(size) != len(g.all) {
				t.Fatalf("%d groups for %d with tasks", len(g.all), len(size))
			}
		}
	})
}
