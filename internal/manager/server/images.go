package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

func (s *Server) listImages(ctx context.Context, node string) ([]api.Image, error) {
	snap := s.cfg.Store.Snapshot()
	nodes, err := s.connected(snap, node)
	if err != nil {
		return nil, err
	}
	found := make([][]agentapi.Image, len(nodes))
	err = s.each(nodes, func(i int, n *cluster.Node, ns agentapi.NodeServices) error {
		var err error
		found[i], err = ns.Images(ctx)
		return onNode(n, err)
	})
	if err != nil {
		return nil, err
	}
	out := []api.Image{}
	for i, list := range found {
		for _, img := range list {
			out = append(out, api.Image{Node: nodes[i].Name, Ref: img.Ref, Digest: img.Digest, Size: img.Size, Created: img.Created})
		}
	}
	slices.SortFunc(out, func(a, b api.Image) int {
		return cmp.Or(cmp.Compare(a.Ref, b.Ref), cmp.Compare(a.Node, b.Node))
	})
	return out, nil
}

// onNode tells that a node could not do something. What nodes say is meant for users.
func onNode(n *cluster.Node, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return api.Errorf(api.CodeUnavailable, "node %s: %s", n.Name, err)
}

func (s *Server) removeImage(ctx context.Context, node, ref string) error {
	snap := s.cfg.Store.Snapshot()
	nodes, err := s.connected(snap, node)
	if err != nil {
		return err
	}
	have, err := s.listImages(ctx, node)
	if err != nil {
		return err
	}
	var refs []string
	on := make(map[string]bool)
	for _, img := range have {
		refs = append(refs, img.Ref)
		if img.Ref == ref {
			on[img.Node] = true
		}
	}
	_, loaded := store.Get[*cluster.LoadedImage](snap, cluster.ImageID(ref))
	if loaded = loaded && node == ""; len(on) == 0 && !loaded {
		return (resolver{snap: snap}).unknown("image", ref, refs)
	}
	nodes = slices.DeleteFunc(nodes, func(n *cluster.Node) bool { return !on[n.Name] })
	err = s.each(nodes, func(_ int, n *cluster.Node, ns agentapi.NodeServices) error {
		return onNode(n, ns.RemoveImage(ctx, ref))
	})
	if err != nil || !loaded {
		return err
	}
	return s.forgetImage(ctx, ref)
}

// forgetImage ends that nodes look for a load of the reference.
func (s *Server) forgetImage(ctx context.Context, ref string) error {
	return s.retry(ctx, func(snap store.Snapshot, _ time.Time) (store.Txn, error) {
		var txn store.Txn
		if i, ok := store.Get[*cluster.LoadedImage](snap, cluster.ImageID(ref)); ok {
			txn.Delete(i)
		}
		return txn, nil
	}, func(store.Version) {})
}

// recordImages writes down that references were loaded on a node, so that the others fetch what they have now from there.
func (s *Server) recordImages(ctx context.Context, n *cluster.Node, ns agentapi.NodeServices, refs []string) error {
	have, err := ns.Images(ctx)
	if err != nil {
		return onNode(n, err)
	}
	return s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		for _, img := range have {
			if !slices.Contains(refs, img.Ref) {
				continue
			}
			id := cluster.ImageID(img.Ref)
			next := &cluster.LoadedImage{Meta: cluster.Meta{ID: id, Created: now}}
			if old, ok := store.Get[*cluster.LoadedImage](snap, id); ok {
				next = cluster.Copy(old)
			}
			next.Ref, next.Digest, next.Node, next.Loaded = img.Ref, img.Digest, n.ID, now
			txn.Put(next)
			s.event(&txn, now, "image.loaded", fmt.Sprintf("image %s was loaded on %s", img.Ref, n.Name), func(e *cluster.Event) { e.Node = n.ID })
		}
		return txn, nil
	}, func(store.Version) {})
}

// loadsOn is the node that an archive goes to: the one that was named, else that of this manager, else any.
func (s *Server) loadsOn(node string) (*cluster.Node, error) {
	nodes, err := s.connected(s.cfg.Store.Snapshot(), node)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, api.Errorf(api.CodeUnavailable, "no node is connected").WithMend("see `baton node ls`")
	}
	if i := slices.IndexFunc(nodes, func(n *cluster.Node) bool { return n.ID == s.cfg.Self }); i > 0 {
		return nodes[i], nil
	}
	return nodes[0], nil
}

// ImageBytesMax is the size of the largest archive that can be loaded.
const ImageBytesMax = 64 << 30

func (s *Server) loadImageRoute() {
	type loadIn struct {
		Node string `query:"node" doc:"name of the node; by default that of the manager"`
	}
	op := s.operation(operation{method: http.MethodPost, path: "/v1/images/load", id: "loadImage", summary: "Import an OCI or docker archive, which is the body", tag: "images"})
	op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{"application/octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}}
	op.Responses["200"].Content = map[string]*huma.MediaType{"application/json": {Schema: s.schemaOf(api.LoadResult{})}}
	huma.Register(s.api, op, func(ctx context.Context, in *loadIn) (*huma.StreamResponse, error) {
		node, err := s.loadsOn(in.Node)
		if err != nil {
			return nil, s.problem(err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			s.loadImage(ctx, w, http.MaxBytesReader(w, r.Body, ImageBytesMax), node)
		}}, nil
	})
}

func (s *Server) loadImage(ctx context.Context, w http.ResponseWriter, archive io.Reader, n *cluster.Node) {
	// The archive may take longer than any time limit of the HTTP server.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	ns, err := s.services(n.ID, n.Name)
	var refs []string
	if err == nil {
		refs, err = ns.LoadImage(ctx, archive)
		err = onNode(n, err)
	}
	if err == nil {
		err = s.recordImages(ctx, n, ns, refs)
	}
	if err != nil {
		writeError(w, s.problem(err))
		return
	}
	writeJSON(w, api.LoadResult{Node: n.Name, Refs: refs})
}
