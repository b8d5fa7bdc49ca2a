package server

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

var examinedAt = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// wellPatient is a cluster of three managers and a worker that lacks nothing.
func wellPatient() *patient {
	p := &patient{now: examinedAt, managers: true, roots: []*x509.Certificate{{NotAfter: examinedAt.Add(9 * 365 * 24 * time.Hour)}}}
	for i, name := range []string{"m1", "m2", "m3", "w1"} {
		n := &cluster.Node{Meta: cluster.Meta{ID: cluster.ID{0: byte(i + 1)}}, Name: name, Manager: i < 3, State: cluster.NodeReady,
			Description: cluster.NodeDescription{Version: "1.0", Kernel: "6.1", Expires: examinedAt.Add(60 * 24 * time.Hour)}}
		if n.Manager {
			p.voters = append(p.voters, n.ID.String())
		}
		p.nodes = append(p.nodes, examined{node: n, connected: true, diagnosis: agentapi.Diagnosis{
			Process: agentapi.Process{Goroutines: 100, Heap: 10 << 20, Resident: 50 << 20, Files: 60, FilesMax: 1024},
			Sync:    time.Millisecond, DiskFree: 50 << 30, DiskSize: 100 << 30, ConnsUsed: 10, ConnsMax: 1000,
			Features: []agentapi.Feature{{Name: "nftables"}, {Name: "wireguard", Missing: "no", Optional: true, Instead: "in process"}},
			Tried:    []agentapi.Tried{{Way: agentapi.Way{Name: wayPort + "m1"}, Open: true}, {Way: agentapi.Way{Name: wayMesh + "m1"}, Refused: true}},
		}})
	}
	p.leader = p.voters[0]
	return p
}

type plantedFault struct {
	plant func(*patient)
	want  string // check node result, of the one finding that is not ok
	says  string // in its message or mend
}

var plantedFaults = map[string]plantedFault{
	"well":      {func(*patient) {}, "", ""},
	"no leader": {func(p *patient) { p.leader = "" }, "quorum  fail", "cluster recover"},
	"a manager away": {func(p *patient) {
		p.nodes[2].connected, p.nodes[2].node.State = false, cluster.NodeDown
	}, "quorum  warn", "away: m3"},
	"two managers":              {func(p *patient) { p.voters = p.voters[:2] }, "quorum  warn", "third"},
	"four managers":             {func(p *patient) { p.voters = append(p.voters, p.nodes[3].node.ID.String()) }, "quorum  warn", "no safer than with 3"},
	"clock a little off":        {func(p *patient) { p.nodes[1].skew = 300 * time.Millisecond }, "clock m2 warn", "300ms ahead of"},
	"clock far off":             {func(p *patient) { p.nodes[3].skew = -time.Minute }, "clock w1 fail", "NTP"},
	"disk fills":                {func(p *patient) { p.nodes[0].diagnosis.DiskFree = 3 << 30 }, "disk m1 warn", "3.0 of 100.0 GiB"},
	"disk full":                 {func(p *patient) { p.nodes[0].diagnosis.DiskFree = 3 << 20 }, "disk m1 fail", "free some space"},
	"slow disk of a manager":    {func(p *patient) { p.nodes[0].diagnosis.Sync = 80 * time.Millisecond }, "disk latency m1 warn", "80ms"},
	"stalled disk of a manager": {func(p *patient) { p.nodes[0].diagnosis.Sync = time.Second }, "disk latency m1 fail", "faster"},
	"slow disk of a worker":     {func(p *patient) { p.nodes[3].diagnosis.Sync = 80 * time.Millisecond }, "", ""},
	"port filtered": {func(p *patient) {
		p.nodes[3].diagnosis.Tried[0] = agentapi.Tried{Way: agentapi.Way{Name: wayPort + "m1"}, Text: "i/o timeout"}
	}, "ports w1 fail", "cannot reach m1"},
	"port closed": {func(p *patient) {
		p.nodes[3].diagnosis.Tried[0] = agentapi.Tried{Way: agentapi.Way{Name: wayPort + "m1"}, Refused: true}
	}, "ports w1 fail", "TCP"},
	"mesh filtered": {func(p *patient) {
		p.nodes[3].diagnosis.Tried[1] = agentapi.Tried{Way: agentapi.Way{Name: wayMesh + "m1"}, Text: "i/o timeout"}
	}, "mesh w1 fail", "UDP"},
	"certificate ends": {func(p *patient) { p.nodes[3].node.Description.Expires = examinedAt.Add(10 * 24 * time.Hour) }, "certificate w1 warn", "10 days"},
	"certificate over": {func(p *patient) { p.nodes[3].node.Description.Expires = examinedAt.Add(-time.Hour) }, "certificate w1 fail", "expired"},
	"authority ends":   {func(p *patient) { p.roots[0].NotAfter = examinedAt.Add(100 * 24 * time.Hour) }, "authority  warn", "ca rotate"},
	"no nftables":      {func(p *patient) { p.nodes[3].diagnosis.Features[0].Missing = "protocol not supported" }, "kernel w1 fail", "nftables (protocol not supported)"},
	"no tun": {func(p *patient) {
		p.mesh = cluster.MeshWireGuard
		p.nodes[3].diagnosis.Features = []agentapi.Feature{{Name: "tun", Missing: "no such device", Mesh: cluster.MeshWireGuard}}
	}, "kernel w1 fail", "tun"},
	"no tun with another mesh": {func(p *patient) {
		p.mesh = cluster.MeshVXLAN
		p.nodes[3].diagnosis.Features = []agentapi.Feature{{Name: "tun", Missing: "no such device", Mesh: cluster.MeshWireGuard}}
	}, "", ""},
	"connections full":       {func(p *patient) { p.nodes[3].diagnosis.ConnsUsed = 850 }, "connections w1 warn", "nf_conntrack_max"},
	"files run out":          {func(p *patient) { p.nodes[3].diagnosis.Process.Files = 1000 }, "process w1 warn", "LimitNOFILE"},
	"an older baton":         {func(p *patient) { p.nodes[3].diagnosis.Process = agentapi.Process{} }, "", ""},
	"versions differ":        {func(p *patient) { p.nodes[3].node.Description.Version = "0.9" }, "version  warn", "0.9 on w1; 1.0 on m1, m2, m3"},
	"a node is silent":       {func(p *patient) { p.nodes[3].connected, p.nodes[3].node.State = false, cluster.NodeDown }, "connected w1 warn", "node rm w1"},
	"a node does not answer": {func(p *patient) { p.nodes[3].err = errTest }, "connected w1 fail", "planted"},
}

