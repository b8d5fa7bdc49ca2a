// Package stacks lets the release planner read the store.
//
// Concurrency: a View is a value over an immutable snapshot.
package stacks

import (
	"iter"
	"slices"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/plan/release"
)

// View reads a snapshot for the planner. What it returns is shared and read-only.
type View struct{ Snap store.Snapshot }

var _ release.View = View{}

// Stack implements release.View.
func (v View) Stack(name string) *cluster.Stack {
	s, _ := v.Snap.StackByName(name)
	return s
}

// Services implements release.View.
func (v View) Services(stack cluster.ID) []*cluster.Service {
	return collect(v.Snap.ServicesByStack(stack))
}

// Revision implements release.View.
func (v View) Revision(id cluster.ID) *cluster.Revision {
	r, _ := store.Get[*cluster.Revision](v.Snap, id)
	return r
}

// Releases implements release.View.
func (v View) Releases(stack cluster.ID) []*cluster.Release {
	return collect(v.Snap.ReleasesByStack(stack))
}

// Revisions implements release.View.
func (v View) Revisions(service cluster.ID) []*cluster.Revision {
	return collect(v.Snap.RevisionsByService(service))
}

// RevisionInUse implements release.View.
func (v View) RevisionInUse(id cluster.ID) bool {
	rev, ok := store.Get[*cluster.Revision](v.Snap, id)
	if !ok {
		return false
	}
	for t := range v.Snap.TasksByService(rev.Service) {
		if t.Revision == id {
			return true
		}
	}
	return false
}

// Networks implements release.View.
func (v View) Networks(stack cluster.ID) []*cluster.Network {
	return collect(v.Snap.NetworksByStack(stack))
}

// Materials implements release.View.
func (v View) Materials(stack cluster.ID) []cluster.Object {
	var out []cluster.Object
	for o := range v.Snap.SecretsByStack(stack) {
		out = append(out, o)
	}
	for o := range v.Snap.ConfigsByStack(stack) {
		out = append(out, o)
	}
	return out
}

// ExternalNetwork implements release.View. A cluster-wide network name is "<stack>_<network>", or the name of a network
// of no stack.
func (v View) ExternalNetwork(name string) *cluster.Network {
	if n, ok := v.Snap.NetworkByName(cluster.ID{}, name); ok {
		return n
	}
	for s := range store.All[*cluster.Stack](v.Snap) {
		if len(name) > len(s.Name)+1 && name[:len(s.Name)] == s.Name && name[len(s.Name)] == '_' {
			if n, ok := v.Snap.NetworkByName(s.ID, name[len(s.Name)+1:]); ok {
				return n
			}
		}
	}
	return nil
}

// Volume implements release.View.
func (v View) Volume(name string) *cluster.Volume {
	vol, _ := v.Snap.VolumeByName(name)
	return vol
}

func collect[T any](seq iter.Seq[T]) []T { return slices.Collect(seq) }

// Exclusive reports whether a revision mounts a single-writer volume.
func Exclusive(snap store.Snapshot, rev *cluster.Revision) bool {
	for _, id := range rev.Volumes {
		if v, ok := store.Get[*cluster.Volume](snap, id); ok && v.SingleWriter {
			return true
		}
	}
	return false
}
