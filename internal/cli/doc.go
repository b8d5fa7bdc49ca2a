// Package cli is Baton's command line: the verbs, what they print and how they exit.
//
// It owns nothing but the conversation with the user: everything it knows comes through package client, and the server itself
// is started by a hook that main passes in.
//
// Invariants: answers go to standard output, everything else to standard error. Whatever is not a terminal gets no colours,
// no cursor movements and no questions. An error is printed once, as what is wrong, where and what to do, and the exit code
// is one of those in package api.
//
// Concurrency: one command runs at a time; goroutines (live view, logs) end before Main returns.
package cli
