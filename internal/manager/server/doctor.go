package server

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// What the doctor takes for good, for a warning, and for a fault.
const (
	skewWarn, skewFail = 250 * time.Millisecond, 5 * time.Second // leases are over within seconds
	syncWarn, syncFail = 50 * time.Millisecond, 500 * time.Millisecond
	freeWarn, freeFail = 5 << 30, 1 << 30 // bytes
	certWarn, certFail = 21 * 24 * time.Hour, 2 * 24 * time.Hour
	connsWarnPercent   = 80
	filesWarnPercent   = 80

	// diagnoseMax is how long one node may take, diagnosesMax how many are asked at once.
	diagnoseMax  = 10 * time.Second
	diagnosesMax = 32
	// waysEach bounds the nodes whose mesh address each node tries: a sample is enough to see what a firewall does.
	waysEach = 16
)

// examined is a node with what it said of itself.
type examined struct {
	node *cluster.Node
	// connected: it could be asked; err is what went wrong with that.
	connected bool
	err       error
	diagnosis agentapi.Diagnosis
	// skew is by how much its clock is ahead of this manager's at least; negative when it is behind.
	skew time.Duration
}

// patient is all that the doctor knows. What it makes of it depends on nothing else.
type patient struct {
	now      time.Time
	mesh     cluster.Mesh
	leader   string // id
	voters   []string
	roots    []*x509.Certificate
	nodes    []examined // sorted by name
	managers bool       // who has the log is known
}

// doctor looks at everything.
func (s *Server) doctor(ctx context.Context) []api.Check {
	snap := s.cfg.Store.Snapshot()
	p := patient{now: s.cfg.Now(), managers: s.cfg.Members != nil}
	p.leader, p.voters = s.members()
	if settings, ok := snap.Settings(); ok {
		p.mesh = settings.Mesh
	}
	if a, ok := store.Get[*cluster.Authority](snap, cluster.AuthorityID); ok {
		for _, der := range a.Roots {
			if c, err := x509.ParseCertificate(der); err == nil { // it was made by us
				p.roots = append(p.roots, c)
			}
		}
	}
	for n := range store.All[*cluster.Node](snap) {
		p.nodes = append(p.nodes, examined{node: n})
	}
	slices.SortFunc(p.nodes, func(a, b examined) int { return cmp.Compare(a.node.Name, b.node.Name) })
	all := ways(p.nodes)
	var work sync.WaitGroup
	room := make(chan struct{}, diagnosesMax)
	for i := range p.nodes {
		room <- struct{}{}
		work.Go(func() {
			defer func() { <-room }()
			s.examine(ctx, &p.nodes[i], all)
		})
	}
	work.Wait()
	return p.checks()
}

// The ways that are tried, by the start of their names.
const (
	wayPort = "port of "
	wayMesh = "mesh address of "
)

// ways are what each node tries: the managers' port, and through the mesh the addresses of nodes.
func ways(nodes []examined) []agentapi.Way {
	var out []agentapi.Way
	mesh := 0
	for _, e := range nodes {
		n := e.node
		_, port, err := net.SplitHostPort(n.Description.Listen)
		if err != nil || n.State != cluster.NodeReady {
			continue
		}
		if n.Manager {
			out = append(out, agentapi.Way{Name: wayPort + n.Name, Address: n.Description.Listen})
		}
		if n.Subnet.IsValid() && mesh < waysEach && len(nodes) > 1 {
			mesh++
			out = append(out, agentapi.Way{Name: wayMesh + n.Name, Address: net.JoinHostPort(n.Subnet.Masked().Addr().Next().String(), port)})
		}
	}
	return out
}

// examine asks a node, and compares the clocks.
func (s *Server) examine(ctx context.Context, e *examined, all []agentapi.Way) {
	ns, ok := s.cfg.Nodes(e.node.ID)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, diagnoseMax)
	defer cancel()
	e.connected = true
	before := s.cfg.Now()
	e.diagnosis, e.err = ns.Diagnose(ctx, all)
	e.skew = skew(before, e.diagnosis.Began, e.diagnosis.Ended, s.cfg.Now())
}

// skew is by how much a clock is ahead at least (or behind, when it is negative), when it showed began and ended between sent
// and heard of another one. What the way there and back took is not known apart.
func skew(sent, began, ended, heard time.Time) time.Duration {
	least, most := ended.Sub(heard), began.Sub(sent)
	switch {
	case least > 0:
		return least
	case most < 0:
		return most
	}
	return 0
}

