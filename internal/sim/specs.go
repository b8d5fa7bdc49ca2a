package sim

import (
	"fmt"
	"slices"
	"time"

	"baton/internal/model/spec"
)

// pick is one of the choices.
func pick[T any](w *World, choices ...T) T { return choices[w.rng.IntN(len(choices))] }

// one is true one time in n.
func (w *World) one(n int) bool { return w.rng.IntN(n) == 0 }

// stack writes a random file.
func (u *users) stack(name string) spec.Stack {
	w := u.w
	s := spec.Stack{Name: name, OnFailure: pick(w, "", "", "", spec.FailurePause, spec.FailureContinue)}
	for i := range 1 + w.rng.IntN(4) {
		u.service(&s, i)
	}
	return s
}

// imageOf builds a new version; some do not work.
func (u *users) imageOf(good bool) string {
	u.image++
	k := "good"
	if !good {
		k = pick(u.w, "crash", "reject", "flaky", "oom", "unready", "sick", "absent")
	}
	return fmt.Sprintf("%s:%d", k, u.image)
}

func (u *users) service(s *spec.Stack, i int) {
	w := u.w
	v := spec.Service{
		Name: string(rune('a' + i)), Image: u.imageOf(!w.one(5)), Pull: pick(w, "", "", spec.PullAlways), Replicas: w.rng.IntN(replicasMax + 1),
		Restart: spec.RestartPolicy{
			Condition: pick(w, spec.RestartAny, spec.RestartAny, spec.RestartOnFailure, spec.RestartNone),
			Delay:     w.between(200*time.Millisecond, 2*time.Second), DelayMax: 8 * time.Second, ResetAfter: 10 * time.Second,
		},
		Update: u.policy(), Rollback: u.policy(),
	}
	v.Container.StopGracePeriod = w.between(200*time.Millisecond, 4*time.Second)
	v.Container.DrainDeadline = w.between(200*time.Millisecond, 4*time.Second)
	if w.one(6) {
		v.Restart.MaxAttempts = 1 + w.rng.IntN(4)
	}
	if w.one(2) {
		v.Probes.Ready = &spec.Probe{TCP: &spec.TCPProbe{Port: 80}}
		if w.one(2) {
			v.Probes.Live = &spec.Probe{TCP: &spec.TCPProbe{Port: 80}}
		}
	}
	if w.one(2) {
		v.Resources.Reservations = spec.Reservations{CPU: spec.MilliCPU(100 * (1 + w.rng.IntN(9))), Memory: spec.Bytes(1+w.rng.IntN(8)) << 28}
	}
	u.place(s, &v, i)
	tame(&v)
	for j := range s.Services {
		if w.one(5) {
			v.DependsOn = append(v.DependsOn, spec.Dependency{
				Service: s.Services[j].Name, Condition: pick(w, spec.DependHealthy, spec.DependStarted), Restart: w.one(3), Required: true,
			})
		}
	}
	if w.one(4) {
		if !slices.ContainsFunc(s.Secrets, func(x spec.Secret) bool { return x.Name == "key" }) {
			s.Secrets = append(s.Secrets, spec.Secret{Name: "key", Content: []byte("content")})
		}
		v.Secrets = []spec.FileRef{{Source: "key"}}
	}
	s.Services = append(s.Services, v)
}

// place gives a service a mode, constraints, ports and volumes.
func (u *users) place(s *spec.Stack, v *spec.Service, i int) {
	w := u.w
	switch w.rng.IntN(10) {
	case 0, 1:
		v.Mode, v.Replicas = spec.Global, 0
	case 2, 3:
		v.Replicas = 1
		name := "data-" + v.Name
		if !slices.ContainsFunc(s.Volumes, func(x spec.Volume) bool { return x.Name == name }) {
			s.Volumes = append(s.Volumes, spec.Volume{Name: name})
		}
		v.Mounts = []spec.Mount{{Kind: spec.MountVolume, Source: name, Target: "/data"}}
	case 4:
		v.Image = fmt.Sprintf("job:%d", u.image)
		v.Restart.Condition = spec.RestartOnFailure
	}
	if w.one(6) {
		v.Ports = []spec.Port{{Target: 80, Published: uint16(8000 + 10*int(s.Name[1]-'0') + i), Mode: pick(w, spec.PortHost, spec.PortIngress)}}
	}
	if w.one(5) {
		v.Placement.Constraints = []string{"node.labels.zone " + pick(w, "==", "!=") + " " + pick(w, "a", "b", "c")}
	}
	if w.one(5) {
		v.Placement.Spread = []string{"node.labels.zone"}
	}
	if w.one(8) && v.Mode != spec.Global {
		v.Placement.MaxReplicasPerNode = 1
	}
	if w.one(8) {
		v.Placement.Strategy = spec.StrategyPack
	}
	if w.one(20) && len(v.Ports) == 0 {
		v.NetworkMode = "host"
	}
}

func (u *users) policy() spec.UpdatePolicy {
	w := u.w
	return spec.UpdatePolicy{
		Order: pick(w, "", spec.StartFirst, spec.StopFirst), Parallelism: pick(w, 0, 1, 2, spec.AllAtOnce), Delay: pick(w, 0, 0, time.Second),
		Monitor: w.between(100*time.Millisecond, 3*time.Second), Deadline: w.between(8*time.Second, 40*time.Second),
		FailureAction:   pick(w, "", spec.FailureRollback, spec.FailurePause, spec.FailureContinue),
		MaxFailureRatio: pick(w, 0, 0, 0.5),
	}
}

// tame makes the policies ones that validation lets pass.
func tame(v *spec.Service) {
	if v.Rollback.FailureAction == spec.FailureRollback {
		v.Rollback.FailureAction = ""
	}
	if len(v.Mounts) > 0 || len(hostPorts(v)) > 0 {
		v.Update.Order, v.Rollback.Order = "", ""
	}
}

// edit changes a file the way people do.
func (u *users) edit(old spec.Stack) spec.Stack {
	w := u.w
	s := old
	s.Services = slices.Clone(old.Services)
	if w.one(10) && len(s.Services) > 1 {
		// The last one: nothing in the file depends on it.
		s.Services = s.Services[:len(s.Services)-1]
		return s
	}
	if w.one(10) && len(s.Services) < 5 {
		s.Volumes, s.Secrets = slices.Clone(s.Volumes), slices.Clone(s.Secrets)
		u.service(&s, len(s.Services))
		return s
	}
	for range 1 + w.rng.IntN(2) {
		v := &s.Services[w.rng.IntN(len(s.Services))]
		switch w.rng.IntN(5) {
		case 0:
			if v.Mode != spec.Global && len(v.Mounts) == 0 {
				v.Replicas = w.rng.IntN(replicasMax + 1)
			}
		case 1:
			v.Update = u.policy()
			tame(v)
		case 2:
			v.Container.Env = []string{fmt.Sprintf("EDIT=%d", w.rng.IntN(1000))}
		default:
			v.Image = u.imageOf(!w.one(4))
		}
	}
	return s
}
