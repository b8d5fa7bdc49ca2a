// Command baton is the whole of Baton: server, node and command line in one binary.
package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"baton/internal/cli"
	"baton/internal/model/cluster"
	"baton/internal/node/runtime"
	"baton/internal/process"
)

func main() {
	// A hidden subcommand runs inside containers and must not load anything else.
	if len(os.Args) > 1 && os.Args[1] == "__init" {
		os.Exit(runtime.InitMain(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, cli.Hooks{
		Version: process.Version,
		Server:  serve,
		Reset:   reset,
		Restore: restore,
		Recover: recoverAlone,
	})
	stop()
	os.Exit(code)
}

func serve(ctx context.Context, o cli.ServerOptions) error {
	return process.Serve(ctx, process.Config{
		DataDir: o.DataDir, Name: o.Name, Join: o.Join, Listen: o.Listen, Advertise: o.Advertise, Mesh: cluster.Mesh(o.Mesh), Witness: o.Witness,
		Logger: logger(os.Stderr, o.LogLevel), Ready: o.Ready,
	})
}

func reset(ctx context.Context, o cli.ResetOptions) error {
	return process.Reset(ctx, o.DataDir, !o.Keep, logger(os.Stderr, slog.LevelWarn))
}

func restore(_ context.Context, o cli.RestoreOptions) (cli.Recovered, error) {
	r, err := process.Restore(o.DataDir, o.Name, o.Backup)
	return told(r), err
}

func recoverAlone(_ context.Context, o cli.RecoverOptions) (cli.Recovered, error) {
	m, err := process.OpenStopped(o.DataDir, o.UnlockKey)
	if err != nil {
		return cli.Recovered{}, err
	}
	defer m.Close()
	out := told(m.Tell())
	if err := o.Confirm(out); err != nil {
		return out, err
	}
	out.Kept, err = m.Recover()
	return out, err
}

func told(r process.Restored) cli.Recovered {
	return cli.Recovered{Cluster: r.Cluster, Node: r.Node, Created: r.Created, Version: r.Version, Nodes: r.Nodes}
}

func logger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
