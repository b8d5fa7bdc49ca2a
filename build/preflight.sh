#!/usr/bin/env bash
# Checks that this machine can build or run Baton, and installs the Debian
# packages that the build lacks:
#
#   preflight.sh build   what compiling and making images needs
#   preflight.sh run     what running containers needs
#
# It installs nothing that is there, and says what is missing when it may not.
set -euo pipefail

say() { echo "preflight: $*" >&2; }
die() { say "$*"; exit 1; }

# need PACKAGE TEST...: notes the package when the test fails.
missing=()
need() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}

check_go() {
  command -v go >/dev/null ||
    die "Go is not installed: see https://go.dev/doc/install, or apt-get install golang-go where that is Go 1.21 or newer"
  # A Go that is older than go.mod asks for fetches the right one by itself,
  # unless GOTOOLCHAIN forbids it; then this prints what it lacks.
  local here out
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  out=$(cd "$here" && go version 2>&1) || die "this Go cannot build Baton: $out"
}

install_missing() {
  need gcc command -v gcc
  need libc6-dev test -e /usr/include/stdlib.h
  need pkg-config command -v pkg-config
  need libseccomp-dev pkg-config --exists libseccomp
  need mmdebstrap command -v mmdebstrap
  # Ubuntu does not know Debian's keys by itself.
  need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
  need git command -v git
  need make command -v make
  need curl command -v curl
  need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
  [[ ${#missing[@]} -gt 0 ]] || return 0
  command -v apt-get >/dev/null ||
    die "missing: ${missing[*]} (Debian's names). This is no Debian or Ubuntu: install them with your package manager"
  [[ $(id -u) == 0 ]] || die "missing: ${missing[*]}. Run as root, or: sudo apt-get install ${missing[*]}"
  say "installing ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1 </dev/null; then
    tail -20 "$log" >&2
    rm -f "$log"
    die "apt-get could not install ${missing[*]}"
  fi
  rm -f "$log"
}

# Baton runs on cgroup v2, and on v1 with its controllers mounted.
check_cgroups() {
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    local c have
    have=" $(cat /sys/fs/cgroup/cgroup.controllers) "
    for c in cpu memory pids; do
      [[ $have == *" $c "* ]] || die "the cgroup controller $c is not available: boot with it enabled"
    done
    [[ -w /sys/fs/cgroup/cgroup.subtree_control ]] || die "/sys/fs/cgroup is read-only: in a container, start it privileged"
    return
  fi
  local c
  for c in cpu memory pids freezer devices; do
    awk -v c="$c" '$3 == "cgroup" && (","$4",") ~ ","c"," { found = 1 } END { exit !found }' /proc/mounts ||
      die "there are no cgroups: neither v2 nor the v1 controller $c is mounted under /sys/fs/cgroup"
  done
}

check_run() {
  [[ $(uname -s) == Linux ]] || die "containers need Linux; this is $(uname -s)"
  [[ $(id -u) == 0 ]] || die "containers need root: run this as root, or with sudo"
  check_cgroups
  grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || die "the kernel has no overlay file system"
  unshare --net --mount --pid --fork true 2>/dev/null ||
    die "namespaces cannot be made here: in a container, start it privileged"
}

case ${1:-} in
build)
  check_go
  install_missing
  ;;
run) check_run ;;
*) die "usage: preflight.sh build|run" ;;
esac
