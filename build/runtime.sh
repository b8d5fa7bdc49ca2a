#!/usr/bin/env bash
# Builds containerd, its runc shim and runc, each from the module beside this
# script that pins it, and prints the directory that holds the three binaries.
#
# Results are cached by sources and flags under
# ${BATON_CACHE:-$HOME/.cache/baton}/runtime/<key>/. A build happens in a
# temporary directory and is renamed into place, so a build that is interrupted
# leaves nothing that could be mistaken for a result; a lock keeps two builds of
# one key apart.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BATON_CACHE:-$HOME/.cache/baton}/runtime

say() { echo "runtime: $*" >&2; }
die() { say "$*"; exit 1; }

# pinned MODULE PATH: the version of PATH that the module in build/MODULE pins.
pinned() {
  awk -v path="$2" '$1 == path { print $2 } $1 == "require" && $2 == path { print $3 }' "$here/$1/go.mod"
}

containerd_version=$(pinned containerd github.com/containerd/containerd/v2)
shim_version=$(pinned shim github.com/containerd/containerd/v2)
runc_version=$(pinned runc github.com/opencontainers/runc)
[[ -n $containerd_version && -n $shim_version && -n $runc_version ]] || die "a go.mod under $here pins no version"
[[ $containerd_version == "$shim_version" ]] ||
  die "containerd is $containerd_version but the shim is $shim_version: pin the same version in build/containerd and build/shim"

# Baton uses neither the CRI plugin nor the kernel-specific snapshotters; runc
# needs cgo for its nsenter part and libseccomp, linked statically so that the
# binary runs on any distribution.
daemon_tags='no_cri no_btrfs no_zfs no_devmapper no_systemd no_rdt no_tracing urfave_cli_no_docs osusergo netgo static_build'
shim_tags="$daemon_tags no_grpc"
runc_tags='urfave_cli_no_docs seccomp netgo osusergo'
daemon_ldflags="-s -w -X github.com/containerd/containerd/v2/version.Version=$containerd_version"
runc_ldflags='-s -w -extldflags -static'

key=$(
  {
    echo "$daemon_tags/$shim_tags/$runc_tags/$daemon_ldflags/$runc_ldflags"
    cat "$here"/{containerd,shim,runc}/go.{mod,sum}
    go env GOOS GOARCH GOVERSION
  } | sha256sum | cut -c1-16
)
out=$cache/$containerd_version-$runc_version-$key

if [[ -d $out ]]; then
  echo "$out"
  exit 0
fi

if ! { command -v gcc && command -v pkg-config && pkg-config --exists libseccomp; } >/dev/null; then
  die "gcc, pkg-config and the libseccomp headers are needed: apt-get install gcc pkg-config libseccomp-dev"
fi

mkdir -p "$cache"
exec 9>"$cache/.lock"
if ! flock -n 9; then
  say "waiting for another build of the runtime"
  flock 9
fi
if [[ -d $out ]]; then
  echo "$out"
  exit 0
fi

# Under the lock no other build is alive, so any temporary directory is left
# from a killed one.
rm -rf "$cache"/tmp.*
tmp=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

# compile MODULE CGO TAGS LDFLAGS PACKAGE NAME
compile() {
  local started=$SECONDS
  say "building $6 (several minutes when nothing is cached)"
  (cd "$here/$1" && GOWORK=off GOFLAGS='' CGO_ENABLED=$2 go build -trimpath -buildvcs=false -mod=readonly \
    -tags "$3" -ldflags "$4" -o "$tmp/$6" "$5") >&2 9>&-
  say "built $6 in $((SECONDS - started)) s"
}

compile runc 1 "$runc_tags" "$runc_ldflags" github.com/opencontainers/runc runc
compile shim 0 "$shim_tags" "$daemon_ldflags" github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 containerd-shim-runc-v2
compile containerd 0 "$daemon_tags" "$daemon_ldflags" github.com/containerd/containerd/v2/cmd/containerd containerd

for b in containerd containerd-shim-runc-v2 runc; do
  "$tmp/$b" --version >/dev/null 2>&1 || "$tmp/$b" -v >/dev/null || die "the $b just built does not run"
done
printf 'containerd %s\nrunc %s\n' "$containerd_version" "$runc_version" >"$tmp/VERSIONS"
chmod 0755 "$tmp"
sync -f "$tmp"
mv -T "$tmp" "$out"
trap - EXIT
say "the runtime is in $out"
echo "$out"