func TestDoctorFindsPlantedFaults(t *testing.T) {
	for name, c := range plantedFaults {
		t.Run(name, func(t *testing.T) {
			p := wellPatient()
			c.plant(p)
			var bad []api.Check
			for _, k := range p.checks() {
				if k.Result == api.CheckOK && k.Mend != "" || k.Result != api.CheckOK && k.Mend == "" {
					t.Errorf("%+v: a mend belongs to what is not ok, and to nothing else", k)
				}
				if k.Result != api.CheckOK {
					bad = append(bad, k)
				}
			}
			if c.want == "" {
				if len(bad) > 0 {
					t.Errorf("found %+v", bad)
				}
				return
			}
			if len(bad) == 0 {
				t.Fatal("not found")
			}
			k := bad[0]
			if got := k.Name + " " + k.Node + " " + string(k.Result); got != c.want || !strings.Contains(k.Message+" "+k.Mend, c.says) {
				t.Errorf("got %s: %s / %s, want %s with %q", got, k.Message, k.Mend, c.want, c.says)
			}
			if away := name == "a manager away"; len(bad) > 1 && !away { // that one is found as a node, too
				t.Errorf("found more: %+v", bad[1:])
			}
		})
	}
}

type testError string

func (e testError) Error() string { return string(e) }

const errTest = testError("planted")

func TestSkew(t *testing.T) {
	at := func(ms int) time.Time { return examinedAt.Add(time.Duration(ms) * time.Millisecond) }
	for _, c := range []struct{ sent, began, ended, heard, want int }{
		{0, 10, 20, 30, 0},
		{0, 1010, 1020, 30, 990},
		{0, -990, -980, 30, -990},
		{0, 25, 45, 30, 15},
	} {
		if got := skew(at(c.sent), at(c.began), at(c.ended), at(c.heard)); got != time.Duration(c.want)*time.Millisecond {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}
