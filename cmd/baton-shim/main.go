// Command baton-shim is what containerd runs to start a task's shim and to clean up after it. It is part of the runtime that baton carries
// (package bundle), not a command for users.
package main

import (
	"os"

	"baton/internal/node/shim"
)

func main() { os.Exit(shim.Main(os.Args[1:])) }
