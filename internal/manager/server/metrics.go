package server

import (
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"baton/internal/manager/measure"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

const (
	// scrapesMax is how many scrapes are answered at once; of a large cluster each is megabytes.
	scrapesMax = 4
	// scrapedTasksMax bounds the tasks that have series of their own: each is about 1 KB of text.
	scrapedTasksMax = 10_000
	// bucketStep is how many buckets of ours make one of those that are shown: bounds are then about 2 times the one before.
	bucketStep = 4
)

// metrics collects for Prometheus what this manager knows. docs/metrics.md names all of it.
type metrics struct{ server *Server }

// metricsHandler answers GET /metrics.
func (s *Server) metricsHandler() http.Handler {
	return promhttp.HandlerFor(s.registry(), promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: scrapesMax,
	})
}

func (s *Server) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(metrics{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// metric is the description of one, with its labels.
func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("baton_"+name, help, labels, nil)
}

// What is shown of requests and tasks. Descriptions are values that nobody changes.
var (
	ofService = []string{"stack", "service"}
	ofTask    = []string{"stack", "service", "slot", "task", "node"}

	requestsTotal   = metric("requests_total", "HTTP requests through ingress rules that ended, by class of status.", "stack", "service", "code")
	requestsFailed  = metric("requests_failed_total", "Requests that failed between client and task, by reason.", "stack", "service", "reason")
	requestSeconds  = metric("request_duration_seconds", "Latency of the requests that a task answered; of streams until the header.", ofService...)
	requestsNow     = metric("requests_in_flight", "Requests that are under way.", ofService...)
	requestBodies   = metric("request_body_bytes_total", "Bytes of the bodies of requests.", ofService...)
	responseBodies  = metric("response_body_bytes_total", "Bytes of the bodies of answers.", ofService...)
	tasksDesired    = metric("service_tasks_desired", "Tasks that a service is to have.", ofService...)
	tasksRunning    = metric("service_tasks_running", "Tasks of a service that run.", ofService...)
	tasksReady      = metric("service_tasks_ready", "Tasks of a service that are ready.", ofService...)
	tasksFailed     = metric("service_task_failures_total", "Tasks of a service that failed, each replaced by another one.", ofService...)
	taskCPU         = metric("task_cpu_seconds_total", "Processor time that a task has used.", ofTask...)
	taskMemory      = metric("task_memory_bytes", "Memory of a task, without reclaimable cache.", ofTask...)
	taskMemoryLimit = metric("task_memory_limit_bytes", "Memory that a task may use.", ofTask...)
	taskReceived    = metric("task_network_receive_bytes_total", "Bytes that a task has received over its own network.", ofTask...)
	taskSent        = metric("task_network_transmit_bytes_total", "Bytes that a task has sent over its own network.", ofTask...)
	tasksUnshown    = metric("tasks_not_shown", "Running tasks without series of their own, because there are too many.")

	nodeReady      = metric("node_ready", "1 if the node is ready.", "node", "role")
	nodeCPU        = metric("node_cpu_seconds_total", "Processor time that everything on the machine has used.", "node")
	nodeCores      = metric("node_cpu_cores", "Processors of the machine.", "node")
	nodeMemory     = metric("node_memory_used_bytes", "Memory of the machine that cannot be had for new processes.", "node")
	nodeMemorySize = metric("node_memory_size_bytes", "Memory of the machine.", "node")

	managerLeads   = metric("manager_leader", "1 if this manager leads.")
	managerHasLead = metric("manager_has_leader", "1 if this manager knows of a leader.")
	managerVoters  = metric("manager_voters", "Managers that vote.")
	raftTerm       = metric("raft_term", "Term of the log.")
	raftLast       = metric("raft_last_index", "Index of the last entry of the log on disk.")
	raftApplied    = metric("raft_applied_index", "Index of the last entry that was applied here.")
	raftWrite      = metric("raft_last_write_seconds", "Time that the last write of the log took to reach the disk.")
	raftStalled    = metric("raft_disk_stalled", "1 if the disk of the log does not answer.")
	raftFree       = metric("raft_disk_free_bytes", "Bytes that are free for the log.")
	storeObjects   = metric("store_objects", "Objects in the store, by kind.", "kind")
	measureSeries  = metric("measure_series", "Series of the load that are kept, by kind.", "kind")
	measureLeft    = metric("measure_left_out_total", "Reports of load that there was no room for, or that made no sense, by kind.", "kind")
)

// Describe implements prometheus.Collector. What there is depends on the cluster, so it is not told in advance.
func (metrics) Describe(chan<- *prometheus.Desc) {}

// sink sends metrics.
type sink chan<- prometheus.Metric

func (c sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (c sink) counter(d *prometheus.Desc, v float64, labels ...string) {
	c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

func (c sink) flag(d *prometheus.Desc, v bool, labels ...string) {
	n := 0.0
	if v {
		n = 1
	}
	c.gauge(d, n, labels...)
}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	s, out := m.server, sink(ch)
	snap, now := s.cfg.Store.Snapshot(), s.cfg.Now()
	k := s.cfg.Measures
	if k == nil {
		k = measure.New(measure.Config{Nodes: func() []cluster.ID { return nil }})
	}
	totals := k.Totals(now)
	for svc := range store.All[*cluster.Service](snap) {
		out.gauge(tasksDesired, float64(svc.Status.Desired), svc.StackName, svc.Name)
		out.gauge(tasksRunning, float64(svc.Status.Running), svc.StackName, svc.Name)
		out.gauge(tasksReady, float64(svc.Status.Ready), svc.StackName, svc.Name)
		out.service(totals[svc.ID], svc.StackName, svc.Name)
	}
	out.tasks(snap, k.TaskUses(now))
	out.nodes(snap, k.NodeUses(now))
	s.collectManager(out, snap)
	services, tasks, edges, left := k.Size()
	for kind, n := range map[string]int{"service": services, "task": tasks, "edge": edges} {
		out.gauge(measureSeries, float64(n), kind)
	}
	for kind, n := range map[string]uint64{"service": left.Services, "task": left.Tasks, "edge": left.Edges, "senseless": left.Senseless} {
		out.counter(measureLeft, float64(n), kind)
	}
}

// service shows what became of a service's requests. A service that never had one has no histogram: 20 lines of zeroes each.
func (c sink) service(t measure.Total, stack, service string) {
	c.counter(tasksFailed, float64(t.Ended), stack, service)
	requests := uint64(0)
	for _, n := range t.Classes {
		requests += n
	}
	if requests == 0 && t.InFlight == 0 {
		return
	}
	for class, n := range t.Classes {
		c.counter(requestsTotal, float64(n), stack, service, className(class))
	}
	for reason, n := range map[string]uint64{"no_endpoint": t.NoEndpoint, "unreached": t.Unreached, "broken": t.Broken} {
		c.counter(requestsFailed, float64(n), stack, service, reason)
	}
	c.gauge(requestsNow, float64(t.InFlight), stack, service)
	c.counter(requestBodies, float64(t.Received), stack, service)
	c.counter(responseBodies, float64(t.Sent), stack, service)
	buckets, sum := make(map[float64]uint64), uint64(0)
	for i, n := range t.Latency {
		sum += n
		if bound, ok := agentapi.LatencyBound(i); ok && i%bucketStep == 0 {
			buckets[bound.Seconds()] = sum
		}
	}
	c <- prometheus.MustNewConstHistogram(requestSeconds, sum, t.Took.Seconds(), buckets, stack, service)
}

func (c sink) tasks(snap store.Snapshot, uses []agentapi.TaskUse) {
	shown := 0
	for i := range uses {
		u := &uses[i]
		t, ok := store.Get[*cluster.Task](snap, u.Task)
		if !ok || t.Observed.Terminal() {
			continue
		}
		if shown++; shown > scrapedTasksMax {
			continue
		}
		svc, ok := store.Get[*cluster.Service](snap, t.Service)
		if !ok {
			continue
		}
		labels := []string{svc.StackName, svc.Name, strconv.Itoa(t.Slot), t.ID.String(), reader{snap}.nodeName(t.Node)}
		c.counter(taskCPU, u.CPU.Seconds(), labels...)
		c.gauge(taskMemory, float64(u.Memory), labels...)
		if u.MemoryLimit > 0 {
			c.gauge(taskMemoryLimit, float64(u.MemoryLimit), labels...)
		}
		c.counter(taskReceived, float64(u.Received), labels...)
		c.counter(taskSent, float64(u.Sent), labels...)
	}
	c.gauge(tasksUnshown, float64(max(0, shown-scrapedTasksMax)))
}

func (c sink) nodes(snap store.Snapshot, uses map[cluster.ID]agentapi.NodeUse) {
	for n := range store.All[*cluster.Node](snap) {
		role := "worker"
		if n.Manager {
			role = "manager"
		}
		c.flag(nodeReady, n.State == cluster.NodeReady, n.Name, role)
		if u, ok := uses[n.ID]; ok {
			c.counter(nodeCPU, u.CPU.Seconds(), n.Name)
			c.gauge(nodeCores, float64(spec.MilliCPU(u.Cores))/1000, n.Name)
			c.gauge(nodeMemory, float64(u.Memory), n.Name)
			c.gauge(nodeMemorySize, float64(u.MemorySize), n.Name)
		}
	}
}

// collectManager shows the state of the control plane, as this manager sees it.
func (s *Server) collectManager(c sink, snap store.Snapshot) {
	for kind, name := range map[cluster.Kind]string{
		cluster.KindNode: "node", cluster.KindStack: "stack", cluster.KindRelease: "release", cluster.KindService: "service",
		cluster.KindRevision: "revision", cluster.KindTask: "task", cluster.KindEvent: "event",
	} {
		c.gauge(storeObjects, float64(snap.Count(kind)), name)
	}
	if s.cfg.Members != nil {
		leader, voters := s.cfg.Members()
		c.flag(managerHasLead, leader != "")
		c.gauge(managerVoters, float64(len(voters)))
	}
	if s.cfg.Raft == nil {
		return
	}
	st := s.cfg.Raft()
	c.flag(managerLeads, st.Term.Leader)
	c.gauge(raftTerm, float64(st.Term.Number))
	c.gauge(raftLast, float64(st.Last))
	c.gauge(raftApplied, float64(st.Applied))
	c.gauge(raftWrite, st.LastWrite.Round(time.Microsecond).Seconds())
	c.flag(raftStalled, st.Stalled)
	c.gauge(raftFree, float64(st.DiskFree))
}
