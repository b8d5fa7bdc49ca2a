package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"baton/client/api"
)

// worst lists what the doctor finds that is worse than ok, but for what depends on the machine that runs the tests.
func (m *machine) worst() string {
	m.t.Helper()
	r := m.try("cluster", "doctor", "-o", "json")
	var out []string
	failed := false
	for _, k := range decode[[]api.Check](m.t, r.stdout) {
		failed = failed || k.Result == api.CheckFail
		if k.Result != api.CheckOK && !strings.HasPrefix(k.Name, "disk") {
			out = append(out, fmt.Sprintf("%s %s %s: %s", k.Name, k.Node, k.Result, k.Message))
		}
	}
	if failed != (r.code == api.ExitError) {
		m.t.Errorf("exit %d, failed %v", r.code, failed)
	}
	return strings.Join(out, "\n")
}

func TestDoctor(t *testing.T) {
	alone := newMachine(t)
	eventually(t, 30*time.Second, "one machine is well", func() error {
		if bad := alone.worst(); bad != "" {
			return errors.New(bad)
		}
		return nil
	})
	c := newCluster(t, 3, 1)
	m1, m3 := c.list[0], c.list[2]
	eventually(t, time.Minute, "the cluster is well", func() error {
		if bad := m1.worst(); bad != "" {
			return errors.New(bad)
		}
		return nil
	})
	t.Log("\n" + m1.try("cluster", "doctor").stdout)
	for _, want := range []string{"mesh", "ports", "clock", "certificate", "kernel", "version", "quorum"} {
		if out := m1.try("cluster", "doctor").stdout; !strings.Contains(out, want) {
			t.Errorf("nothing about %s:\n%s", want, out)
		}
	}
	c.cut(m3, true)
	eventually(t, time.Minute, "a manager that is cut off is missed", func() error {
		bad := m1.worst()
		if !strings.Contains(bad, "quorum  warn: 2 of 3 managers answer, 2 are needed; away: m3") || !strings.Contains(bad, "connected m3 warn") {
			return errors.New(bad)
		}
		return nil
	})
}
