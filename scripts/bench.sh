#!/usr/bin/env bash
# Measures a release build on this machine. Each benchmark alternates with the limit that it is
# held against, so that a busy machine spoils both alike; one JSON object per benchmark on stdout.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/tools.sh

need_cargo
choose_features
install_missing etcd etcd-server || note "without etcd some limits are missing from the report"
cargo build --locked --release -p rota "${FEATURES[@]}"
rota=$(cargo metadata --no-deps --format-version 1 | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')/release/rota
seconds=${SECONDS_EACH:-10}

"$rota" bench api --op create --concurrency 64 --seconds "$seconds" -o json
"$rota" bench api --op bulk --concurrency 16 --seconds "$seconds" -o json
"$rota" bench api --op get --concurrency 32 --seconds "$seconds" -o json
"$rota" bench watch --watchers 100 --writers 16 --events 20000 -o json
"$rota" bench tasks --count 10000 -o json -- /bin/true
