package process

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"baton/internal/manager/identity"
	"baton/internal/manager/manager"
	"baton/internal/manager/server"
	"baton/internal/model/cluster"
	"baton/internal/node/network"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

const (
	// renewLook is how often the end of the certificate is looked at, renewPart the part of its life that must be left.
	renewLook = time.Hour
	renewPart = 3
	// memberRetry is the pause after something about the membership went wrong.
	memberRetry = time.Second
	callMax     = 10 * time.Second
)

// describe tells the managers what this node knows of its place in the cluster.
func (p *process) describe(d *cluster.NodeDescription) {
	d.Listen = p.self.get().listen()
	d.Roots = identity.HashText(p.creds.RootsPEM())
	if leaf, issuer, err := p.certificate(); err == nil {
		d.Issuer, d.Expires = identity.HashText(issuer), leaf.NotAfter
	}
}

// certificate is this node's own one, with that of the authority that signed it (DER).
func (p *process) certificate() (leaf *x509.Certificate, issuer []byte, err error) {
	c, err := p.creds.Certificate()
	if err != nil {
		return nil, nil, err
	}
	if len(c.Certificate) < 2 {
		return nil, nil, errors.New("the certificate comes without its authority's")
	}
	leaf, err = x509.ParseCertificate(c.Certificate[0])
	return leaf, c.Certificate[1], err
}

// follow keeps this node the member that the managers want it to be, until ctx ends.
func (p *process) follow(ctx context.Context, wing *managing) error {
	look := time.NewTicker(renewLook)
	defer look.Stop()
	var latest *agentapi.Membership
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case key := <-wing.keys: // nil, and never ready, unless the manager is locked
			if err := wing.unlock(ctx, key); err != nil {
				return err
			}
		case err := <-wing.ended: // nil, and never ready, while no manager runs
			wing.cancel, wing.ended = nil, nil
			return errors.Join(errors.New("the manager ended by itself"), err)
		case m := <-p.news:
			latest = &m
		case <-look.C:
		case <-again:
		}
		if latest == nil {
			continue
		}
		again = nil
		if err := p.become(ctx, wing, *latest); err != nil && ctx.Err() == nil {
			p.log.Warn("the membership does not follow yet", "err", err)
			again = time.After(memberRetry)
		}
		if p.self.get().Entering { // nobody tells when the log has been filled
			again = time.After(memberRetry)
		}
	}
}

// become takes this node to what a manager said last: whom it knows and trusts, its certificate, its role.
func (p *process) become(ctx context.Context, wing *managing, m agentapi.Membership) error {
	if !slices.Equal(p.self.get().Managers, m.Managers) && len(m.Managers) > 0 {
		if err := p.self.change(func(f *selfFile) { f.Managers = m.Managers }); err != nil {
			return err
		}
	}
	if err := p.creds.InstallRoots(m.Roots); err != nil {
		return err
	}
	if p.outdated(m) {
		if err := p.renew(ctx); err != nil {
			return fmt.Errorf("renew the certificate: %w", err)
		}
		if p.outdated(m) { // the manager that signed it did not know yet what this one's says
			return errors.New("renew the certificate: the new one is of an earlier state of the cluster")
		}
	}
	if m := p.manager.Load(); m != nil && p.self.get().Entering {
		if _, ok := m.Node(); ok { // the leader has filled its log
			if err := p.self.change(func(f *selfFile) { f.Entering = false }); err != nil {
				return err
			}
		}
	}
	switch runs := p.manager.Load() != nil; {
	case m.Role == transport.RoleManager && !runs && wing.keys == nil: // one that is locked waits for its operator
		return p.promote(ctx, wing)
	case m.Role == transport.RoleWorker && (runs || p.self.get().Role == transport.RoleManager):
		return p.demote(ctx, wing)
	}
	return nil
}

// outdated reports whether the certificate must be renewed: another authority or role, or its end is near.
func (p *process) outdated(m agentapi.Membership) bool {
	leaf, issuer, err := p.certificate()
	if err != nil {
		return true
	}
	left, life := time.Until(leaf.NotAfter), leaf.NotAfter.Sub(leaf.NotBefore)
	return identity.HashText(issuer) != m.Issuer || !slices.Contains(leaf.Subject.OrganizationalUnit, m.Role) || left < life/renewPart
}

// renew gets a new certificate from any manager.
func (p *process) renew(ctx context.Context) error {
	f := p.self.get()
	r, err := transport.NewRequest(f.ID.String())
	if err != nil {
		return err
	}
	c, err := ask[agentapi.Certificate](ctx, p, agentapi.CallRenew, agentapi.Renewal{CSR: r.CSR, Hosts: hosts(f)})
	if err != nil {
		return err
	}
	if err := p.creds.Install(r, c.Certificate, c.Roots); err != nil {
		return err
	}
	p.log.Info("the certificate was renewed")
	return nil
}

// ask calls any manager that answers, this process' own included.
func ask[O, I any](ctx context.Context, p *process, method string, in I) (out O, err error) {
	ctx, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	dialer := &transport.Dialer{Network: transport.TCP{}, Credentials: p.creds}
	err = errors.New("no manager is known")
	for _, m := range p.self.get().Managers {
		var conn *transport.Conn
		if conn, err = dialer.Dial(ctx, m.Address, transport.ProtocolAgent, transport.NameManager); err != nil {
			continue
		}
		client := rpc.NewClientOn(conn)
		out, err = rpc.Call[O](ctx, client, agentapi.CallService, method, in)
		cerr := client.Close()
		if err == nil {
			return out, cerr
		}
		err = errors.New(rpc.Message(err))
	}
	return out, err
}

