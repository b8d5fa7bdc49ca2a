// Package api holds the documents of Baton's HTTP API: what requests carry and what answers hold, beyond the objects of
// package cluster, which the API shows as they are.
//
// It owns no behaviour but the mapping from error codes to HTTP statuses and exit codes. Server and client share these
// types, so that neither can drift from the other; the OpenAPI document is generated from them.
//
// Invariants: an Error always has a code and a message that makes sense to a user; no document ever carries the content of a
// secret from the server to a client.
//
// Concurrency: values only.
package api
