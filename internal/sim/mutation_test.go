package sim

import (
	"strings"
	"testing"
)

// TestMutations plants a bug for each check and expects the check to find it.
func TestMutations(t *testing.T) {
	const seeds = 400 // most are found with the first
	for _, c := range []struct {
		bug   Mutation
		found []string // parts of what the check says; any of them
	}{
		{MutationStartTwice, []string{" runs on n"}},
		{MutationImmortal, []string{"both write to volume", "not at rest", "opens host port", "uses address"}},
		{MutationLeftovers, []string{"not at rest", "both write to volume"}},
		{MutationAckedEarly, []string{"still balances to it"}},
		{MutationAppliedEarly, []string{"still balances to it"}},
		{MutationBlind, []string{"is promised away", "is given to tasks", "gets a task beside", "not at rest"}},
		{MutationBackwards, []string{"observed running, then preparing"}},
		{MutationResurrect, []string{"then running"}},
		{MutationEndpoint, []string{"is an endpoint, and it is not"}},
		{MutationSecret, []string{"of another node"}},
		{MutationLostReports, []string{"not at rest"}},
		{MutationDeaf, []string{"not at rest"}},
		{MutationSleepy, []string{"not at rest"}},
		{MutationReopen, []string{"ended as complete and is deploying"}},
		{MutationSharedVolume, []string{"both write to volume"}},
		{MutationUndrained, []string{"stopped without draining"}},
		{MutationClinging, []string{"not at rest"}},
		{MutationKnowing, []string{"not at rest"}},
		{MutationUnprepared, []string{"to make room for a task whose image"}},
		{MutationForgetful, []string{"ran before"}},
		{MutationRoughStop, []string{"gets the stop signal and is wanted"}},
	} {
		t.Run(string(c.bug), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= seeds; seed++ {
				err := New(Config{Seed: seed, Chaos: !calm(seed), Mutation: c.bug}).Run()
				if err == nil {
					continue
				}
				for _, part := range c.found {
					if strings.Contains(err.Error(), part) {
						t.Logf("found with seed %d: %v", seed, err)
						return
					}
				}
			}
			t.Errorf("no check found the bug in %d seeds", seeds)
		})
	}
}
