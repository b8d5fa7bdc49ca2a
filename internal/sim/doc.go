// Package sim runs a whole cluster in one goroutine, with simulated time and seeded chance, and checks it after every step.
//
// Real: the store, the planners, control.Engine with control.Work, the dispatcher with its sessions, agent.Loop with
// agent.Step, release.Deploy. Simulated: the log (one copy, which can lose leadership, refuse, interleave others' writes or
// leave the outcome unknown), the network between agents and manager, containers, load balancers, probes, users, and the
// judgement that a silent node is unknown or down.
//
//	w := sim.New(sim.Config{Seed: 7, Chaos: true})
//	if err := w.Run(); err != nil { … replay the seed with a trace … }
//
// Invariants: one seed gives one history and one trace hash; nothing reads the machine's clock or randomness. What is
// checked is listed in check.go, and each check is shown to find a bug planted for it (Mutation).
//
// Concurrency: none; a World belongs to one goroutine.
package sim
