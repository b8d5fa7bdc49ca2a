package files

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

func TestFilesLiveOnTmpfsWithOwnerAndMode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a tmpfs: run it as root")
	}
	d := New(filepath.Join(t.TempDir(), "files"))
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	id := cluster.NewID(nil)
	want := []agentapi.File{
		{Name: "password", UID: 70, GID: 71, Mode: 0o400, Content: []byte("hunter2"), Secret: true},
		{Name: "config", Mode: 0o444, Content: []byte("a = 1\n")},
	}
	for range 2 { // the second time as after a crash in between
		dir, err := d.Write(t.Context(), id, want)
		if err != nil {
			t.Fatal(err)
		}
		for i, w := range want {
			path := filepath.Join(dir, string(rune('0'+i)))
			got, err := os.ReadFile(path)
			if err != nil || string(got) != string(w.Content) {
				t.Errorf("%s: got %q, %v", w.Name, got, err)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			st := info.Sys().(*syscall.Stat_t)
			if st.Uid != w.UID || st.Gid != w.GID || uint32(info.Mode().Perm()) != w.Mode {
				t.Errorf("%s: got %d:%d %04o, want %d:%d %04o", w.Name, st.Uid, st.Gid, info.Mode().Perm(), w.UID, w.GID, w.Mode)
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(mounts), " "+d.path+" tmpfs "); n != 1 {
		t.Errorf("got %d tmpfs mounts on %s, want 1", n, d.path)
	}
	// What a dead agent left of a task that is forgotten goes with the next sweep.
	forgotten := cluster.NewID(nil)
	if _, err := d.Write(t.Context(), forgotten, want); err != nil {
		t.Fatal(err)
	}
	if err := d.Sweep(t.Context(), []cluster.ID{id}); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(d.path); err != nil || len(entries) != 1 || entries[0].Name() != id.String() {
		t.Errorf("after a sweep: %v, %v; want the kept task's only", entries, err)
	}
	if err := d.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(d.path); err != nil || len(entries) != 0 {
		t.Errorf("after Remove: %v, %v", entries, err)
	}
}