// checks judges.
func (p patient) checks() []api.Check {
	out := p.quorum()
	out = append(out, p.authority()...)
	for _, e := range p.nodes {
		switch {
		case !e.connected:
			out = append(out, check("connected", e.node.Name, api.CheckWarn, fmt.Sprintf("it is %s: it was not looked at", e.node.State)).
				mend("start it, or remove it with `baton node rm %s`", e.node.Name))
			continue
		case e.err != nil:
			out = append(out, check("connected", e.node.Name, api.CheckFail, "it does not answer: "+e.err.Error()).mend("look at its server's log"))
			continue
		}
		out = append(out, p.clock(e), disk(e), latency(e))
		out = append(out, reach(e)...)
		out = append(out, p.certificate(e))
		out = append(out, p.kernel(e)...)
		out = append(out, processOf(e)...)
	}
	out = append(out, p.versions())
	all := make([]api.Check, 0, len(out))
	for _, c := range out {
		all = append(all, api.Check(c))
	}
	return all
}

// finding is a check that is being written.
type finding api.Check

func check(name, node string, r api.CheckResult, message string) finding {
	return finding{Name: name, Node: node, Result: r, Message: message}
}

// mend says what to do, unless all is well.
func (f finding) mend(format string, args ...any) finding {
	if f.Result != api.CheckOK {
		f.Mend = fmt.Sprintf(format, args...)
	}
	return f
}

// grade is fail at bad, warn at doubtful.
func grade(doubtful, bad bool) api.CheckResult {
	switch {
	case bad:
		return api.CheckFail
	case doubtful:
		return api.CheckWarn
	}
	return api.CheckOK
}

func (p patient) quorum() []finding {
	if !p.managers {
		return nil
	}
	ready, leader := 0, ""
	var away []string
	for _, e := range p.nodes {
		id := e.node.ID.String()
		if id == p.leader {
			leader = e.node.Name
		}
		if !slices.Contains(p.voters, id) {
			continue
		}
		if e.connected || e.node.State == cluster.NodeReady {
			ready++
		} else {
			away = append(away, e.node.Name)
		}
	}
	need, all := len(p.voters)/2+1, len(p.voters)
	said := fmt.Sprintf("%d of %d managers answer, %d are needed", ready, all, need)
	switch {
	case leader == "":
		return []finding{check("quorum", "", api.CheckFail, "no manager leads; "+said).
			mend("bring managers back; if they are lost for good, stop this one and run `baton cluster recover` on it")}
	case len(away) > 0:
		return []finding{check("quorum", "", grade(true, ready < need), said+"; away: "+strings.Join(away, ", ")).
			mend("bring them back, or remove them with `baton node rm`")}
	case all == 2:
		return []finding{check("quorum", "", api.CheckWarn, said+": losing either stops the cluster").mend("make a third node a manager: `baton node promote NAME`; or let a small machine vote: `baton join --witness`")}
	case all > 2 && all%2 == 0:
		return []finding{check("quorum", "", api.CheckWarn, said+fmt.Sprintf(": no safer than with %d", all-1)).mend("add or demote a manager, so that their number is odd")}
	}
	return []finding{check("quorum", "", api.CheckOK, said+"; "+leader+" leads")}
}

func (p patient) authority() []finding {
	var out []finding
	for _, c := range p.roots {
		left := c.NotAfter.Sub(p.now)
		out = append(out, check("authority", "", grade(left < 12*certWarn, left < certWarn), "good for another "+days(left)).mend("replace it with `baton cluster ca rotate`"))
	}
	return out
}

