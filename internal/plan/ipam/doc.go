// Package ipam hands out addresses: a subnet to each node, an address in its node's subnet to each task, an address of
// the service pool to each service; and it keeps the books of the host ports of a node.
//
// Invariants: an address is never given twice while it is taken, and one that was freed is given again only after every
// other free address of its block was given. The first and the last address of a block, and the ones a caller reserves,
// are never given.
//
// Concurrency: no goroutines, no locks; a Block and a Ports belong to one caller.
package ipam
