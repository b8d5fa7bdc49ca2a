package server

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"baton/internal/manager/consensus"
	"baton/internal/manager/measure"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// measuredHarness has a node, a service with a task, and their load.
func measuredHarness(t *testing.T) *harness {
	h := newHarness(t)
	meta := func(n byte) cluster.Meta { return cluster.Meta{ID: cluster.ID{n}} }
	var txn store.Txn
	for _, o := range []cluster.Object{
		&cluster.Node{Meta: meta(1), Name: "n1", Manager: true, State: cluster.NodeReady}, &cluster.Node{Meta: meta(2), Name: "n2", State: cluster.NodeDown},
		&cluster.Stack{Meta: meta(3), Name: "shop"},
		&cluster.Service{Meta: meta(4), Stack: cluster.ID{3}, StackName: "shop", Name: "web", Status: cluster.ServiceStatus{Desired: 2, Running: 1, Ready: 1}},
		&cluster.Service{Meta: meta(6), Stack: cluster.ID{3}, StackName: "shop", Name: "db"},
		&cluster.Task{Meta: meta(5), Stack: cluster.ID{3}, Service: cluster.ID{4}, Node: cluster.ID{1}, Slot: 1, Desired: cluster.DesiredRun, Observed: cluster.ObservedRunning, Ready: true},
	} {
		txn.Put(o)
	}
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	k := measure.New(measure.Config{
		Task: func(id cluster.ID) (measure.Task, bool) {
			return measure.Task{Service: cluster.ID{4}, Node: cluster.ID{1}}, id == cluster.ID{5}
		},
		Service: func(cluster.ID) bool { return true }, Nodes: func() []cluster.ID { return nil },
	})
	for i := range uint64(2) {
		k.Take(cluster.ID{1}, agentapi.Measures{At: now, Full: true, Requests: []agentapi.RequestMeasure{{
			Service: cluster.ID{4}, Task: cluster.ID{5}, Since: now.UnixNano(), Classes: [agentapi.RequestClasses]uint64{0: i, 2: 7 * i, 5: i}, Broken: i, InFlight: 2,
			Received: 10 * i, Sent: 20 * i, Latency: agentapi.Sparse{0, 3 * i, 9, 5 * i}, Took: time.Duration(i) * time.Second,
		}}, Use: &agentapi.NodeUse{CPU: time.Minute, Cores: 2000, Memory: 1000, MemorySize: 2000, Tasks: []agentapi.TaskUse{{Task: cluster.ID{5}, CPU: 3 * time.Second, Memory: 42}}}}, now)
	}
	k.Ended(cluster.ID{4})
	h.srv.cfg.Measures = k
	h.srv.cfg.Members = func() (string, []string) { return "a", []string{"a", "b", "c"} }
	h.srv.cfg.Raft = func() consensus.Status {
		return consensus.Status{Term: consensus.Term{Number: 3, Leader: true}, Last: 9}
	}
	return h
}

func TestMetrics(t *testing.T) {
	h := measuredHarness(t)
	code, out := h.do("GET", "/metrics", nil)
	if code != 200 {
		t.Fatalf("status %d: %s", code, out)
	}
	task := cluster.ID{5}.String()
	for _, want := range []string{
		`baton_requests_total{code="2xx",service="web",stack="shop"} 7`, `baton_requests_total{code="5xx",service="web",stack="shop"} 1`,
		`baton_requests_total{code="none",service="web",stack="shop"} 1`, `baton_requests_total{code="3xx",service="web",stack="shop"} 0`,
		`baton_requests_failed_total{reason="broken",service="web",stack="shop"} 1`, `baton_requests_in_flight{service="web",stack="shop"} 2`,
		`baton_request_body_bytes_total{service="web",stack="shop"} 10`, `baton_response_body_bytes_total{service="web",stack="shop"} 20`,
		`baton_request_duration_seconds_bucket{service="web",stack="shop",le="0.0005"} 3`, `baton_request_duration_seconds_bucket{service="web",stack="shop",le="+Inf"} 8`,
		`baton_request_duration_seconds_sum{service="web",stack="shop"} 1`, `baton_request_duration_seconds_count{service="web",stack="shop"} 8`,
		`baton_service_tasks_desired{service="web",stack="shop"} 2`, `baton_service_task_failures_total{service="web",stack="shop"} 1`,
		`baton_task_cpu_seconds_total{node="n1",service="web",slot="1",stack="shop",task="` + task + `"} 3`,
		`baton_task_memory_bytes{node="n1",service="web",slot="1",stack="shop",task="` + task + `"} 42`,
		`baton_node_ready{node="n1",role="manager"} 1`, `baton_node_ready{node="n2",role="worker"} 0`, `baton_node_cpu_cores{node="n1"} 2`,
		`baton_manager_leader 1`, `baton_manager_voters 3`, `baton_raft_term 3`, `baton_raft_last_index 9`, `baton_store_objects{kind="task"} 1`,
		`baton_measure_series{kind="edge"} 1`, `baton_measure_left_out_total{kind="senseless"} 0`, "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(out, want+"\n") && !strings.Contains(out, "\n"+want) {
			t.Errorf("no %q", want)
		}
	}
	for _, not := range []string{`baton_requests_total{code="2xx",service="db"`, `task_memory_limit_bytes{`} {
		if strings.Contains(out, not) {
			t.Errorf("%q is there", not)
		}
	}
	if code, _ := h.do("POST", "/metrics", nil); code != 405 {
		t.Errorf("POST: status %d", code)
	}
}

