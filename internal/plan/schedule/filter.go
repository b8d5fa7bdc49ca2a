package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// need is what a group asks of a node, parsed once.
type need struct {
	service     *cluster.Service
	spec        *spec.Service
	constraints []spec.Constraint
	broken      string // a constraint that cannot be parsed; validation refuses those, so it comes from an older version
	volumes     []*cluster.Volume
	missing     string // a volume that is not there
	ports       []cluster.HostPort
}

func newNeed(view *View, group Group) need {
	s := &group.Revision.Spec
	n := need{service: group.Service, spec: s, ports: hostPorts(s)}
	for _, text := range s.Placement.Constraints {
		c, err := spec.ParseConstraint(text)
		if err != nil {
			n.broken = text
			break
		}
		n.constraints = append(n.constraints, c)
	}
	if s.Mode == spec.Global {
		return n // each node has its own volume of the name
	}
	for _, m := range s.Mounts {
		if m.Kind != spec.MountVolume || m.Source == "" {
			continue
		}
		vol := view.volumes[group.Revision.Volumes[m.Source]]
		switch {
		case vol == nil:
			n.missing = m.Source
		case !slices.Contains(n.volumes, vol):
			n.volumes = append(n.volumes, vol)
		}
	}
	return n
}

// refuse returns the first reason why a node cannot take a task of the group.
func (d *need) refuse(n *node) (Refusal, bool) {
	if r, ok := d.refuseFixed(n); ok {
		return r, true
	}
	p := &d.spec.Placement
	if p.MaxReplicasPerNode > 0 && n.services[d.service.ID] >= p.MaxReplicasPerNode {
		return Refusal{Cause: CauseReplicas, Need: int64(p.MaxReplicasPerNode)}, true
	}
	for _, port := range d.ports {
		if _, held := n.ports.Holder(port); held {
			return Refusal{Cause: CausePort, What: fmt.Sprintf("%d/%s", port.Port, port.Protocol)}, true
		}
	}
	want := &d.spec.Resources.Reservations
	if free := n.Description.CPU - n.cpu; want.CPU > 0 && free < want.CPU {
		return Refusal{Cause: CauseCPU, Need: int64(want.CPU), Most: int64(max(free, 0))}, true
	}
	if free := n.Description.Memory - n.memory; want.Memory > 0 && free < want.Memory {
		return Refusal{Cause: CauseMemory, Need: int64(want.Memory), Most: int64(max(free, 0))}, true
	}
	return Refusal{}, false
}

// refuseFixed checks what no placement changes.
func (d *need) refuseFixed(n *node) (Refusal, bool) {
	if n.State != cluster.NodeReady {
		return Refusal{Cause: CauseState, What: string(n.State)}, true
	}
	if n.Availability == cluster.NodePause || n.Availability == cluster.NodeDrain {
		return Refusal{Cause: CauseAvailability, What: string(n.Availability)}, true
	}
	if want := d.spec.Placement.Platforms; len(want) > 0 && !slices.ContainsFunc(want, n.is) {
		return Refusal{Cause: CausePlatform, What: strings.Join(want, " or ")}, true
	}
	if d.broken != "" {
		return Refusal{Cause: CauseConstraint, What: d.broken}, true
	}
	for _, c := range d.constraints {
		if !c.Match(n.attribute) {
			return Refusal{Cause: CauseConstraint, What: c.String()}, true
		}
	}
	if d.missing != "" {
		return Refusal{Cause: CauseVolume, What: d.missing}, true
	}
	for _, vol := range d.volumes {
		if !vol.Node.IsZero() && vol.Node != n.ID {
			return Refusal{Cause: CauseVolume, What: vol.Name}, true
		}
		if slices.Contains(vol.Abandoned, n.ID) {
			return Refusal{Cause: CauseAbandoned, What: vol.Name}, true
		}
	}
	return Refusal{}, false
}

