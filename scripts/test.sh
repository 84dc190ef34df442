#!/usr/bin/env bash
# Everything that must pass before a change is merged. Installs what is missing and says so;
# asks nothing; running it again installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/tools.sh

need_cargo
install_missing cc gcc libc6-dev
install_protoc
install_missing etcd etcd-server
install_missing kubectl kubernetes-client
old_kubectl "${CARGO_TARGET_DIR:-$PWD/target}/tools" || note "kubectl 1.20 is not to be had here: its test says that it is skipped"
install_missing strace strace
# Newer Rust installations leave these two out of the minimal profile.
for component in rustfmt clippy; do
  if ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
    note "installing $component"
    rustup component add "$component"
  fi
done

step() { note "== $*"; "$@"; }

step cargo fmt --all --check
step cargo clippy --locked --workspace --all-targets -- -D warnings
step cargo run --locked -q -p xtask -- codegen --check
step cargo run --locked -q -p xtask -- tidy
# The tests that drive the built binary need it to be there and to be current.
step cargo build --locked -p rota
step cargo test --locked --workspace --no-fail-fast
step env CI=true scripts/quickstart.sh
note "all passed"
