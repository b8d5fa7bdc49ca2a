package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"baton/client/api"
)

// soakEnv is how many redeploys TestSoak makes.
const soakEnv = "BATON_SOAK"

const (
	// soakShort is enough that history is full before the first measurement and goes on after it: five tasks a slot, ten
	// releases and versions.
	soakShort = 14
	soakEarly = 12
	// What a baton may use more at the end than early. Connections between managers, with some goroutines each, are opened when they are
	// needed and closed when they are idle, so a moment says little: measured were -12 to +31 goroutines and +3 to +8 files. What leaks
	// with each task shows in a long run. The heap is collected when it likes, and may hold a log entry or two.
	goroutinesMore = 60
	heapMore       = 12 << 20
	residentMore   = 48 << 20
	filesMore      = 30
	// eventBytes is what an event takes of memory, at most. Events are bounded by number (20,000), which a soak takes long to reach.
	eventBytes = 1500
)

// While six tasks are replaced a service has one to twelve endpoints: a chain for each number, by address and by port.
const drawChainsMax = 2 * 12

// soakFile redeploys everything that a release may have: the environment, a config of the stack's own, and the newest version of a secret.
const soakFile = `name: soak
services:
  web:
    image: baton.test/web:v1
    ports: ["8080:8080"]
    environment: {ROUND: "%[1]d"}
    configs: [{source: round, target: /round}]
    secrets: [key]
    healthcheck: {test: [NONE]}
    x-probes: {ready: {http: {path: /healthz, port: 8080}, every: 200ms, timeout: 2s}}
    deploy: {replicas: 6, update_config: {monitor: 0s, parallelism: 6}}
  asks:
    image: baton.test/web:v1
    healthcheck: {test: [NONE]}
    deploy: {mode: global}
configs: {round: {file: ./round.txt}}
secrets: {key: {external: true}}
`

// Redeploys leave nothing behind: everything answers from everywhere, and no node has more than before.
func TestSoak(t *testing.T) {
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv(soakEnv), strconv.Itoa(soakShort)))
	if err != nil || rounds < soakShort {
		t.Fatalf("%s=%q: want a number from %d", soakEnv, os.Getenv(soakEnv), soakShort)
	}
	c := newCluster(t, 3, 0)
	m1 := c.list[0]
	m1.load("web-v1")
	c.redeploy(0)
	c.allAnswer(0)
	asks := make(map[string]bool)
	for _, task := range m1.live("asks") {
		asks[task.ID.String()] = true
	}
	begin, last := time.Now(), 0
	var early soakState
	for i := 1; i <= rounds; i++ {
		c.redeploy(i)
		if i == soakEarly {
			early = c.soakState()
		}
		if i%(max(rounds, 20)/5) == 0 {
			c.allAnswer(i)
			t.Logf("%d redeploys, the last %d in %.1f s each", i, i-last, time.Since(begin).Seconds()/float64(i-last))
			begin, last = time.Now(), i
		}
	}
	c.allAnswer(rounds)
	c.same(early)
	for _, task := range m1.live("asks") {
		if !asks[task.ID.String()] {
			t.Errorf("task %s was replaced by redeploys that do not concern it", task.Label())
		}
	}
	m1.baton("down", "-y", "soak")
	c.nothingLeft()
}

// redeploy changes everything that a release has, one after another.
func (c *machines) redeploy(round int) {
	c.t.Helper()
	m1 := c.list[0]
	if r := m1.tryIn(fmt.Appendf(nil, "key of round %d", round), "secret", "set", "key", "-"); r.code != 0 {
		c.t.Fatal(r.stderr)
	}
	m1.write("round.txt", fmt.Sprintf("round %d", round))
	m1.baton("up", "-f", m1.write("compose.yaml", fmt.Sprintf(soakFile, round)), "-y")
}

// allAnswer asks for what is published, for the service's address and for its name, from every node and from a task on every
// node, and expects the newest release.
func (c *machines) allAnswer(round int) {
	c.t.Helper()
	var address string
	for _, s := range batonJSON[[]api.Service](c.list[0], "ls") {
		if s.Name == "web" {
			address = s.Address.String()
		}
	}
	want := fmt.Sprintf("round %d", round)
	try := func(who, ns, host string, dns bool) {
		c.t.Helper()
		r := startLoad(c.t, ns, request{URL: "http://" + host + ":8080/file?path=/round", Workers: 1, Count: 2, DNS: dns, Timeout: 5 * time.Second}).wait()
		if r.Failures > 0 || r.Bodies[want] != 2 {
			c.t.Errorf("after redeploy %d, %s asks %s: got %v %v, want %q", round, who, host, r.Bodies, r.Errors, want)
		}
	}
	asks := make(map[string]string)
	for _, task := range c.list[0].live("asks") {
		asks[task.NodeName] = c.by(task.NodeName).netns(task.ID)
	}
	if len(asks) != len(c.list) {
		c.t.Fatalf("asks runs on %d nodes", len(asks))
	}
	for _, m := range c.list {
		try("a client", c.hub, m.ip, false)
		try("node "+m.name, m.ns, address, false)
		try("a task on "+m.name, asks[m.name], address, false)
		try("a task on "+m.name, asks[m.name], "web", true)
		for _, other := range c.list {
			try("node "+m.name, m.ns, other.ip, false)
			try("a task on "+m.name, asks[m.name], other.ip, false)
		}
	}
}

