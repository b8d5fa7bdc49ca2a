package process

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"baton/internal/manager/identity"
	"baton/internal/model/cluster"
	"baton/internal/node/uplink"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

const (
	joinMax    = time.Minute // for all tries together
	joinPause  = time.Second
	nonceBytes = 16
)

// enter makes sure that this node belongs to a cluster: it joins the one it was told to, or founds its own. A node that is a
// member stays what it is.
func (p *process) enter(ctx context.Context) error {
	f := p.self.get()
	switch {
	case f.Role != "" && p.cfg.Join != "":
		return p.meet()
	case f.Role != "":
		return nil
	case p.cfg.Join != "":
		return p.join(ctx)
	}
	// A directory of a version that knew one machine only has a manager's state: it goes on as that.
	return p.self.change(func(f *selfFile) { f.Role, f.Cluster = transport.RoleManager, clusterName })
}

// meet lets a worker know one more manager, that of the token: after a restore of the cluster none of those that it knew may
// be left. Who is there must show a certificate of the cluster all the same.
func (p *process) meet() error {
	f := p.self.get()
	p.log.Info("this node is a member already; the token is not needed", "cluster", f.Cluster, "role", f.Role)
	_, address, err := transport.ParseJoin(p.cfg.Join)
	if err != nil || f.Role != transport.RoleWorker {
		return err
	}
	if slices.ContainsFunc(f.Managers, func(m agentapi.Manager) bool { return m.Address == address }) {
		return nil
	}
	return p.self.change(func(f *selfFile) {
		f.Managers = append([]agentapi.Manager{{Address: address}}, f.Managers...)
	})
}

// clusterName is what a new cluster is called.
const clusterName = "default"

// join asks a manager to make this machine a member, again for a while when it cannot be reached: machines often start
// together.
func (p *process) join(ctx context.Context) error {
	token, address, err := transport.ParseJoin(p.cfg.Join)
	if err != nil {
		return err
	}
	if len(p.self.get().Nonce) == 0 {
		nonce := make([]byte, nonceBytes)
		if _, err := rand.Read(nonce); err != nil {
			return err
		}
		if err := p.self.change(func(f *selfFile) { f.Nonce = nonce }); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, joinMax)
	defer cancel()
	for {
		err := p.tryJoin(ctx, token, address)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !uplink.Passing(err) {
			return fmt.Errorf("join %s: %s", address, rpc.Message(err))
		}
		p.log.Warn("cannot join yet", "manager", address, "err", rpc.Message(err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("join %s: %s", address, rpc.Message(err))
		case <-time.After(joinPause):
		}
	}
}

func (p *process) tryJoin(ctx context.Context, token transport.Token, address string) error {
	f := p.self.get()
	if p.cfg.Advertise == "" {
		f.Advertise = outwardAddress(address)
	}
	reply, err := uplink.Joining{
		Network: transport.TCP{}, Token: token, Address: address, Credentials: p.creds,
		Request: agentapi.JoinRequest{Nonce: f.Nonce, Node: f.ID, Name: f.Name, Listen: f.listen(), Hosts: hosts(f), Witness: p.cfg.Witness, Level: cluster.LevelNewest()},
	}.Join(ctx)
	if err != nil {
		return err
	}
	if reply.Kit != nil {
		if err := identity.InstallKey(p.managerDir(), reply.Kit.SealKey); err != nil {
			return err
		}
	}
	p.log.Info("joined", "cluster", reply.Cluster, "role", reply.Role, "manager", address)
	return p.self.change(func(s *selfFile) {
		s.Role, s.Cluster, s.Managers, s.Nonce, s.Advertise = reply.Role, reply.Cluster, reply.Managers, nil, f.Advertise
		s.Entering = reply.Role == transport.RoleManager
	})
}

// hosts are the names and addresses for which this node's certificate is good.
func hosts(f selfFile) []string {
	out := []string{f.Advertise, f.Name}
	if name, err := os.Hostname(); err == nil && name != f.Name {
		out = append(out, name)
	}
	return out
}

func (p *process) managerDir() string { return filepath.Join(p.dir, "manager") }
