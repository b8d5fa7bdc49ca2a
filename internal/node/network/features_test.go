package network

import "testing"

// What the tests of this package use all the time must be found by Features, too.
func TestFeatures(t *testing.T) {
	names := make(map[string]bool)
	for _, f := range Features() {
		names[f.Name] = true
		if f.Err != nil && f.Instead == "" && f.Name != FeatureTUN {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
	for _, want := range []string{"network namespaces", "veth", "nftables", "connection tracking", "wireguard"} {
		if !names[want] {
			t.Errorf("%s was not tried", want)
		}
	}
}
