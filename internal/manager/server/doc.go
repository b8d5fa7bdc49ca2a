// Package server is the managers' public HTTP API: JSON documents under /v1 with an OpenAPI 3.1 description generated from the
// Go types, NDJSON streams for logs, events and watches, and WebSockets for exec.
//
// It owns the way from a request to one transaction: it checks, seals what is secret, asks the release planner what to write,
// writes it in one transaction together with the event that tells of it, and tries again when somebody else was first. It
// decides nothing about tasks: the control loops do, from what it wrote.
//
// Invariants: a request changes everything it asks for or nothing. The content of a secret never leaves the server, not in an
// answer, an error or a log line. Every error is a problem document with a stable code, a message and, where there is one,
// the mend.
//
// Concurrency: a Server may serve any number of requests at once; each works on a snapshot of its own. Every goroutine
// belongs to the request that started it, which waits for it. Close ends the streams.
package server
