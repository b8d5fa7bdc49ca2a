// Package client is the Go client of Baton's HTTP API. The command line uses nothing else.
//
//	c, err := client.New(client.Config{Address: "unix:///run/baton/baton.sock"})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	for line, err := range c.Logs(ctx, client.LogOptions{Stack: "shop", Follow: true}) {
//		…
//	}
//
// It owns connections and nothing else. Errors are *api.Error: from the server as it said them, or with code unreachable when
// nobody answered.
//
// Invariants: only reads are tried again, and only when the connection failed before an answer came; what changes something is
// sent once. No answer is older than an earlier one, whichever of a cluster's managers gives it: the client tells each of them
// the highest version of the store that it has seen.
//
// Concurrency: a Client may be used by any number of goroutines. It starts none that outlive a call.
package client
