package cluster

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Level is a feature level. Each version of baton knows all levels up to one; a cluster is at the highest that every member
// knows. What a version adds to the stored objects, or to what managers and agents tell each other so that it must be
// understood, comes with a new level, and is used only in clusters that are at it. So versions that are neighbours work
// together while a cluster is upgraded node by node, and until the last node the old version can be brought back.
//
// A cluster never goes back: a node that does not know its level is refused. Zero, as in what the first versions wrote, is
// LevelFirst.
type Level int

// The feature levels.
const (
	LevelFirst Level = 1
	// LevelLeases has volumes that are given up with their node, with the leases of tasks that write to them, and witnesses.
	LevelLeases Level = 2
	// LevelIngress has services with ingress rules, and an edge on every node that serves them.
	LevelIngress Level = 3
	// LevelAutoscale has services whose number of tasks follows their load, and edges that hold requests for one that rests.
	LevelAutoscale Level = 4
	// LevelTraffic has ingress rules with TLS and further keys, and rollouts judged by traffic.
	LevelTraffic Level = 5
)

// levelNewest is the highest level that this version knows.
const levelNewest = LevelTraffic

// levelText is another number for levelNewest, for builds that stand for a neighbouring version in tests. The linker sets it.
var levelText string

// LevelNewest is the highest feature level that this version of baton knows.
func LevelNewest() Level {
	if n, err := strconv.Atoi(levelText); err == nil {
		return Level(n)
	}
	return levelNewest
}

// Or is l, or LevelFirst where nothing is said.
func (l Level) Or() Level { return max(l, LevelFirst) }

// Admit refuses a node whose baton knows levels up to known, when the cluster is above that. A cluster that has no settings
// yet admits all.
func (s *Settings) Admit(known Level) error {
	if s == nil || known.Or() >= s.Level.Or() {
		return nil
	}
	return fmt.Errorf("this cluster is at feature level %d, and this node's baton knows %d at most: install the version that the other nodes run", s.Level, known.Or())
}

// Behind are the nodes that do not know a level, sorted by name.
func Behind(nodes iter.Seq[*Node], level Level) []*Node {
	var out []*Node
	for n := range nodes {
		if n.Description.Level.Or() < level {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b *Node) int { return strings.Compare(a.Name, b.Name) })
	return out
}
