// Package compose turns Compose files into a spec.Stack.
//
// It owns the Compose dialect: which keys are honoured, which are named in a warning, which are refused (keys.go), our own
// x- keys (extensions.go), and the wording and place of every message about a file. compose-go reads, merges and
// interpolates; this package finds the lines that compose-go forgets, checks what it lets pass, and converts the result.
//
// Invariants: no key of a file is dropped in silence; a Stack that Load returns carries its defaults and is valid; an
// error is always an *Error, whose diagnostics name file and line where the fault has one. Nothing is read but regular files
// of limited size, and nothing is fetched from the network.
//
// Concurrency: Load may be called from several goroutines; it holds no state between calls and starts no goroutine.
package compose