// Names, types and help are as Prometheus wants them.
func TestMetricsLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(measuredHarness(t).srv.registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Without measures, as on a server that has no network, there is still what the store knows.
func TestMetricsWithoutMeasures(t *testing.T) {
	h := newHarness(t)
	if code, out := h.do("GET", "/metrics", nil); code != 200 || !strings.Contains(out, `baton_store_objects{kind="node"} 0`) {
		t.Errorf("status %d: %s", code, out)
	}
}

// The load is told with the status of a stack and with what tasks use.
func TestStatusHasTheLoad(t *testing.T) {
	h := measuredHarness(t)
	if code, out := h.do("GET", "/v1/stacks/shop/status", nil); code != 200 || !strings.Contains(out, `"inFlight":2`) || strings.Count(out, `"load"`) != 1 {
		t.Errorf("status %d: %s", code, out)
	}
	if code, out := h.do("GET", "/v1/top", nil); code != 200 || strings.Count(out, `"inFlight":2`) != 2 {
		t.Errorf("status %d: %s", code, out)
	}
}

// What services use is told with what they reserve; one that was killed for memory needs more than it could use.
func TestSizes(t *testing.T) {
	h := measuredHarness(t)
	rev := &cluster.Revision{Meta: cluster.Meta{ID: cluster.ID{7}}, Service: cluster.ID{4}, Spec: spec.Service{Name: "web", Resources: spec.Resources{
		Reservations: spec.Reservations{CPU: 2000, Memory: 1 << 30}, Limits: spec.Limits{Memory: 2 << 30},
	}}}
	web, _ := store.Get[*cluster.Service](h.st.Snapshot(), cluster.ID{4})
	svc := cluster.Copy(web)
	svc.Revision = rev.ID
	var txn store.Txn
	txn.Put(rev)
	txn.Put(svc)
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	if code, out := h.do("GET", "/v1/sizes?target=web", nil); code != 200 || !strings.Contains(out, `"reservedCpu":2000`) || !strings.Contains(out, `"known":false`) {
		t.Errorf("status %d: %s", code, out)
	}
	now := time.Now()
	for i := range 20 {
		at := now.Add(time.Duration(6*i) * time.Second)
		h.srv.cfg.Measures.Take(cluster.ID{1}, agentapi.Measures{At: at, Use: &agentapi.NodeUse{Tasks: []agentapi.TaskUse{
			{Task: cluster.ID{5}, CPU: time.Duration(3+3*i) * time.Second, Memory: 100 << 20},
		}}}, at)
	}
	if code, out := h.do("GET", "/v1/sizes?stack=shop", nil); code != 200 || !strings.Contains(out, `"memory":120586240`) || !strings.Contains(out, `"cpuMedian":500`) {
		t.Errorf("status %d, want 115 MiB recommended and half a processor used: %s", code, out)
	}
	txn = store.Txn{}
	txn.Put(&cluster.Task{Meta: cluster.Meta{ID: cluster.ID{8}}, Stack: cluster.ID{3}, Service: cluster.ID{4}, Revision: rev.ID, Node: cluster.ID{1}, Slot: 2,
		Desired: cluster.DesiredRun, Observed: cluster.ObservedFailed, Exit: &cluster.Exit{Code: 137, OOM: true}})
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	if code, out := h.do("GET", "/v1/sizes?target=web", nil); code != 200 || !strings.Contains(out, `"oom":1`) || !strings.Contains(out, `"memory":2577399808`) {
		t.Errorf("status %d, want 1.2 times the limit recommended: %s", code, out)
	}
	if code, out := h.do("GET", "/v1/sizes?target=n1", nil); code != 422 || !strings.Contains(out, "n1 is a node") {
		t.Errorf("status %d: %s", code, out)
	}
}
