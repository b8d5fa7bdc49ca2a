#!/usr/bin/env bash
# Runs the shop on a node of its own, or removes that node:
#
#   demo.sh up      needs bin/baton and build/out/images (make build images)
#   demo.sh check   asks the running shop
#   demo.sh down    ends everything it started and deletes its directory
#
# BATON_DEMO_DIR is the node's directory (/var/lib/baton-demo). Another node on
# this machine is not disturbed; but the shop publishes port 8080, and its
# ingress rules take port 80 if it is free.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

baton=$PWD/bin/baton
data=${BATON_DEMO_DIR:-/var/lib/baton-demo}
# Outside the data directory, which `baton reset` deletes.
state=${data%/}.run
export BATON_HOST=unix://$data/baton.sock
url=http://localhost:8080
ready_max=60 # seconds until the node or the shop must answer

say() { echo "demo: $*"; }
die() { echo "demo: $*" >&2; exit 1; }

# server_pid prints the pid of the demo's server if it lives. The pid may
# belong to another process by now, so its command line decides.
server_pid() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return 1
  [[ -n $pid ]] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "server --data-dir $data " || return 1
  echo "$pid"
}

start() {
  if server_pid >/dev/null; then
    say "the node is already running"
    return
  fi
  mkdir -p "$state"
  say "starting a node in $data (log: $state/server.log)"
  setsid "$baton" server --data-dir "$data" --name demo >>"$state/server.log" 2>&1 </dev/null &
  echo $! >"$state/pid"
  disown
  local i
  for ((i = 0; i < ready_max * 5; i++)); do
    if "$baton" node ls >/dev/null 2>&1; then
      return
    fi
    server_pid >/dev/null || { tail -20 "$state/server.log" >&2; die "the node ended at its start; its log is above"; }
    sleep 0.2
  done
  tail -20 "$state/server.log" >&2
  die "the node does not answer after $ready_max s; its log is above"
}

up() {
  [[ -x $baton ]] || die "bin/baton is missing: run make demo"
  start
  local name
  for name in postgres redis shop-backend shop-frontend; do
    say "loading the image $name"
    "$baton" image load "build/out/images/$name.tar" >/dev/null
  done
  # A second run must not change the password: the database keeps the first.
  if ! "$baton" secret ls -o json | grep >/dev/null '"db_password"'; then
    say "setting the secret db_password to a random value"
    head -c 24 /dev/urandom | base64 | tr -d '\n' | "$baton" secret set db_password - >/dev/null
  fi
  say "deploying examples/shop/compose.yaml"
  "$baton" up -f examples/shop/compose.yaml -y
  answer
  advise
}

# answer waits until the shop serves products, which come from PostgreSQL.
answer() {
  local i
  for ((i = 0; i < ready_max * 5; i++)); do
    if curl -fsS -m 5 "$url/api/products" >/dev/null 2>&1; then
      return
    fi
    sleep 0.2
  done
  "$baton" ls >&2 || true
  die "the shop does not answer at $url/api/products after $ready_max s: see $baton why frontend"
}

advise() {
  cat <<TEXT

The shop answers at $url

To talk to this node from your shell:

  export PATH=$PWD/bin:\$PATH BATON_HOST=$BATON_HOST

Then try:

  curl $url/api/products                 # rows from PostgreSQL
  curl -I -H 'Host: shop.example.com' http://127.0.0.1/   # the same shop by its ingress rules
  baton ls                                # services
  baton ps -a backend                     # its tasks, past ones too
  baton logs -f backend                   # logs of all replicas
  baton scale frontend=4
  baton why backend                       # why its tasks are where and as they are
  baton exec -it db -- psql -U postgres
  baton plan -f examples/shop/compose.yaml

Change examples/shop/config/app.json, then roll it out and back:

  baton up -f examples/shop/compose.yaml
  baton rollback

make demo-down removes every trace.
TEXT
}

down() {
  local pid i
  if pid=$(server_pid); then
    say "stopping the node"
    kill "$pid"
    for ((i = 0; i < 150; i++)); do
      server_pid >/dev/null || break
      sleep 0.2
    done
    if server_pid >/dev/null; then
      say "it does not end by itself: killing it"
      kill -KILL "$pid"
    fi
  fi
  if [[ -e $data ]]; then
    [[ $(id -u) == 0 ]] || die "removing containers needs root: run make demo-down as root"
    [[ -x $baton ]] || die "bin/baton is missing, and only it knows how to remove what it made: run make build first"
    say "removing containers, network and files"
    "$baton" reset --data-dir "$data" --yes
  fi
  rm -rf "$state"
  check_gone
  say "nothing of the demo is left"
}

# check_gone fails when a process or a mount of the demo is left.
check_gone() {
  local f left=""
  for f in /proc/[0-9]*/cmdline; do
    if tr '\0' ' ' 2>/dev/null <"$f" | grep -qF -- "$data/"; then
      left+=" process $(basename "${f%/cmdline}")"
    fi
  done
  if grep -qF -- " $data/" /proc/mounts; then
    left+=" mounts below $data"
  fi
  [[ ! -e $data ]] || left+=" $data"
  [[ -z $left ]] || die "still there:$left"
}

# check asks the running shop for what comes from PostgreSQL and from Redis.
check() {
  curl -fsS -m 5 "$url/api/products" | grep >/dev/null '"id":' || die "$url/api/products has no rows"
  curl -fsS -m 5 "$url/" | grep >/dev/null "visits, counted in Redis" || die "$url has no hit counter"
  say "the shop answers with rows from PostgreSQL and a counter in Redis"
}

case ${1:-} in
up | down | check) "$1" ;;
*) die "usage: demo.sh up|down|check" ;;
esac
