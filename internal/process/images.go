package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/node/image"
	"baton/internal/node/image/transfer"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

const (
	// holdersWait bounds the question who has an image: a start must not hang on managers that are away.
	holdersWait = 3 * time.Second
	// doorRetry is the pause before a worker tries again to open its port.
	doorRetry = 10 * time.Second
	memberMax = 3 * time.Second
)

// neighbours is the cluster as this node's images see it.
type neighbours struct{ *process }

var _ image.Cluster = neighbours{}

// Holders implements image.Cluster: the manager of this process knows, else any manager is asked.
func (o neighbours) Holders(ctx context.Context, ref string) (agentapi.ImageHolders, error) {
	if m := o.manager.Load(); m != nil {
		return m.Holders(ctx, o.self.get().ID, ref), nil
	}
	ctx, cancel := context.WithTimeout(ctx, holdersWait)
	defer cancel()
	return ask[agentapi.ImageHolders](ctx, o.process, agentapi.CallHolders, agentapi.ImageQuestion{Ref: ref})
}

// Dial implements image.Cluster.
func (o neighbours) Dial(ctx context.Context, h agentapi.ImageHolder) (net.Conn, error) {
	d := &transport.Dialer{Network: transport.TCP{}, Credentials: o.creds}
	return d.Dial(ctx, h.Address, transport.ProtocolImage, transport.NodeName(h.Node.String()))
}

// serveImages gives this node's images to those who connect to l, until ctx ends.
func (p *process) serveImages(ctx context.Context, l net.Listener) error {
	s := rpc.NewServer()
	p.images.Register(s)
	return rpc.Serve(ctx, s, l)
}

// shelf is what this node has to give.
func (p *process) shelf() (transfer.Shelf, error) {
	if n := p.node.Load(); n != nil {
		return n.Shelf(), nil
	}
	return nil, errors.New("the node is starting")
}

// door is the port of a worker, which serves images and nothing else. On managers, the manager has the port. It belongs to the
// goroutine that runs the process.
type door struct {
	process *process
	cancel  context.CancelFunc
	work    sync.WaitGroup
}

// open opens the port, in the background: it may be taken for a moment, and a worker without it works, too.
func (d *door) open(ctx context.Context) {
	if d.cancel != nil {
		return
	}
	ctx, d.cancel = context.WithCancel(ctx)
	d.work.Go(func() {
		for {
			err := d.serve(ctx)
			if ctx.Err() != nil {
				return
			}
			d.process.log.Warn("other nodes cannot fetch images from this one: its port does not open", "listen", d.process.self.get().Bind, "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(doorRetry):
			}
		}
	})
}

// shut closes the port and waits until it is free.
func (d *door) shut() {
	if d.cancel == nil {
		return
	}
	d.cancel()
	d.work.Wait()
	d.cancel = nil
}

func (d *door) serve(ctx context.Context) error {
	p := d.process
	port, err := transport.Listen(ctx, p.self.get().Bind, transport.Config{Network: transport.TCP{}, Credentials: p.creds, Allow: p.allow, Logger: p.log})
	if err != nil {
		return err
	}
	l := port.Protocol(transport.ProtocolImage)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	return errors.Join(p.serveImages(ctx, l), port.Close())
}

// allow says who may use a worker's port: nodes that are members now, for images. A worker does not know the members, so it
// asks a manager; whoever fetches has just asked one, too.
func (p *process) allow(peer transport.Peer, protocol string) error {
	if protocol != transport.ProtocolImage {
		return fmt.Errorf("a worker does not speak %s", protocol)
	}
	if peer.Role != transport.RoleWorker && peer.Role != transport.RoleManager {
		return errors.New("its certificate is not a node's")
	}
	id, err := cluster.ParseID(peer.Name)
	if err != nil {
		return errors.New("its certificate names no node")
	}
	ctx, cancel := context.WithTimeout(context.Background(), memberMax)
	defer cancel()
	a, err := ask[agentapi.MemberAnswer](ctx, p, agentapi.CallMember, agentapi.MemberQuestion{Node: id})
	if err != nil {
		return fmt.Errorf("no manager tells whether it is a member: %w", err)
	}
	if !a.Member {
		return errors.New("it is not a member of the cluster, or not any more")
	}
	return nil
}
