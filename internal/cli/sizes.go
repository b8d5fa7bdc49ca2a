package cli

import (
	"context"
	"strconv"
	"time"

	"baton/client/api"
	"baton/internal/model/spec"
)

// sizes shows what the tasks of services reserve, what they used, and what they should reserve.
func (a *app) sizes(ctx context.Context, target string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	stack, err := a.hint(ctx)
	if err != nil {
		return err
	}
	all, err := c.Sizes(ctx, stack, target)
	if err != nil {
		return err
	}
	return list(a, all, sizesTable(all, time.Now()), func(s api.ServiceSize) string { return s.Stack + "/" + s.Service })
}

func sizesTable(list []api.ServiceSize, now time.Time) *table {
	t := &table{
		head: []string{"SERVICE", "TASKS", "CPU RESERVED", "P50 / P95 / PEAK", "BETTER", "MEMORY RESERVED", "P50 / PEAK", "BETTER", "SAVES", "KNOWN FOR", "NOTE", "STACK"},
		wide: 1,
	}
	var cpu spec.MilliCPU
	var memory spec.Bytes
	for _, s := range list {
		row := []string{s.Service, strconv.Itoa(s.Tasks), reserved(s.ReservedCPU > 0, millis(s.ReservedCPU)), "-", "-",
			reserved(s.ReservedMemory > 0, size(int64(s.ReservedMemory))), "-", "-", "-", "-", "", s.Stack}
		if s.Known {
			moreCPU, moreMemory := s.Saves()
			cpu, memory = cpu+moreCPU, memory+moreMemory
			row[3] = millis(s.CPUMedian) + " / " + millis(s.CPU95) + " / " + millis(s.CPUPeak)
			row[4] = millis(s.CPU)
			row[6] = size(int64(s.MemoryMedian)) + " / " + size(int64(s.MemoryPeak))
			row[7] = size(int64(s.Memory))
			row[8] = saved(moreCPU, moreMemory)
			row[9] = now.Sub(s.Since).Round(time.Minute).String()
		}
		if s.OOM > 0 {
			row[10] = strconv.Itoa(s.OOM) + " killed for memory"
		}
		t.add(row...)
	}
	if len(list) > 1 {
		t.add("all", "", "", "", "", "", "", "", saved(cpu, memory), "", "", "")
	}
	return t
}

func reserved(any bool, amount string) string {
	if !any {
		return "none"
	}
	return amount
}

// saved says how much less would be reserved; more is less than nothing.
func saved(cpu spec.MilliCPU, memory spec.Bytes) string {
	sign := func(negative bool) string {
		if negative {
			return "-"
		}
		return ""
	}
	return sign(cpu < 0) + millis(max(cpu, -cpu)) + ", " + sign(memory < 0) + size(int64(max(memory, -memory)))
}