func days(d time.Duration) string {
	if d < 0 {
		return "0 days: it has expired"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + " days"
}

func (p patient) clock(e examined) finding {
	off := e.skew.Abs()
	said := "the same as this manager's"
	if off >= time.Millisecond {
		way := "ahead of"
		if e.skew < 0 {
			way = "behind"
		}
		said = fmt.Sprintf("%s %s this manager's", off.Round(time.Millisecond), way)
	}
	return check("clock", e.node.Name, grade(off > skewWarn, off > skewFail), said).mend("let both keep time with NTP (chrony, systemd-timesyncd)")
}

func disk(e examined) finding {
	d := e.diagnosis
	return check("disk", e.node.Name, grade(d.DiskFree < freeWarn, d.DiskFree < freeFail), fmt.Sprintf("%.1f of %.1f GiB are free", float64(d.DiskFree)/(1<<30), float64(d.DiskSize)/(1<<30))).
		mend("free some space, remove images with `baton image rm`, or move the data directory to a larger disk")
}

// latency judges how fast the disk is: a manager's log waits for it with each change.
func latency(e examined) finding {
	took := e.diagnosis.Sync
	bad := took > syncFail && e.node.Manager
	return check("disk latency", e.node.Name, grade(took > syncWarn && e.node.Manager || took > syncFail, bad), fmt.Sprintf("a small write takes %s", took.Round(10*time.Microsecond))).
		mend("give the data directory of a manager a disk of its own, or a faster one")
}

// reach judges the ways of a node to others.
func reach(e examined) []finding {
	var out []finding
	for _, kind := range []struct{ prefix, name, mend string }{
		{wayPort, "ports", "let TCP through to the managers' port (7701 unless they say otherwise) in firewalls between the machines"},
		{wayMesh, "mesh", "let UDP of the mesh's port (7701 unless the cluster says otherwise) through in both directions"},
	} {
		tried := 0
		var bad []string
		for _, t := range e.diagnosis.Tried {
			to, ok := strings.CutPrefix(t.Name, kind.prefix)
			if !ok || to == e.node.Name {
				continue
			}
			tried++
			if closed := kind.prefix == wayPort && t.Refused; !t.Open && !t.Refused || closed {
				bad = append(bad, to)
			}
		}
		switch {
		case len(bad) > 0:
			out = append(out, check(kind.name, e.node.Name, api.CheckFail, "cannot reach "+strings.Join(bad, ", ")).mend("%s", kind.mend))
		case tried > 0:
			out = append(out, check(kind.name, e.node.Name, api.CheckOK, fmt.Sprintf("%d reached", tried)))
		}
	}
	return out
}

func (p patient) certificate(e examined) finding {
	end := e.node.Description.Expires
	if end.IsZero() {
		return check("certificate", e.node.Name, api.CheckWarn, "the node has not said how long its certificate is good").mend("wait until it is connected")
	}
	left := end.Sub(p.now)
	return check("certificate", e.node.Name, grade(left < certWarn, left < certFail), "good for another "+days(left)).
		mend("it renews itself when 30 days are left: look at the node's server log for why it did not")
}

// kernel judges what the node found of its kernel.
func (p patient) kernel(e examined) []finding {
	var missing, instead []string
	for _, f := range e.diagnosis.Features {
		switch {
		case f.Missing == "", f.Mesh != "" && f.Mesh != p.mesh:
		case f.Optional:
			instead = append(instead, fmt.Sprintf("no %s: %s", f.Name, f.Instead))
		default:
			missing = append(missing, fmt.Sprintf("%s (%s)", f.Name, f.Missing))
		}
	}
	said := e.node.Description.Kernel
	if said == "" {
		said = "it has what is needed"
	}
	if len(instead) > 0 {
		said += "; " + strings.Join(instead, "; ")
	}
	out := []finding{check("kernel", e.node.Name, api.CheckOK, said)}
	if len(missing) > 0 {
		out[0] = check("kernel", e.node.Name, api.CheckFail, "missing: "+strings.Join(missing, ", ")).mend("load the module, or use a kernel that has it")
	}
	if d := e.diagnosis; d.ConnsMax > 0 {
		full := d.ConnsUsed * 100 / d.ConnsMax
		out = append(out, check("connections", e.node.Name, grade(full >= connsWarnPercent, full >= 98), fmt.Sprintf("%d of %d that the kernel tracks are in use", d.ConnsUsed, d.ConnsMax)).
			mend("raise net.netfilter.nf_conntrack_max with sysctl: new connections are dropped when it is full"))
	}
	return out
}

// processOf judges what a node's baton uses, and tells the numbers, which somebody who looks for a leak compares over time.
func processOf(e examined) []finding {
	p := e.diagnosis.Process
	if p.Goroutines == 0 {
		return nil // an older baton does not tell
	}
	full := p.FilesMax > 0 && p.Files*100 >= p.FilesMax*filesWarnPercent
	said := fmt.Sprintf("baton has %d goroutines, %.1f MiB of live heap, %.1f MiB resident, %d open files", p.Goroutines, mebibytes(p.Heap), mebibytes(p.Resident), p.Files)
	f := check("process", e.node.Name, grade(full, false), said).
		mend("raise the limit of open files (%d) with LimitNOFILE= of the service: without any left, baton can start nothing", p.FilesMax)
	f.Values = map[string]uint64{"goroutines": p.Goroutines, "heapBytes": p.Heap, "residentBytes": p.Resident, "files": p.Files, "filesMax": p.FilesMax}
	return []finding{f}
}

func mebibytes(n uint64) float64 { return float64(n) / (1 << 20) }

// versions compares the programs of the nodes.
func (p patient) versions() finding {
	by := make(map[string][]string)
	for _, e := range p.nodes {
		if v := e.node.Description.Version; v != "" && e.connected {
			by[v] = append(by[v], e.node.Name)
		}
	}
	var parts []string
	for v, names := range by {
		parts = append(parts, v+" on "+strings.Join(names, ", "))
	}
	slices.Sort(parts)
	return check("version", "", grade(len(by) > 1, false), strings.Join(parts, "; ")).mend("bring all nodes to one version; docs/cluster.md says how")
}
