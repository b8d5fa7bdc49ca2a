package bubble

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"baton/internal/manager/identity"
	"baton/internal/manager/manager"
	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/node/uplink"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/transport"
)

// machine is one simulated machine: a box, and while it is up a process with an agent and, on managers, a manager.
type machine struct {
	w       *World
	name    string // its address in the network
	dir     string
	id      cluster.ID
	role    string
	creds   *transport.Files
	box     *box
	record  *boxRecord
	stalled atomic.Bool // the disk does not answer
	jump    atomic.Int64
	load    load

	mu       sync.Mutex
	managers []agentapi.Manager

	agent   *agent.Agent     // nil while the process does not run
	manager *manager.Manager // nil while it does not run, or is a worker's
	stop    context.CancelFunc
	work    sync.WaitGroup
	up      bool
}

const port = "7701"

func (m *machine) address() string { return m.name + ":" + port }

// known are the managers that this machine knows.
func (m *machine) known() []agentapi.Manager {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]agentapi.Manager(nil), m.managers...)
}

// learn takes what a manager says of the cluster.
func (m *machine) learn(s agentapi.Membership) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.managers = s.Managers
}

// enter joins the cluster through a manager that runs.
func (m *machine) enter(ctx context.Context, through *machine) error {
	token, err := through.manager.JoinToken(m.role)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		reply, err := uplink.Joining{
			Network: m.w.net.Host(m.name), Token: token, Address: through.address(), Credentials: m.creds,
			Request: agentapi.JoinRequest{
				Nonce: append([]byte("nonce of the machine "), m.id[:]...), Node: m.id, Name: m.name, Listen: m.address(), Level: cluster.LevelNewest(),
			},
		}.Join(ctx)
		if err != nil {
			if try == 10 || !uplink.Passing(err) {
				return fmt.Errorf("%s cannot join: %w", m.name, err)
			}
			time.Sleep(time.Second)
			continue
		}
		m.managers = reply.Managers
		if reply.Kit != nil {
			return identity.InstallKey(filepath.Join(m.dir, "manager"), reply.Kit.SealKey)
		}
		return nil
	}
}

// start starts the process. The manager of a machine that joins has an empty log at first.
func (m *machine) start(join bool) error {
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	net := m.w.net.Host(m.name)
	if m.role == transport.RoleManager {
		mgr, err := manager.Open(ctx, manager.Config{
			Dir: filepath.Join(m.dir, "manager"), NodeID: m.id, NodeName: m.name, ClusterName: "sim", Version: "sim",
			Network: net, Credentials: m.creds, Bind: ":" + port, Listen: m.address(),
			Managers: m.known(), Join: join, Mesh: cluster.MeshRouted, MeshPort: 7701,
			Pools: func() (tasks, services netip.Prefix, err error) {
				return netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("10.64.0.0/16"), nil
			},
			Node: func() agentapi.NodeServices { return boxServices{m.box} }, Logger: m.w.log.With("node", m.name),
			Now:       func() time.Time { return time.Now().Add(time.Duration(m.jump.Load())) },
			DiskFault: m.disk, Measures: m.w,
		})
		if err != nil {
			stop()
			return fmt.Errorf("manager on %s: %w", m.name, err)
		}
		m.manager = mgr
		m.work.Go(func() {
			if err := mgr.Run(ctx); err != nil && ctx.Err() == nil {
				m.w.t.Errorf("the manager on %s ended: %v", m.name, err)
			}
		})
	}
	m.runAgent(ctx, net)
	m.up = true
	return nil
}

// disk is slow to answer while it is stalled.
func (m *machine) disk() error {
	for m.stalled.Load() {
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// runAgent starts the agent.
func (m *machine) runAgent(ctx context.Context, net transport.Network) {
	up := uplink.New(uplink.Config{
		Node: m.id, Dialer: &transport.Dialer{Network: net, Credentials: m.creds}, Managers: m.known,
		Services: func() agentapi.NodeServices { return boxServices{m.box} }, Logger: m.w.log.With("node", m.name),
	})
	a := agent.New(agent.Config{
		Node: m.id, Name: m.name, Executor: m.box, Network: boxNet{m.box}, Volumes: boxVolumes{m.box}, Files: boxFiles{}, Logs: boxLogs{}, Record: m.record, Fence: boxFence{m.box},
		Connector: uplink.Beating{Inner: first{m, up}, Membership: m.learn, Measure: m.measure},
		Describe: func(context.Context) cluster.NodeDescription {
			return cluster.NodeDescription{Hostname: m.name, OS: "linux", Arch: "amd64", CPU: 8000, Memory: 16 << 30, Version: "sim", Level: cluster.LevelNewest(), Listen: m.address()}
		},
		Log: m.w.log.With("node", m.name, "part", "agent"),
	})
	m.agent = a
	m.work.Go(func() {
		if err := a.Run(ctx); err != nil && ctx.Err() == nil {
			m.w.t.Errorf("the agent on %s ended: %v", m.name, err)
		}
	})
}

// first connects to the manager of the same process, else through the uplink.
type first struct {
	m  *machine
	up *uplink.Uplink
}

// Connect implements agentapi.Connector.
func (f first) Connect(ctx context.Context, h agentapi.Hello) (agentapi.Session, error) {
	var own error
	if mgr := f.m.manager; mgr != nil {
		s, err := mgr.Connector().Connect(ctx, h)
		if err == nil {
			return s, nil
		}
		own = err
	}
	s, err := f.up.Connect(ctx, h)
	return s, errors.Join(err, ifAny(err, own))
}

// ifAny adds what went wrong before to an error.
func ifAny(err, own error) error {
	if err == nil {
		return nil
	}
	return own
}

// kill ends the process: the machine goes on.
func (m *machine) kill() {
	m.w.net.Reset(m.name)
	m.end()
}

// powerOff ends the machine. What is on disk stays.
func (m *machine) powerOff() {
	m.w.net.Stop(m.name)
	m.end()
	m.box.powerOff()
}

func (m *machine) end() {
	m.stalled.Store(false)
	m.stop()
	m.work.Wait()
	m.manager, m.agent, m.up = nil, nil, false
}
