package control

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// drawn makes a random file.
func drawn(t *rapid.T, label string) spec.Stack {
	s := spec.Stack{Name: "s"}
	for i := range rapid.IntRange(1, 3).Draw(t, label+" services") {
		name := fmt.Sprintf("%s of %c", label, 'a'+i)
		v := spec.Service{
			Name: string(rune('a' + i)), Image: fmt.Sprintf("x:%d", rapid.IntRange(1, 3).Draw(t, name+": image")),
			Replicas: rapid.IntRange(0, 4).Draw(t, name+": replicas"),
		}
		v.Resources.Reservations.CPU = spec.MilliCPU(500 * rapid.IntRange(0, 4).Draw(t, name+": cpu"))
		switch rapid.IntRange(0, 5).Draw(t, name+": kind") {
		case 0:
			v.Mode, v.Replicas = spec.Global, 0
		case 1:
			v.Replicas = 1
			v.Mounts = []spec.Mount{{Kind: spec.MountVolume, Source: "d" + v.Name, Target: "/data"}}
			s.Volumes = append(s.Volumes, spec.Volume{Name: "d" + v.Name})
		}
		if i > 0 && rapid.Bool().Draw(t, name+": depends") {
			v.DependsOn = []spec.Dependency{{Service: "a", Condition: spec.DependStarted, Required: true}}
		}
		s.Services = append(s.Services, v)
	}
	return s
}

// TestPlanPredictsWhatUpDoes: what Preview says of a deployment is what the engine then does on nodes where all goes well,
// and the same deployment again changes nothing.
func TestPlanPredictsWhatUpDoes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, rapid.IntRange(1, 4).Draw(rt, "nodes"))
		w.deploy(drawn(rt, "first"))
		w.work(2 * time.Minute)
		file := drawn(rt, "second")
		d := w.deploy(file)
		watch := newPreview(w)
		predicted, err := Preview(w.st.Fork(), d.Stack.ID, w.now, 1)
		if err != nil {
			rt.Fatal(err)
		}
		w.engine = NewEngine(nil, 1) // the tie-breaker of the preview
		w.cursor.Close()
		w.cursor = w.st.Changes(0, store.Filter{})
		w.work(2 * time.Minute)
		if did := watch.actions(); !reflect.DeepEqual(shown(predicted), shown(did)) {
			rt.Fatalf("predicted\n%v\ndid\n%v", shown(predicted), shown(did))
		}
		if again := w.deploy(file); len(again.Put) != 0 {
			rt.Fatalf("up twice writes %d objects:\n%s", len(again.Put), again.Diff)
		}
	})
}

// newPreview looks at the world as Preview looks at its fork.
func newPreview(w *world) *preview {
	p := &preview{fork: w.st, before: make(map[cluster.ID]*cluster.Task), services: make(map[cluster.ID]string)}
	st, _ := w.st.Snapshot().StackByName("s")
	p.stack = st.ID
	for s := range w.st.Snapshot().ServicesByStack(st.ID) {
		p.services[s.ID] = s.Name
		for t := range w.st.Snapshot().TasksByService(s.ID) {
			if t.Live() && t.Desired == cluster.DesiredRun {
				p.before[t.ID] = t
			}
		}
	}
	return p
}

// shown leaves out the free text.
func shown(list []api.Action) (out []string) {
	for _, a := range list {
		out = append(out, fmt.Sprintf("%s %s/%d %s on %s", a.Kind, a.Service, a.Slot, a.Task.Short(), a.Node))
	}
	return out
}
