// Package runtime is being born.
package runtime

import (
	_ "github.com/containerd/cgroups/v3/cgroup1/stats"
	_ "github.com/containerd/cgroups/v3/cgroup2/stats"
	_ "github.com/containerd/containerd/api/runtime/task/v3"
	_ "github.com/containerd/containerd/v2/client"
	_ "github.com/containerd/containerd/v2/contrib/seccomp"
	_ "github.com/containerd/containerd/v2/core/remotes/docker"
	_ "github.com/containerd/containerd/v2/core/runtime/v2/logging"
	_ "github.com/containerd/containerd/v2/pkg/oci"
	_ "github.com/containerd/fifo"
	_ "github.com/containerd/ttrpc"
	_ "github.com/distribution/reference"
	_ "github.com/google/go-containerregistry/pkg/registry"
	_ "github.com/moby/sys/user"
	_ "github.com/opencontainers/runtime-spec/specs-go"
)