// is reports whether the node is of a platform given as os/arch, os/arch/variant or arch.
func (n *node) is(platform string) bool {
	os, arch, ok := strings.Cut(platform, "/")
	if !ok {
		os, arch = n.Description.OS, platform
	}
	arch, _, _ = strings.Cut(arch, "/")
	c := spec.Constraint{Key: spec.AttrArch, Value: arch}
	return strings.EqualFold(os, n.Description.OS) && c.Match(n.attribute)
}

// refusals gathers equal reasons.
type refusals struct{ list []Refusal }

func (r *refusals) add(one Refusal) {
	for i := range r.list {
		have := &r.list[i]
		if have.Cause == one.Cause && have.What == one.What {
			have.Count++
			have.Most = max(have.Most, one.Most)
			return
		}
	}
	one.Count = 1
	r.list = append(r.list, one)
}

func (r *refusals) sorted() []Refusal {
	slices.SortStableFunc(r.list, func(a, b Refusal) int {
		return cmp.Or(b.Count-a.Count, cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.What, b.What))
	})
	return r.list
}

// avoidedMax bounds the avoided nodes that a sentence names.
const avoidedMax = 3

// Explain says in one sentence why a placement is as it is:
// "0 of 3 nodes fit: 2 lack memory (need 1 GiB, largest free 512 MiB), 1 is drained".
func Explain(p Placement) string {
	if !p.Node.IsZero() {
		var parts []string
		for _, part := range p.Parts {
			parts = append(parts, fmt.Sprintf("%s %.2f", part.Name, part.Value))
		}
		text := fmt.Sprintf("%s, the best of %s (score %.2f: %s)", cmp.Or(p.NodeName, p.Node.Short()), count(p.Fit, "node that fits", "nodes that fit"),
			p.Score, strings.Join(parts, ", "))
		for _, s := range p.Avoided[:min(len(p.Avoided), avoidedMax)] {
			text += "; " + s.String()
		}
		return text
	}
	if p.Nodes == 0 {
		return "the cluster has no nodes"
	}
	var parts []string
	for _, r := range p.Refusals {
		parts = append(parts, r.String())
	}
	return fmt.Sprintf("0 of %s fit: %s", count(p.Nodes, "node", "nodes"), strings.Join(parts, ", "))
}

// String completes the sentence "0 of 3 nodes fit: …".
func (r Refusal) String() string {
	pick := func(one, many string) string {
		if r.Count == 1 {
			return "1 " + one
		}
		return strconv.Itoa(r.Count) + " " + many
	}
	switch r.Cause {
	case CauseState:
		return pick("is ", "are ") + r.What
	case CauseAvailability:
		what := map[string]string{string(cluster.NodeDrain): "drained", string(cluster.NodePause): "paused"}[r.What]
		return pick("is ", "are ") + what
	case CausePlatform:
		return pick("is not ", "are not ") + r.What
	case CauseConstraint:
		return pick("does not match ", "do not match ") + r.What
	case CauseVolume:
		return pick("does not have ", "do not have ") + "volume " + r.What
	case CauseAbandoned:
		return pick("still has ", "still have ") + "what was left of volume " + r.What
	case CauseReplicas:
		return fmt.Sprintf("%s %s of it, the most allowed", pick("has", "have"), count(int(r.Need), "task", "tasks"))
	case CausePort:
		return pick("has ", "have ") + "host port " + r.What + " taken"
	case CauseCPU:
		return fmt.Sprintf("%s cpu (need %s, largest free %s)", pick("lacks", "lack"), cores(r.Need), cores(r.Most))
	case CauseMemory:
		return fmt.Sprintf("%s memory (need %s, largest free %s)", pick("lacks", "lack"), size(r.Need), size(r.Most))
	}
	return pick("does not fit", "do not fit")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func cores(milli int64) string { return strconv.FormatFloat(float64(milli)/1000, 'f', -1, 64) }

// size writes an amount of memory in the largest unit that keeps it above one.
func size(b int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(b), 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0") + " " + units[i]
}
