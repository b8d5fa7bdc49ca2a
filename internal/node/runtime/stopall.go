package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"baton/build/bundle"
	"baton/internal/node/fence"
	"baton/internal/node/shim"
)

// cleanMax bounds how long the mounts and cgroups of killed containers may take to go.
const cleanMax = 20 * time.Second

// RemoveAll kills every container, shim and containerd of the node with this data directory, whether baton runs or not, and removes
// everything of theirs outside dataDir, and in it all but logs. It may be repeated and needs nothing but the path. cgroup is
// Config.Cgroup; empty means its default.
func RemoveAll(ctx context.Context, dataDir, cgroup string) error {
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return err
	}
	cfg := Config{DataDir: dataDir, RunDir: RunDir(dataDir), Cgroup: cgroup}
	if cfg.Cgroup == "" {
		cfg.Cgroup = "/baton/" + filepath.Base(cfg.RunDir)
	}
	if err := stopAll(ctx, cfg); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(cfg.containerdDir()), os.RemoveAll(cfg.tasksDir()))
}

// stopAll ends every process of the runtime and removes mounts, cgroups and the run directory.
func stopAll(ctx context.Context, cfg Config) error {
	// containerd first: it would clean up after its shims, and so race with us.
	daemons, err := ourDaemons(cfg)
	if err != nil {
		return err
	}
	for _, p := range daemons {
		if err := p.end(ctx, 0); err != nil {
			return err
		}
	}
	killCgroup(cfg.Cgroup)
	for range 10 { // a shim that was just being started may appear while we look
		ps, err := ourHelpers(cfg)
		if err != nil {
			return err
		}
		for _, p := range ps {
			if err := p.end(ctx, 0); err != nil {
				return err
			}
		}
		if len(ps) == 0 {
			break
		}
	}
	killCgroup(cfg.Cgroup)
	var errs []error
	errs = append(errs, removeCgroup(cfg.Cgroup), unmountBelow(cfg.RunDir), unmountBelow(cfg.containerdDir()), unmountBelow(cfg.tasksDir()))
	if err := errors.Join(errs...); err != nil {
		return err // removing files through a mount that is still there could reach others'
	}
	if err := os.RemoveAll(cfg.RunDir); err != nil {
		return fmt.Errorf("remove the run directory: %w", err)
	}
	// The parents go with the last node of the machine; a parent that others still use refuses.
	for _, dir := range append(cgroupDirs(filepath.Dir(cfg.Cgroup)), filepath.Dir(cfg.RunDir)) {
		if filepath.Base(dir) == "baton" {
			_ = unix.Rmdir(dir)
		}
	}
	return nil
}

// ourHelpers finds the shims, loggers and runc processes of this runtime, and the node's fence and edge: each names one of our paths on its command line.
func ourHelpers(cfg Config) ([]*process, error) {
	return processes(func(args []string) bool {
		if len(args) == 0 {
			return false
		}
		switch base := filepath.Base(args[0]); {
		case strings.HasPrefix(base, "containerd-shim"), base == shim.Program:
			return slices.Contains(args, cfg.socket())
		case base == fence.Program, base == bundle.Edge:
			return len(args) > 1 && filepath.Dir(args[1]) == cfg.RunDir
		case base == "runc":
			return slices.Contains(args, cfg.runcRoot())
		case len(args) < 3 || args[1] != LoggerCommand:
			return false
		default: // the node's logger, or a task's own of an earlier version
			return args[2] == cfg.LogsDir() || strings.HasSuffix(filepath.Dir(args[2]), ":"+cfg.LogsDir())
		}
	})
}

// unmountBelow unmounts everything at and below dir, the deepest first.
func unmountBelow(dir string) error {
	deadline := time.Now().Add(cleanMax)
	for {
		err := mount.UnmountRecursive(dir, 0)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("unmount below %s: %w", dir, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
