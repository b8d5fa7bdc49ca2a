package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/edge"
	"baton/internal/wire/agentapi"
)

// The processes of the part "edge" are this program, started with one of these words, where to listen and, but for the backend, the backend.
const (
	roleBackend = "edge-backend"
	roleEdge    = "edge-edge"
	rolePlain   = "edge-plain"
)

const largeBody = 100 << 10

// playRole is the whole of such a process. It reports whether it was one.
func playRole(args []string) (bool, error) {
	if len(args) != 3 {
		return false, nil
	}
	var handler http.Handler
	switch args[0] {
	case roleBackend:
		large := bytes.Repeat([]byte("x"), largeBody)
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body := large[:100]
			if r.URL.Path == "/large" {
				body = large
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body)
		})
	case rolePlain:
		p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: args[2]})
		p.Transport = &http.Transport{MaxIdleConnsPerHost: edgeClients, DisableCompression: true}
		handler = p
	case roleEdge:
		return true, playEdge(args[1], args[2])
	default:
		return false, nil
	}
	l, err := net.Listen("tcp", args[1])
	if err != nil {
		return true, err
	}
	return true, (&http.Server{Handler: handler}).Serve(l) // it ends with the bench, which kills it
}

func playEdge(at, backend string) error {
	task, err := netip.ParseAddrPort(backend)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	e := edge.New(edge.Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), ConnectionsMax: 1 << 14})
	e.Apply(agentapi.NetworkState{Services: []agentapi.Service{{
		ID: cluster.ID{15: 1}, Stack: "bench", Name: "web", Ingress: []spec.Ingress{{Path: "/", Port: task.Port()}},
		Endpoints: []agentapi.Endpoint{{Task: cluster.ID{15: 2}, Address: task.Addr()}},
	}}})
	return e.Serve(context.Background(), l)
}
