// Command baton-fence ends leased tasks whose lease is over. It is part of the runtime that baton carries (package bundle), not a command
// for users.
package main

import (
	"os"

	"baton/internal/node/fence"
)

func main() { os.Exit(fence.Main(os.Args[1:])) }
