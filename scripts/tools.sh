# Sourced: installing what a script needs, and saying so.

note() { printf '%s\n' "$*" >&2; }

# Runs a command as root, if that is possible without being asked for a password.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
  else return 1
  fi
}

# install PACKAGE...: installs Debian packages, quietly unless it fails.
install() {
  command -v apt-get >/dev/null || { note "cannot install $*: there is no apt-get"; return 1; }
  note "installing $*"
  local log; log=$(mktemp)
  local get=(env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@")
  # The package lists of a fresh container are empty or old: the second try brings them up to date.
  if as_root "${get[@]}" >"$log" 2>&1 \
    || { as_root apt-get update >>"$log" 2>&1 && as_root "${get[@]}" >>"$log" 2>&1; }; then
    rm -f "$log"
  else
    tail -5 "$log" >&2; rm -f "$log"
    note "could not install $*: install it yourself, or run this as root or with sudo"
    return 1
  fi
}

# install_missing COMMAND PACKAGE...: installs the packages if the command is not there.
install_missing() {
  command -v "$1" >/dev/null || install "${@:2}"
}

# protoc, with the well-known types that Debian packs apart.
install_protoc() {
  install_missing protoc protobuf-compiler libprotobuf-dev || return 1
  [ "$(command -v protoc)" != /usr/bin/protoc ] \
    || [ -e /usr/include/google/protobuf/empty.proto ] || install libprotobuf-dev
}

# Puts Debian's kubectl 1.20, the oldest that has to work, at the end of the PATH as kubectl-1.20,
# beside whatever kubectl is installed. DIRECTORY keeps it for the next run.
old_kubectl() {
  local dir=$1
  command -v kubectl-1.20 >/dev/null && return 0
  # By its first line; kubectl of later versions prints another one.
  kubectl version --client 2>/dev/null | grep -q 'GitVersion:"v1\.20' && return 0
  if [ ! -x "$dir/kubectl-1.20" ]; then
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    note "fetching kubectl 1.20"
    local work; work=$(mktemp -d)
    # Fetched and unpacked, not installed: the package would clash with a newer kubectl.
    if (cd "$work" && chmod 755 . \
        && { apt-get download kubernetes-client || { as_root apt-get update && apt-get download kubernetes-client; } } \
        && dpkg -x kubernetes-client_*.deb x) >"$work/log" 2>&1 \
      && "$work/x/usr/bin/kubectl" version --client | grep -q 'GitVersion:"v1\.20'; then
      mkdir -p "$dir"; mv "$work/x/usr/bin/kubectl" "$dir/kubectl-1.20"; rm -rf "$work"
    else
      tail -3 "$work/log" >&2; rm -rf "$work"
      return 1
    fi
  fi
  export PATH="$PATH:$dir"
}

need_cargo() {
  command -v cargo >/dev/null && return 0
  # rustup's own place, which a shell that did not read the profile does not know.
  if [ -x "$HOME/.cargo/bin/cargo" ]; then export PATH="$HOME/.cargo/bin:$PATH"; return 0; fi
  note "error: cargo is missing"
  note "hint: install Rust 1.95 or newer from https://rustup.rs"
  return 1
}

# Sets FEATURES for cargo: without protoc the etcd backend cannot be built.
choose_features() {
  FEATURES=()
  if ! install_protoc; then
    note "building without the etcd backend, which needs protoc; the embedded store is there"
    FEATURES=(--no-default-features)
  fi
}
