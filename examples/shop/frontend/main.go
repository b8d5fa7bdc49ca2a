// Command frontend serves the shop's pages, rendered on the server from what the backend's API says.
//
// It keeps no state: the cart lives in a cookie, everything else behind API_URL. /healthz says only that this process serves:
// a backend that is down for a while must not get frontends killed.
//
// Concurrency: each request is served on its own; Pages and Client are read-only after main wired them.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
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
		fmt.Fprintln(os.Stderr, "frontend:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	base, err := url.Parse(cmp.Or(os.Getenv("API_URL"), "http://localhost:8081"))
	if err != nil || base.Host == "" {
		return fmt.Errorf("API_URL %q: want the backend's address, such as http://backend:8080", os.Getenv("API_URL"))
	}
	instance, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("own name: %w", err)
	}
	instance = cmp.Or(os.Getenv("INSTANCE"), instance)
	log = log.With("instance", instance)
	transport := &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: 4 * time.Second}
	defer transport.CloseIdleConnections()
	api := &Client{Base: base, HTTP: &http.Client{Transport: transport}}
	pages, err := NewPages(api, instance, log)
	if err != nil {
		return err
	}
	addr := cmp.Or(os.Getenv("ADDR"), ":3000")
	return serve.Run(ctx, serve.Config{Addr: addr, Handler: pages.Handler(), Log: log})
}
