package server

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// shelves are the images of one node: an archive is "REF DIGEST".
type shelves struct {
	agentapi.NodeServices
	images []agentapi.Image
}

func (s *shelves) Images(context.Context) ([]agentapi.Image, error) { return s.images, nil }

func (s *shelves) LoadImage(_ context.Context, archive io.Reader) ([]string, error) {
	data, err := io.ReadAll(archive)
	ref, digest, _ := strings.Cut(string(data), " ")
	_ = s.RemoveImage(context.Background(), ref) // it cannot fail
	s.images = append(s.images, agentapi.Image{Ref: ref, Digest: digest})
	return []string{ref}, err
}

func (s *shelves) RemoveImage(_ context.Context, ref string) error {
	s.images = slices.DeleteFunc(s.images, func(i agentapi.Image) bool { return i.Ref == ref })
	return nil
}

// A load without a node goes to the manager's own; its content is what the cluster goes by until a newer load or the removal.
func TestLoadedImages(t *testing.T) {
	h := newHarness(t)
	nodes := map[cluster.ID]*shelves{{1}: {}, {2}: {}, {3}: {}}
	h.srv.cfg.Self = cluster.ID{2}
	h.srv.cfg.Nodes = func(id cluster.ID) (agentapi.NodeServices, bool) { n, ok := nodes[id]; return n, ok }
	var txn store.Txn
	for id, name := range map[cluster.ID]string{{1}: "n1", {2}: "n2", {3}: "n3"} {
		txn.Put(&cluster.Node{Meta: cluster.Meta{ID: id}, Name: name})
	}
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	loaded := func() string {
		i, ok := store.Get[*cluster.LoadedImage](h.st.Snapshot(), cluster.ImageID("r.test/a:1"))
		if !ok {
			return ""
		}
		return i.Digest + " on " + i.Node.String()
	}
	on := func(n byte) string { return cluster.ID{n}.String() }
	for _, step := range []struct{ name, method, path, body, in, want string }{
		{"on the manager's own node", "POST", "/v1/images/load", "r.test/a:1 sha256:one", `"node":"n2"`, "sha256:one on " + on(2)},
		{"a newer one wins", "POST", "/v1/images/load?node=n3", "r.test/a:1 sha256:two", `"node":"n3"`, "sha256:two on " + on(3)},
		{"another reference changes nothing", "POST", "/v1/images/load?node=n1", "r.test/b:1 sha256:b", `"node":"n1"`, "sha256:two on " + on(3)},
		{"removed from one node", "DELETE", "/v1/images?ref=r.test/a:1&node=n3", "", "", "sha256:two on " + on(3)},
		{"removed everywhere", "DELETE", "/v1/images?ref=r.test/a:1", "", "", ""},
		{"unknown now", "DELETE", "/v1/images?ref=r.test/a:1", "", `"code":"not_found"`, ""},
		{"loaded again", "POST", "/v1/images/load", "r.test/a:1 sha256:three", `"node":"n2"`, "sha256:three on " + on(2)},
	} {
		code, body := h.do(step.method, step.path, step.body)
		if !strings.Contains(body, step.in) || loaded() != step.want {
			t.Fatalf("%s: %d %s, and the cluster goes by %q, want %q", step.name, code, body, loaded(), step.want)
		}
	}
	// A load whose node is gone for good can be forgotten, too.
	delete(nodes, cluster.ID{2})
	if code, body := h.do("DELETE", "/v1/images?ref=r.test/a:1", nil); code >= 300 || loaded() != "" {
		t.Errorf("%d %s, left %q", code, body, loaded())
	}
}
