package edgeproc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	retryMin = 100 * time.Millisecond // after something could not be done: doubles up to retryMax
	retryMax = 30 * time.Second
	// steady is how long a process must have served for its end not to count as another failure.
	steady = 10 * time.Second
)

// keeper is what Run knows and nobody else touches.
type keeper struct {
	*Edge
	sockets map[string]*os.File // the listeners, by the name of the port; none while there are no rules for it
	hash    string              // of the executable
	wait    time.Duration
	tries   int // failures in a row
	told    bool
	started time.Time // when a process was started last
}

// step brings the processes to what is wanted, as far as that is possible now.
func (k *keeper) step(ctx context.Context) {
	k.wait = 0
	k.bury()
	k.mu.Lock()
	want, seq := k.want, k.seq
	k.mu.Unlock()
	if want == nil {
		return // what serves serves on by what it knows
	}
	var err error
	ports := want.ports()
	if len(ports) > 0 {
		err = k.ready(ctx, ports)
	}
	// Also to those that leave: requests come on connections that they still have.
	if !k.bring(ctx, want, seq) {
		return
	}
	// Also when a port could not be opened: the other one is served.
	err = errors.Join(err, k.serve(ctx, ports))
	k.mu.Lock()
	k.done = seq
	close(k.progress)
	k.progress = make(chan struct{})
	k.mu.Unlock()
	k.report(ctx, err)
}

// report tells of what failed, once, and when it is tried again.
func (k *keeper) report(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		if time.Since(k.started) > steady {
			k.tries = 0
		}
		k.told = k.told && err != nil
		return
	}
	k.tries++
	k.wait = k.pause()
	k.cfg.Log.Warn("ingress rules are not served", "err", err, "again", k.wait)
	if !k.told && k.cfg.Failed != nil {
		k.cfg.Failed(err)
	}
	k.told = true
}

// bury removes the processes that have ended.
func (k *keeper) bury() {
	k.mu.Lock()
	var dead []*peer
	k.peers = slices.DeleteFunc(k.peers, func(p *peer) bool {
		if p.gone() {
			dead = append(dead, p)
		}
		return p.gone()
	})
	k.mu.Unlock()
	for _, p := range dead {
		how := p.obituary()
		if p.leaving || len(p.listening) == 0 {
			k.cfg.Log.Info("an edge has ended", "pid", p.hello.PID, "how", how)
			continue
		}
		if k.tries++; time.Since(k.started) > steady {
			k.tries = 0
		}
		reason := fmt.Sprintf("the edge (pid %d) ended while it served (%s): its requests are lost, and another one takes its place", p.hello.PID, how)
		k.cfg.Log.Error(reason)
		if k.cfg.Restarted != nil {
			k.cfg.Restarted(reason)
		}
	}
}

// current is the process that serves or is to serve: the newest of the wanted build that does not leave. Run alone changes peers.
func (k *keeper) current() *peer {
	for _, p := range slices.Backward(k.peers) {
		if !p.leaving && p.hello.Program == k.hash && p.hello.Protocol == protocol && !p.gone() {
			return p
		}
	}
	return nil
}

// ready sees to it that there are listeners and a process. A port that cannot be opened keeps no other one from being served.
func (k *keeper) ready(ctx context.Context, ports []string) (err error) {
	if k.hash == "" {
		if k.hash, err = hashOf(k.cfg.Program); err != nil {
			return fmt.Errorf("read the edge's executable: %w", err)
		}
	}
	for _, name := range ports {
		if k.sockets[name] != nil {
			continue
		}
		f, failed := k.open(ctx, name)
		if failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		k.sockets[name] = f
	}
	if k.current() != nil || len(k.sockets) == 0 {
		return err
	}
	if left := k.pause() - time.Since(k.started); left > 0 {
		k.wait = left
		return err
	}
	k.started = time.Now()
	p, failed := startPeer(ctx, k.cfg, k.hash)
	if failed != nil {
		return errors.Join(err, failed)
	}
	k.cfg.Log.Info("started the edge", "pid", p.hello.PID, "build", k.hash)
	k.watch(p)
	return err
}

// pause is how long after the last start the next one may be: one that served for some time is replaced at once.
func (k *keeper) pause() time.Duration {
	if k.tries == 0 {
		return 0
	}
	return min(retryMin<<min(k.tries-1, 10), retryMax)
}

// open opens a port. What accepts from it is never this process.
func (k *keeper) open(ctx context.Context, name string) (*os.File, error) {
	listen := k.cfg.Listen
	if name == portTLS {
		listen = k.cfg.ListenTLS
	}
	l, err := listen(ctx)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("the ingress port is a %T, want one of TCP", l)
	}
	return share(tcp)
}

// bring gives every process the table, and reports whether all that live follow it. One that does not is killed.
func (k *keeper) bring(ctx context.Context, want *table, seq uint64) bool {
	var all sync.WaitGroup
	for _, p := range k.peers {
		if p.seq >= seq {
			continue
		}
		all.Go(func() {
			err := p.call(ctx, callTable, want, nil)
			switch {
			case err == nil:
				p.seq = seq
			case errors.Is(err, errEnded), ctx.Err() != nil:
			default:
				k.cfg.Log.Error("an edge does not follow the cluster; it is killed", "pid", p.hello.PID, "err", errors.Join(err, kill(k.cfg.Dir, p.id)))
				p.let()
			}
		})
	}
	all.Wait()
	return ctx.Err() == nil
}

// serve gives the listeners of the wanted ports to the current process, then takes them from the others; the rest from all.
func (k *keeper) serve(ctx context.Context, ports []string) error {
	now := k.current()
	if len(ports) > 0 && now == nil {
		return nil // it has ended in this moment, or it is not time yet to start another one
	}
	for _, name := range ports {
		if now.listening[name] || k.sockets[name] == nil {
			continue
		}
		if err := k.tell(ctx, now, callListen, name, k.sockets[name]); err != nil || now.gone() {
			return err
		}
		now.listening[name] = true
		k.cfg.Log.Info("ingress rules are served", "port", name, "pid", now.hello.PID)
	}
	for _, p := range k.peers {
		if p == now {
			if err := k.unlisten(ctx, p, ports); err != nil {
				return err
			}
			continue
		}
		if p.leaving {
			continue
		}
		if err := k.tell(ctx, p, callLeave, ""); err != nil {
			return err
		}
		p.leaving = true
		k.cfg.Log.Info("an edge leaves, and finishes its requests", "pid", p.hello.PID)
	}
	for name, f := range k.sockets {
		if !slices.Contains(ports, name) {
			_ = f.Close()
			delete(k.sockets, name)
			k.cfg.Log.Info("there are no ingress rules any more", "port", name)
		}
	}
	return nil
}

// unlisten takes the listeners of all but some ports from a process. Without any it ends by itself when no rule comes for a while.
func (k *keeper) unlisten(ctx context.Context, p *peer, but []string) error {
	for name := range p.listening {
		if slices.Contains(but, name) {
			continue
		}
		if err := k.tell(ctx, p, callUnlisten, name); err != nil {
			return err
		}
		delete(p.listening, name)
	}
	return nil
}

// tell commands a process. That it has ended is no error: another step follows.
func (k *keeper) tell(ctx context.Context, p *peer, what kind, port string, files ...*os.File) error {
	var body any
	if port != "" {
		body = port
	}
	err := p.call(ctx, what, body, nil, files...)
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// letGo leaves the processes to themselves.
func (k *keeper) letGo() {
	for _, p := range k.peers {
		p.let()
	}
	for _, f := range k.sockets {
		_ = f.Close()
	}
}
