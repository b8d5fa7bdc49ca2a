package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// starter starts and removes containers in one of three ways.
type starter interface {
	// start returns when n containers run.
	start(ctx context.Context, n int) error
	// remove removes the containers of start and returns when nothing is left of them.
	remove(ctx context.Context) error
	// cpu is the CPU time that all involved processes have used so far.
	cpu() (time.Duration, error)
}

var (
	_ starter = (*runcAlone)(nil)
	_ starter = (*shimAlone)(nil)
	_ starter = (*under)(nil)
)

// settle is how long processes may go on after a start before their CPU time is read: a container that runs is not yet one whose
// runtime is at rest.
const settle = 300 * time.Millisecond

// cost is what something took.
type cost struct{ wall, cpu time.Duration }

// life is the cost of starting and of removing containers.
type life struct{ start, remove cost }

// measure starts and removes n containers.
func measure(ctx context.Context, s starter, n int) (life, error) {
	start, err := spent(s, func() error { return s.start(ctx, n) })
	if err != nil {
		return life{}, fmt.Errorf("start %d: %w", n, err)
	}
	remove, err := spent(s, func() error { return s.remove(ctx) })
	if err != nil {
		return life{}, fmt.Errorf("remove %d: %w", n, err)
	}
	return life{start, remove}, nil
}

func spent(s starter, work func() error) (cost, error) {
	before, err := s.cpu()
	if err != nil {
		return cost{}, err
	}
	began := time.Now()
	if err := work(); err != nil {
		return cost{}, err
	}
	wall := time.Since(began)
	time.Sleep(settle)
	after, err := s.cpu()
	return cost{wall, after - before}, err
}

// lives are the medians of several rounds by starter. The starters take turns within a round, so that a machine that is busy for a
// while is busy for all of them.
func lives(ctx context.Context, starters map[string]starter, n, rounds int) (map[string]life, error) {
	all := make(map[string][]life)
	for range rounds {
		for _, name := range []string{"runc", "shim", "baton"} {
			l, err := measure(ctx, starters[name], n)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			all[name] = append(all[name], l)
		}
	}
	out := make(map[string]life)
	for name, ls := range all {
		pick := func(of func(life) time.Duration) time.Duration {
			var ds []time.Duration
			for _, l := range ls {
				ds = append(ds, of(l))
			}
			return percentile(ds, 50)
		}
		out[name] = life{
			start:  cost{pick(func(l life) time.Duration { return l.start.wall }), pick(func(l life) time.Duration { return l.start.cpu })},
			remove: cost{pick(func(l life) time.Duration { return l.remove.wall }), pick(func(l life) time.Duration { return l.remove.cpu })},
		}
	}
	return out, nil
}

// percentile sorts and picks; p is between 0 and 100.
func percentile(ds []time.Duration, p int) time.Duration {
	slices.Sort(ds)
	return ds[min(len(ds)*p/100, len(ds)-1)]
}

// startTimesMax is how many times the CPU of shim and runc a start may cost.
const startTimesMax = 1.3

// reportLives adds the rows of one number of containers.
func (b *bench) reportLives(n int, of map[string]life) {
	baton, shim, runc := of["baton"], of["shim"], of["runc"]
	name := func(what string) string { return fmt.Sprintf("%s %d", what, n) }
	b.table.times(name("start")+", wall", baton.start.wall, "runc", runc.start.wall, 0)
	b.table.times("", baton.start.wall, "shim + runc", shim.start.wall, 0)
	b.table.times(name("start")+", CPU", baton.start.cpu, "runc", runc.start.cpu, 0)
	b.table.times("", baton.start.cpu, "shim + runc", shim.start.cpu, startTimesMax)
	b.table.told("of it", b.under.shares(n))
	b.table.times(name("remove")+", wall", baton.remove.wall, "runc", runc.remove.wall, 0)
	b.table.times("", baton.remove.wall, "shim + runc", shim.remove.wall, 0)
	b.table.times(name("remove")+", CPU", baton.remove.cpu, "runc", runc.remove.cpu, 0)
	b.table.times("", baton.remove.cpu, "shim + runc", shim.remove.cpu, 0)
}
