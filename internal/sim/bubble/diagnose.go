package bubble

import (
	"context"
	"time"

	"baton/internal/wire/agentapi"
)

// Diagnose implements agentapi.NodeServices: a box has a clock and nothing else to look at.
func (boxServices) Diagnose(context.Context, []agentapi.Way) (agentapi.Diagnosis, error) {
	return agentapi.Diagnosis{Began: time.Now(), Ended: time.Now()}, nil
}
