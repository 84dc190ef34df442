#!/usr/bin/env bash
# Measures the bars of docs/performance.md with a release build on this machine. Each benchmark
# alternates with the limit or peer that it is held against, so that a busy machine spoils both alike.
# Usage: scripts/bench.sh [BAR...]   without a bar: all of them
# JSON of each run goes to OUT (default target/bench), a line per run to stdout. A run whose limit
# varied too much is void and is repeated, TRIES times at most.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/tools.sh

seconds=${SECONDS_EACH:-10} tries=${TRIES:-4}
out=${OUT:-${CARGO_TARGET_DIR:-target}/bench}
bars=("$@"); [ $# -gt 0 ] || bars=(1 2 3 4 5 6 7 12 13 15)
if [ -n "${ROTA_BIN:-}" ]; then
  rota=$ROTA_BIN
else
  need_cargo
  choose_features
  install_missing etcd etcd-server || note "without etcd some limits are missing from the report"
  cargo build --locked --release -p rota "${FEATURES[@]}"
  rota=$(cargo metadata --no-deps --format-version 1 | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')/release/rota
fi
mkdir -p "$out"
rm -f "$out"/failed

# field FILE NAME: the first value of that name, or of those below "limit" with limit.NAME.
field() {
  awk -v want="$2" '
    /^  "limit"/ { inside = 1 }
    { name = $1; gsub(/[":]/, "", name); value = $2; sub(/,$/, "", value)
      if (inside && "limit." name == want || !(want ~ /^limit/) && name == want) { print value; exit } }' "$1"
}

# measure NAME ARGUMENTS...: runs `rota bench ARGUMENTS` until its limit is valid.
measure() {
  local name=$1 file try; shift
  file=$out/$name.json
  for ((try = 1; try <= tries; try++)); do
    if ! "$rota" bench "$@" -o json >"$file" 2>"$out/$name.log"; then
      tail -3 "$out/$name.log" >&2; echo "$name" >>"$out/failed"; return 0
    fi
    [ "$(field "$file" limit.valid)" = false ] || break
  done
  printf '%-14s %12s/s  limit %12s  spread %6s  valid %-5s  ratio %7s  errors %s\n' "$name" \
    "$(field "$file" ops_per_s; field "$file" events_per_s; field "$file" tasks_per_s)" \
    "$(field "$file" limit.median)" "$(field "$file" limit.spread)" "$(field "$file" limit.valid)" \
    "$(awk '/^  "ratio"/ { sub(/,$/, "", $2); print $2 }' "$file")" "$(field "$file" errors; field "$file" lost; field "$file" failed)"
}

api() { measure "$1" api --seconds "$seconds" "${@:2}"; }

# The same objects in memory: pages of them (bar 6) and what they cost (bar 8).
pages() {
  local name=pages-$1 file=$out/pages-$1.json
  api "$name" --op page --concurrency 1 --object-bytes 1331 --objects "$1"
  sed -n '/^  "memory"/,/}/p' "$file" | tr -d ' \n' | sed 's/,$//'; echo
}

noop() {
  printf '.globl _start\n_start: mov $60,%%eax\nxor %%edi,%%edi\nsyscall\n' >"$out/noop.s"
  cc -nostdlib -static -o "$out/noop" "$out/noop.s"
}

# Start of the process to the first 200, and resident memory after ten idle seconds; best of three.
start() {
  local dir port=$((20000 + $$ % 10000)) from ready pid rss
  for _ in 1 2 3; do
    dir=$(mktemp -d); from=$(date +%s%N)
    "$rota" up --data-dir "$dir/d" --listen "127.0.0.1:$port" --nodes 0 >/dev/null 2>&1 & pid=$!
    until curl -skf "https://127.0.0.1:$port/readyz" >/dev/null; do kill -0 "$pid"; done
    ready=$((($(date +%s%N) - from) / 1000000))
    sleep 10; rss=$(awk '/VmRSS/ { print $2 }' "/proc/$pid/status")
    kill "$pid"; wait "$pid" || true; rm -rf "$dir"
    printf 'start %20s ms  %s KiB\n' "$ready" "$rss"
  done
}

for bar in "${bars[@]}"; do
  case $bar in
    1) for c in 16 64 256; do api "create-etcd-$c" --op create --etcd --concurrency "$c"; done ;;
    2) api create --op create --concurrency 64 ;;
    3) api bulk-etcd --op bulk --concurrency 16 --etcd; api bulk --op bulk --concurrency 16 ;;
    4) api get --op get --concurrency 32 ;;
    5) api list --op list --concurrency 4 ;;
    6 | 8) pages 100000; pages 1000000 ;;
    7) measure watch watch --watchers 100 --writers 16 --events 30000 ;;
    12) noop; measure tasks tasks --count 10000 -- "$out/noop" ;;
    13) scripts/peers.sh "$rota" | tee "$out/peers.json" ;;
    15) start ;;
    *) note "there is no bar $bar here"; exit 2 ;;
  esac
done
[ ! -e "$out/failed" ] || { note "failed: $(tr '\n' ' ' <"$out/failed")"; exit 1; }
