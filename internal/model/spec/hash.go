package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// Hash identifies what the tasks of a service are made of, as 32 hexadecimal digits. Two services with the same Hash need no
// new revision; a different Hash means that running tasks have to be replaced.
//
// In it: everything of Service but what HashPolicy covers and Replicas. So the image, the container, probes, networks,
// ports, mounts, references to secrets and configs (not their content: a caller adds the versions it resolved), resources,
// placement, the restart policy and logging. Replicas is in neither hash: scaling makes no revision. A field that is empty
// and omitted from JSON does not count, so new optional fields leave stored hashes valid.
//
// Hash a service after SetDefaults, or a default written out would count as a change.
func Hash(s *Service) string {
	c := *s
	c.Replicas = 0
	c.Labels = nil
	c.Update, c.Rollback = UpdatePolicy{}, UpdatePolicy{}
	c.DependsOn = nil
	c.Ingress = nil
	c.Autoscale = nil
	return digest(&c)
}

// HashPolicy identifies the rest of a service: its labels, its update and rollback policies, its dependencies, its ingress
// rules and its autoscaling. When only this hash differs the new values hold from now on, and no task is replaced. The default Order and Parallelism follow from the
// number of replicas, so scaling may change it.
func HashPolicy(s *Service) string {
	return digest(&Service{
		Name: s.Name, Labels: s.Labels,
		Update: s.Update, Rollback: s.Rollback, DependsOn: s.DependsOn, Ingress: s.Ingress,
		Autoscale: s.Autoscale,
	})
}

func digest(s *Service) string {
	// encoding/json writes struct fields in order and map keys sorted, so equal values give equal bytes.
	b, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("spec: service %q cannot be encoded: %v", s.Name, err))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
