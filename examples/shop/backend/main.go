package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
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
		fmt.Fprintln(os.Stderr, "backend:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	s, err := LoadSettings(os.Getenv, os.ReadFile)
	if err != nil {
		return err
	}
	log = log.With("instance", s.Instance)
	db, err := NewPostgres(ctx, s)
	if err != nil {
		return err
	}
	defer db.Close()
	counter, err := NewRedisCounter(s.RedisURL)
	if err != nil {
		return err
	}
	defer func() { _ = counter.Close() }()

	api := &API{Store: db, Counter: counter, App: s.App, Instance: s.Instance, Log: log}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		if untilDone(ctx, log, db.Prepare) {
			log.Info("the schema is prepared")
			api.SetPrepared()
		}
	})
	return serve.Run(ctx, serve.Config{Addr: s.Addr, Handler: api.Handler(), Log: log})
}

const (
	retryFirst = 200 * time.Millisecond
	retryMax   = 5 * time.Second
)

// untilDone repeats f, waiting longer each time, until it succeeds or ctx ends; it reports which. There is no limit of
// attempts: a database that takes an hour to recover is waited for, and the health check decides over the replica.
func untilDone(ctx context.Context, log *slog.Logger, f func(context.Context) error) bool {
	for wait := retryFirst; ; wait = min(2*wait, retryMax) {
		err := f(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		log.Warn("not prepared yet", "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}
