// Command baton-logger keeps the output of one task. It is part of the runtime that baton carries (package bundle), not a command for users.
package main

import (
	"os"

	"baton/internal/node/logger"
)

func main() { os.Exit(logger.Main(os.Args[1:])) }