// soakState is what the cluster has at some time.
type soakState struct {
	sum    footprint
	each   map[string]footprint
	stored footprint
	use    map[string]map[string]uint64
}

func (c *machines) soakState() soakState {
	c.t.Helper()
	var s soakState
	s.sum, s.each = c.footprints()
	s.stored, s.use = c.stored()
	return s
}

// same compares with an earlier state. What was stopped may take a moment to be cleaned up.
func (c *machines) same(early soakState) {
	c.t.Helper()
	var late soakState
	eventually(c.t, time.Minute, "every node has what it had", func() error {
		late = c.soakState()
		var errs []error
		for _, k := range exact {
			if late.sum[k] != early.sum[k] {
				errs = append(errs, fmt.Errorf("%s: %d, early %d", k, late.sum[k], early.sum[k]))
			}
		}
		for k, n := range late.stored {
			if k != "events" && n > early.stored[k] {
				errs = append(errs, fmt.Errorf("stored %s: %d, early %d", k, n, early.stored[k]))
			}
		}
		return errors.Join(append(errs, c.compareUse(early, late)...)...)
	})
	for _, m := range c.list {
		c.t.Logf("%s early: %v; %v", m.name, early.each[m.name], early.use[m.name])
		c.t.Logf("%s late:  %v; %v", m.name, late.each[m.name], late.use[m.name])
		c.knownLogs(m)
	}
	for name, f := range late.each {
		if f["draw nft chains"] > drawChainsMax {
			c.t.Errorf("%s has %d chains that draw an endpoint, want at most %d", name, f["draw nft chains"], drawChainsMax)
		}
	}
	c.t.Logf("stored early: %v; late: %v", early.stored, late.stored)
	if late.sum["shims"] > late.sum["containers"] {
		c.t.Errorf("%d shims for %d containers", late.sum["shims"], late.sum["containers"])
	}
}

// compareUse finds what a baton uses more than its growth may be.
func (c *machines) compareUse(early, late soakState) (errs []error) {
	grown := uint64(max(0, late.stored["events"]-early.stored["events"])) * eventBytes
	for _, m := range c.list {
		was, is := early.use[m.name], late.use[m.name]
		if was == nil || is == nil {
			errs = append(errs, fmt.Errorf("the doctor says nothing of %s", m.name))
			continue
		}
		for what, more := range map[string]uint64{
			"goroutines": goroutinesMore, "heapBytes": heapMore + grown, "residentBytes": residentMore + 2*grown, "files": filesMore,
		} {
			if is[what] > was[what]+more {
				errs = append(errs, fmt.Errorf("%s of %s: %d, early %d", what, m.name, is[what], was[what]))
			}
		}
	}
	return errs
}

// knownLogs wants a log of no task but those that the managers remember.
func (c *machines) knownLogs(m *machine) {
	c.t.Helper()
	eventually(c.t, 30*time.Second, m.name+" has logs of remembered tasks only", func() error {
		known := c.remembered()
		list, err := os.ReadDir(filepath.Join(m.data, "logs"))
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(e os.DirEntry) bool { return known[e.Name()] })
		if len(list) > 0 {
			return fmt.Errorf("%d others, such as %s", len(list), list[0].Name())
		}
		return nil
	})
}

// nothingLeft wants no trace of a task on any node after the last stack is gone.
func (c *machines) nothingLeft() {
	c.t.Helper()
	eventually(c.t, time.Minute, "nothing is left of tasks", func() error {
		var errs []error
		for _, m := range c.list {
			f := m.footprint()
			for _, k := range []string{"namespaces", "containers", "leases", "shims", "task records", "log directories", "fifos"} {
				if f[k] != 0 {
					errs = append(errs, fmt.Errorf("%s: %d %s", m.name, f[k], k))
				}
			}
		}
		return errors.Join(errs...)
	})
	if out := strings.TrimSpace(c.list[0].baton("ps", "--all", "-q")); out != "" {
		c.t.Errorf("tasks are remembered:\n%s", out)
	}
}
