package main

import (
	"context"
	"fmt"
	"time"
)

const (
	// replacedMax is how many times the time of one start a killed task may be away.
	replacedMax = 1.0
	// rollMax is how long a rollout of twenty replicas may take, in seconds.
	rollMax = 8.0
)

// startAndRemove compares the costs of containers' lives.
func (b *bench) startAndRemove(ctx context.Context) error {
	starters := map[string]starter{"runc": b.runc, "shim": b.shim, "baton": b.under}
	for _, n := range b.size.starts {
		of, err := lives(ctx, starters, n, b.size.rounds[n])
		if err != nil {
			return err
		}
		b.reportLives(n, of)
		if n == 1 {
			b.oneStart = of["baton"].start.wall
		}
	}
	return nil
}

// calls measures what the API takes for requests that change nothing, on a node with the containers of the idle one.
func (b *bench) calls(ctx context.Context) error {
	if err := b.under.start(ctx, b.size.idle); err != nil {
		return err
	}
	c := b.under.m.client
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"GET /v1/services", func() error { _, err := c.Services(ctx, stackName); return err }},
		{fmt.Sprintf("GET /v1/tasks, %d tasks", b.size.idle), func() error { _, err := c.Tasks(ctx, stackName, "", false); return err }},
		{"POST scale, to what it is", func() error { _, err := c.Scale(ctx, stackName, webName, b.size.idle); return err }},
	} {
		var took []time.Duration
		for range b.size.calls {
			began := time.Now()
			if err := call.do(); err != nil {
				return err
			}
			took = append(took, time.Since(began))
		}
		b.table.told(call.name+", p50 and p99", short(percentile(took, 50))+", "+short(percentile(took, 99)))
	}
	return nil
}

// replaced kills a task's process, again and again.
func (b *bench) replaced(ctx context.Context) error {
	var took []time.Duration
	for range b.size.kills {
		// A fresh service each time: the second failure in a row is answered by waiting.
		if err := b.under.remove(ctx); err != nil {
			return err
		}
		if err := b.under.start(ctx, 1); err != nil {
			return err
		}
		d, err := b.under.killed(ctx)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	b.table.times("kill to ready", percentile(took, 50), "one start", b.oneStart, replacedMax)
	return b.under.remove(ctx)
}

// policy is how a service is rolled, five tasks at a time.
type policy struct {
	name, more string
	monitor    time.Duration // how long the tasks that are moved at once are watched before the next ones are
}

// monitorDefault is the monitor of a service that says nothing about it.
const monitorDefault = 5 * time.Second

// rolled replaces every task of a service by a release that differs in a variable.
func (b *bench) rolled(ctx context.Context) error {
	n := b.size.roll
	policies := []policy{{name: "no monitor", more: ", update_config: {parallelism: 5, monitor: 0s}"}}
	if b.size.monitored {
		policies = append(policies, policy{name: "default monitor", more: ", update_config: {parallelism: 5}", monitor: monitorDefault})
	}
	if err := b.under.remove(ctx); err != nil {
		return err
	}
	for _, p := range policies {
		if err := b.under.up(ctx, n, 1, p.more); err != nil {
			return err
		}
		began := time.Now()
		if err := b.under.up(ctx, n, 2, p.more); err != nil {
			return err
		}
		// The monitors follow each other: what they last is what the file asks for. A shorter rollout has less time.
		watched := time.Duration((n+4)/5) * p.monitor
		name := "up to healthy, " + p.name
		if watched > 0 {
			name += ", without its " + watched.String()
		}
		b.table.below(name, (time.Since(began) - watched).Seconds(), rollMax*float64(n)/20, "s")
		if err := b.under.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}
