// Command baton-edge serves a node's ingress rules. It is part of the runtime that baton carries (package bundle), not a command for
// users.
package main

import (
	"os"

	"baton/internal/node/edgeproc"
)

func main() { os.Exit(edgeproc.Main(os.Args[1:])) }
