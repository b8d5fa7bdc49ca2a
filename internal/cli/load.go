package cli

import (
	"strconv"
	"time"

	"baton/client/api"
)

// loadHead are the columns of loadCells.
var loadHead = []string{"REQ/S", "ERR %", "P50 / P95 / P99", "IN FLIGHT"}

// loadCells tell the requests of a service or a task; dashes when nothing is known.
func loadCells(l *api.Load) []string {
	if l == nil {
		return []string{"-", "-", "-", "-"}
	}
	errors, latency := "-", "-"
	if l.Requests > 0 {
		errors = strconv.FormatFloat(100*float64(l.Errors())/float64(l.Requests), 'f', 1, 64)
		latency = latencyText(l.P50) + " / " + latencyText(l.P95) + " / " + latencyText(l.P99)
	}
	return []string{strconv.FormatFloat(l.Rate, 'f', 1, 64), errors, latency, strconv.FormatInt(l.InFlight, 10)}
}

// latencyText has two or three digits: a latency is not known better.
func latencyText(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return strconv.FormatFloat(float64(d)/1e6, 'f', 1, 64) + "ms"
	case d < time.Second:
		return strconv.FormatInt(d.Round(time.Millisecond).Milliseconds(), 10) + "ms"
	}
	return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
}

// servicesTable shows what services had to do over the last minute.
func servicesTable(list []api.ServiceLoad) *table {
	t := &table{head: append(append([]string{"SERVICE"}, loadHead...), "CPU", "CPU %", "MEMORY/TASK", "TASKS", "STACK", "NOTE")}
	for i := range list {
		l := &list[i].Load
		of, note := "-", ""
		if l.CPUShare != nil {
			of = strconv.FormatFloat(100**l.CPUShare, 'f', 1, 64)
		}
		if l.Missing > 0 {
			note = "nodes not heard: " + strconv.Itoa(l.Missing)
		}
		row := append([]string{list[i].Service}, loadCells(l)...)
		t.add(append(row, strconv.FormatFloat(float64(l.CPU)/1000, 'f', 2, 64), of, size(int64(l.Memory)), strconv.Itoa(l.Tasks), list[i].Stack, note)...)
	}
	return t
}

// serviceLoads are the loads that a status has.
func serviceLoads(st api.Status) []api.ServiceLoad {
	var out []api.ServiceLoad
	for _, s := range st.Services {
		if s.Load != nil {
			out = append(out, api.ServiceLoad{Stack: st.Stack.Name, Service: s.Name, Load: *s.Load})
		}
	}
	return out
}
