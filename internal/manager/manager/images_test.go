package manager

import (
	"fmt"
	"slices"
	"testing"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func TestHolders(t *testing.T) {
	const ref = "baton.test/app:1"
	id := func(n byte) cluster.ID { return cluster.ID{n} }
	st := store.New()
	var txn store.Txn
	add := func(n byte, state cluster.NodeState, listen string, images ...string) {
		txn.Put(&cluster.Node{
			Meta: cluster.Meta{ID: id(n)}, Name: fmt.Sprint("n", n), State: state,
			Description: cluster.NodeDescription{Listen: listen, Images: images},
		})
	}
	add(1, cluster.NodeReady, "a:1", ref)
	add(2, cluster.NodeReady, "b:1") // loaded here, but not told yet
	add(3, cluster.NodeReady, "c:1", "baton.test/other:1", ref)
	add(4, cluster.NodeDown, "d:1", ref)
	add(5, cluster.NodeReady, "", ref)
	add(6, cluster.NodeReady, "f:1", "baton.test/other:1")
	for n := byte(7); n < 40; n++ {
		add(n, cluster.NodeReady, "x:1", "baton.test/common:1")
	}
	txn.Put(&cluster.LoadedImage{Meta: cluster.Meta{ID: cluster.ImageID(ref)}, Ref: ref, Digest: "sha256:new", Node: id(2)})
	for _, err := range st.Apply(1, []store.Txn{txn}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	m := &Manager{store: st}
	for _, c := range []struct {
		name   string
		asking cluster.ID
		ref    string
		digest string
		first  string
		want   []string
	}{
		{"the one that loaded first", id(6), ref, "sha256:new", "n2", []string{"n1", "n2", "n3"}},
		{"never who asks", id(1), ref, "sha256:new", "n2", []string{"n2", "n3"}},
		{"not loaded by hand", id(1), "baton.test/other:1", "", "", []string{"n3", "n6"}},
		{"nobody", id(1), "baton.test/none:1", "", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := m.holdersNow(c.asking, c.ref)
			var names []string
			for _, h := range got.Holders {
				names = append(names, h.Name)
			}
			if c.first != "" && (len(names) == 0 || names[0] != c.first) {
				t.Errorf("%v, want %s first", names, c.first)
			}
			slices.Sort(names)
			if got.Digest != c.digest || !slices.Equal(names, c.want) {
				t.Errorf("got %s at %v, want %s at %v", got.Digest, names, c.digest, c.want)
			}
		})
	}
	if got := m.holdersNow(id(1), "baton.test/common:1"); len(got.Holders) != holdersMax {
		t.Errorf("%d holders, want at most %d", len(got.Holders), holdersMax)
	}
	if !m.Member(id(4)) || m.Member(id(99)) {
		t.Error("members are those that are stored")
	}
}
