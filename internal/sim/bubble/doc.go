// Package bubble runs a whole cluster, goroutines and all, in a synctest bubble: real managers on hashicorp/raft with their
// logs on disk, real agents with their sessions over gRPC and mutual TLS, and a network in memory (package memnet) that
// fails. Only containers, load balancers and volumes are simulated (box). Time is simulated, so that an hour of faults takes
// seconds.
//
//	synctest.Test(t, func(t *testing.T) {
//		w := bubble.New(t, bubble.Config{Seed: 7, Managers: 3, Workers: 100})
//		w.Run() // a swarm of faults, then peace, in which everything must converge
//	})
//
// What package sim checks after every step of one goroutine, this checks from time to time and at the end, on the parts
// that sim leaves out: elections, replication, forwarding, sessions, heartbeats, leases, membership. Which goroutine runs
// first is not seeded: a failure's seed gives the same faults at the same times, and mostly the same history.
//
// Concurrency: a World belongs to the goroutine of its test; everything that it starts ends with Close.
package bubble
