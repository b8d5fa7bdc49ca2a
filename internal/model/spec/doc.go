// Package spec holds what a user asks for: a stack of services with their networks, volumes, secrets and configs.
//
// The types are plain values. They are produced by package compose (or any other front door), validated and completed
// with defaults here, stored as part of a revision and read by the planners and the nodes. The same structs are the JSON of
// the public API and the CBOR of the log: there is no second set of types.
//
// Invariants: a Stack that passed Validate has unique names, every reference between its parts resolves, and every field
// that has a default carries it (Stack.SetDefaults). Validation errors name the field by its path.
//
// Concurrency: nothing here starts a goroutine or holds state; values may be shared once they are no longer written.
package spec
