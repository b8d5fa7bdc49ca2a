package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"
)

// atOnce is how many containers the references start or remove at the same time: as many as baton does.
const atOnce = 4

// each calls work for 0..n-1, atOnce at a time.
func each(ctx context.Context, n int, work func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i := range n {
		g.Go(func() error { return work(ctx, i) })
	}
	return g.Wait()
}

// runcAlone starts containers with `runc run` and nothing else: what no orchestrator on runc can go below.
type runcAlone struct {
	group *group
	runc  string
	tmpl  *template
	boxes []*box
}

func newRunc(runc string, tmpl *template) (*runcAlone, error) {
	g, err := newGroup("runc")
	return &runcAlone{group: g, runc: runc, tmpl: tmpl}, err
}

func (r *runcAlone) root() string { return runTop + "/runc" }

func (r *runcAlone) cpu() (time.Duration, error) { return cpu(r.group.path) }

func (r *runcAlone) start(ctx context.Context, n int) error {
	r.boxes = make([]*box, n)
	return each(ctx, n, func(ctx context.Context, i int) error {
		b, err := r.tmpl.write(fmt.Sprintf("runc%d", i), r.group.path+"/containers")
		if err != nil {
			return err
		}
		r.boxes[i] = b
		if err := b.mount(); err != nil {
			return err
		}
		return r.group.run(exec.CommandContext(ctx, r.runc, "--root", r.root(), "run", "--detach", "--bundle", b.dir, b.id))
	})
}

func (r *runcAlone) remove(ctx context.Context) error {
	return each(ctx, len(r.boxes), func(ctx context.Context, i int) error {
		b := r.boxes[i]
		if err := r.group.run(exec.CommandContext(ctx, r.runc, "--root", r.root(), "delete", "--force", b.id)); err != nil {
			return err
		}
		return b.remove()
	})
}
