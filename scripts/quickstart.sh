#!/usr/bin/env bash
# Builds rota, starts a cluster of two nodes on this machine, counts words on it, shows the result.
# Stays until Ctrl-C; with CI=true it compares the result with sort | uniq -c and ends.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/tools.sh

need_cargo
install_missing cc gcc libc6-dev || true
choose_features
note "building (a first build takes some minutes)"
# A debug build: it is there much sooner, and fast enough to look around.
cargo build --locked -p rota "${FEATURES[@]}"
rota=$(cargo metadata --no-deps --format-version 1 | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')/debug/rota

work=$(mktemp -d "${TMPDIR:-/tmp}/rota-quickstart.XXXXXX")
up=
cleanup() {
  trap - EXIT INT TERM
  if [ -n "$up" ] && kill -0 "$up" 2>/dev/null; then
    kill -TERM "$up" 2>/dev/null || true
    wait "$up" || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  note "error: $*"
  note "--- the last lines of rota up:"; tail -30 "$work/up.log" >&2 || true
  for log in "$work"/data/nodes/*/agent.log; do
    [ -e "$log" ] && { note "--- $log"; tail -20 "$log" >&2; }
  done
  exit 1
}

# The example reads and writes one directory, named once in its ConfigMap: here a private one.
mkdir -p "$work/words/input"
cp manifests/examples/text/*.txt "$work/words/input/"
sed "s#/tmp/rota-wordcount#$work/words#g" manifests/examples/wordcount.yaml >"$work/wordcount.yaml"

note "starting: rota up --nodes 2"
"$rota" up --nodes 2 --data-dir "$work/data" >"$work/up.out" 2>"$work/up.log" &
up=$!
for _ in $(seq 600); do
  grep -q '^Rota serves' "$work/up.out" && break
  kill -0 "$up" 2>/dev/null || fail "rota up ended"
  sleep 0.1
done
grep '^Rota serves' "$work/up.out" || fail "rota up was not ready within a minute"
config=$work/data/admin.kubeconfig

note "running: rota apply --wait -f manifests/examples/wordcount.yaml"
"$rota" --kubeconfig "$config" apply -f "$work/wordcount.yaml" --wait --timeout 180s \
  || fail "the word count did not complete"
"$rota" --kubeconfig "$config" get jobs
echo "the ten commonest words:"
# The file is sorted by word; `head` would end sort early, which pipefail takes for a failure.
sort -rn "$work/words/result.txt" | sed -n '1,10p'
echo "tasks per node:"
grep -o 'node [^ ]*' "$work/words/journal.txt" | sort | uniq -c

expected=$(cat "$work"/words/input/*.txt | LC_ALL=C tr -cs A-Za-z '\n' | LC_ALL=C tr A-Z a-z \
  | grep . | LC_ALL=C sort | uniq -c)
[ "$expected" = "$(cat "$work/words/result.txt")" ] || fail "the result differs from sort | uniq -c"
shards=$(grep -c '^shard ' "$work/words/journal.txt")
[ "$shards" = 20 ] || fail "$shards of 20 tasks wrote their line"
echo "correct: the same as sort | uniq -c, from 20 tasks and a merge"

if [ "${CI:-}" = true ]; then
  exit 0
fi
cat <<TEXT

The cluster runs until Ctrl-C. In another terminal:
  export KUBECONFIG=$config
  kubectl get nodes,jobs,tasks        # or: $rota get jobs
  $rota run --wait -- echo hello
TEXT
wait "$up"
