// Package image keeps the images of a node: it loads archives, pulls from registries, lists, removes and prunes.
//
// Images live in the node's containerd, by their full names ("docker.io/library/redis:latest"); there is no other record of them. A name
// is looked up here before any registry is asked; what a user loaded on one node of a cluster, the others fetch from there (subpackage
// transfer), and the newest load wins over what is present under the name. Names under "baton.test/" and "cluster/" are never asked of one.
//
// Invariants: an image that Pull, Load or Get returned without an error is unpacked and ready to be run; what an interrupted load or pull had
// stored is collected by containerd once its lease has expired; registries are spoken to over TLS, those on this machine excepted.
//
// Concurrency: all methods may be called from any goroutine; equal layers are fetched once by containerd.
package image
