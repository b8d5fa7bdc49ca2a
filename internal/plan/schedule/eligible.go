package schedule

import (
	"slices"

	"baton/internal/model/cluster"
)

// Eligible returns the nodes that a revision's constraints and platforms allow, whatever their state, availability and free
// resources, sorted by id: where a global service has its tasks.
func (v *View) Eligible(rev *cluster.Revision) []cluster.ID {
	d := newNeed(v, Group{Revision: rev})
	var out []cluster.ID
	for _, n := range v.byID {
		if d.allows(n) {
			out = append(out, n.ID)
		}
	}
	slices.SortFunc(out, func(a, b cluster.ID) int { return slices.Compare(a[:], b[:]) })
	return out
}

// allows checks only what the operator and the revision say of each other for good.
func (d *need) allows(n *node) bool {
	if d.broken != "" {
		return false
	}
	if want := d.spec.Placement.Platforms; len(want) > 0 && !slices.ContainsFunc(want, n.is) {
		return false
	}
	for _, c := range d.constraints {
		if !c.Match(n.attribute) {
			return false
		}
	}
	return true
}
