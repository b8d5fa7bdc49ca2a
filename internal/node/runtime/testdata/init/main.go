// Command init is a static stand-in for the baton binary inside containers.
package main

import (
	"os"

	"baton/internal/node/runtime"
)

func main() { os.Exit(runtime.InitMain(os.Args[2:])) }
