// Package certificate gives the hosts of ingress rules their certificates. It is a loop of the leader's: it looks which hosts the rules want
// a certificate for, and makes, obtains, renews and deletes the stored ones accordingly.
//
// It owns the objects of kind certificate: one for each host, the cluster's own authority for services, and the account at
// the ACME authority. Private keys are sealed before they are stored, and leave the managers to the edges only.
//
// Invariants: a host's certificate stays in place until the next one is there, whatever fails meanwhile. An order is made by
// the leader only; what is left of one when leadership changes is begun anew by the next leader, with the same account. A certificate
// that a stack brought is taken only if it and its key fit together and to the host.
//
// Concurrency: Run owns everything, and waits for the orders that it began.
package certificate
