// Command svc is every service of the microservices example: it does a little work, calls its upstreams at the same time and
// answers with the whole tree of calls below it, with the time that each took.
//
// The environment configures it: NAME, PORT (default 8080), UPSTREAMS (name=URL or URL, separated by commas or spaces; a
// redis:// URL is asked with a counter, everything else is another svc) and WORK (a duration, default none).
//
// Health: /healthz says that the process serves; it never follows an upstream, or one dead leaf would get the whole tree killed.
//
// Concurrency: one goroutine per upstream of a request, all waited for before the answer.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"baton/examples/internal/serve"
)

func main() {
	health := flag.String("health", "", "ask this `URL` once, exit with 0 when it answers well, and do nothing else")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	if *health != "" {
		err = serve.Probe(ctx, *health)
	} else {
		err = run(ctx, slog.New(slog.NewJSONHandler(os.Stdout, nil)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "svc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	s, err := LoadSettings(os.Getenv)
	if err != nil {
		return err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: 4 * time.Second}
	defer transport.CloseIdleConnections()
	svc, err := NewService(s, &http.Client{Transport: transport}, log)
	if err != nil {
		return err
	}
	defer svc.Close()
	return serve.Run(ctx, serve.Config{Addr: ":" + s.Port, Handler: svc.Handler(), Log: log.With("name", s.Name)})
}
