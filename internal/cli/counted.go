package cli

import (
	"context"
	"time"

	"baton/client"
)

const (
	// countedMax bounds the wait for the count of a release that has ended; the edges tell the last of it some 5 s later.
	countedMax   = 15 * time.Second
	countedEvery = 250 * time.Millisecond
)

// counted waits until it is known what clients had of a release that has ended, and tells it; empty when nothing is counted, or nobody
// tells. It is no part of the deployment: an error in it is none of that.
func counted(ctx context.Context, c *client.Client, stack string, number int) string {
	ctx, cancel := context.WithTimeout(ctx, countedMax)
	defer cancel()
	tick := time.NewTicker(countedEvery)
	defer tick.Stop()
	for {
		rel, err := c.Release(ctx, stack, number)
		switch {
		case err != nil || rel.Traffic == nil:
			return ""
		case !rel.Traffic.Counting:
			return rel.Traffic.Text
		}
		select {
		case <-ctx.Done():
			return ""
		case <-tick.C:
		}
	}
}