// promote makes this node a manager: it gets the cluster's keys, and its log is filled by the leader.
func (p *process) promote(ctx context.Context, wing *managing) error {
	kit, err := ask[agentapi.Kit](ctx, p, agentapi.CallKit, agentapi.Empty{})
	if err != nil {
		return fmt.Errorf("become a manager: %w", err)
	}
	if err := identity.InstallKey(p.managerDir(), kit.SealKey); err != nil {
		return err
	}
	if err := p.self.change(func(f *selfFile) { f.Role, f.Entering = transport.RoleManager, true }); err != nil {
		return err
	}
	p.log.Info("this node becomes a manager")
	wing.door.shut() // the port becomes the manager's
	if err := wing.start(ctx); err != nil {
		wing.door.open(ctx)
		return err
	}
	return nil
}

// demote makes this node a worker: the manager stops, and its copy of the state goes away.
func (p *process) demote(ctx context.Context, wing *managing) error {
	p.log.Info("this node is a worker now")
	if err := wing.stop(); err != nil {
		p.log.Warn("the manager ended with an error", "err", err)
	}
	wing.door.open(ctx)
	if err := p.self.change(func(f *selfFile) { f.Role, f.Entering = transport.RoleWorker, false }); err != nil {
		return err
	}
	return os.RemoveAll(p.managerDir())
}

// managing is the manager wing of this process: there, or not. It belongs to the goroutine that runs the process.
type managing struct {
	process *process
	door    *door // open while no manager runs
	cancel  context.CancelFunc
	ended   chan error // what its Run returned

	keys   chan []byte  // brings the key of a locked manager; nil when it is not locked
	key    []byte       // opens the sealing key
	locked *http.Server // answers for it meanwhile
}

// start opens the manager and lets it run.
func (w *managing) start(ctx context.Context) error {
	p := w.process
	if is, err := identity.Locked(p.managerDir()); err != nil || is && w.key == nil {
		return errors.Join(err, w.lock())
	}
	f := p.self.get()
	m, err := manager.Open(ctx, manager.Config{
		Dir: p.managerDir(), UnlockKey: w.key, NodeID: f.ID, NodeName: f.Name, ClusterName: clusterName, Version: Version,
		Network: transport.TCP{}, Credentials: p.creds, Bind: f.Bind, Listen: f.listen(), Hosts: hosts(f),
		Managers: f.Managers, Join: f.Entering, Mesh: p.mesh(), MeshPort: f.port(),
		Pools: choosePools, Node: p.services, ServeImages: p.serveImages, Logger: p.log,
	})
	if err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel, w.ended = cancel, make(chan error, 1)
	p.manager.Store(m)
	go func() { w.ended <- m.Run(run) }()
	if p.node.Load() != nil {
		return w.open()
	}
	return nil
}

// lock leaves the manager closed until its operator brings the key. Everything else of the node goes on.
func (w *managing) lock() error {
	p := w.process
	p.log.Warn("this manager is locked: it does not open its state before `baton cluster unlock`; containers keep running", "socket", w.path())
	keys := make(chan []byte, 1)
	w.keys = keys
	w.locked = &http.Server{ReadHeaderTimeout: callMax, Handler: server.LockedHandler(func(text string) error {
		key, err := identity.ParseUnlock(text)
		if err == nil {
			_, err = identity.Unlock(p.managerDir(), key)
		}
		if err != nil {
			return err
		}
		select {
		case keys <- key:
		default: // it was brought already
		}
		return nil
	})}
	l, err := server.ListenUnix(w.path())
	if err != nil {
		return err
	}
	go func(s *http.Server) {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("the local API ended", "err", err)
		}
	}(w.locked)
	return nil
}

// unlock starts the manager with the key that was brought.
func (w *managing) unlock(ctx context.Context, key []byte) error {
	w.process.log.Info("this manager is unlocked")
	w.key = key
	if err := w.close(ctx); err != nil {
		return err
	}
	return w.start(ctx)
}

// close ends what answers for a locked manager, after it has answered.
func (w *managing) close(ctx context.Context) error {
	if w.locked == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callMax)
	defer cancel()
	err := w.locked.Shutdown(ctx)
	w.locked, w.keys = nil, nil
	return err
}

// open makes the local socket of a manager, once there is a node that its users can ask for.
func (w *managing) open() error {
	m := w.process.manager.Load()
	if m == nil {
		return nil
	}
	l, err := server.ListenUnix(w.path())
	if err != nil {
		return err
	}
	go func() {
		if err := m.ServeLocal(l); err != nil {
			w.process.log.Error("the local API ended", "err", err)
		}
	}()
	return nil
}

func (p *process) mesh() cluster.Mesh {
	if p.cfg.Mesh == "" {
		return cluster.MeshWireGuard
	}
	return p.cfg.Mesh
}

// stop ends the manager and waits for it.
func (w *managing) stop() error {
	if w.cancel == nil {
		return w.close(context.Background())
	}
	w.process.manager.Store(nil)
	w.cancel()
	err := <-w.ended
	w.cancel, w.ended = nil, nil
	return err
}

func (w *managing) path() string { return filepath.Join(w.process.dir, "baton.sock") }

// socket is the path of the API's socket, empty on workers.
func (w *managing) socket() string {
	if w.cancel == nil {
		return ""
	}
	return w.path()
}

func choosePools() (tasks, services netip.Prefix, err error) {
	taken, err := network.Taken("")
	if err != nil {
		return tasks, services, err
	}
	return network.ChoosePools(taken)
}
