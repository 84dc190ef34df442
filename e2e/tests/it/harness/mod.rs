//! What every test needs: the binary, clusters that always end, clients, and waiting for conditions.

pub mod cluster;
pub mod etcd;
pub mod http;
pub mod kubectls;
pub mod process;
pub mod wait;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub use cluster::{Cluster, Store};
pub use http::Http;
pub use process::{Output, run, run_ok};
pub use wait::{eventually, eventually_for};

/// Root of the workspace.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The `rota` binary under test; built once per run of the tests unless `ROTA_BIN` names it.
pub fn rota_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(path) = std::env::var_os("ROTA_BIN") {
            return PathBuf::from(path);
        }
        // <target>/<profile>/deps/it-<hash>
        let exe = std::env::current_exe().unwrap();
        let profile_dir = exe.parent().and_then(Path::parent).unwrap();
        let target = profile_dir.parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build
            .current_dir(root())
            .args(["build", "--quiet", "--locked", "-p", "rota"])
            .env("CARGO_TARGET_DIR", target);
        if profile_dir.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().unwrap();
        assert!(status.success(), "building rota failed");
        profile_dir.join("rota")
    })
}

/// A file of manifests/examples.
pub fn example(name: &str) -> String {
    let path = root().join("manifests/examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Whether a program is on the PATH.
pub fn on_path(program: &str) -> Option<PathBuf> {
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Says why a test is not run. A skipped test is visible in the output and never silent.
pub fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
    // Under CI a skip that nobody sees would be a test that cannot fail.
    assert!(
        std::env::var_os("ROTA_E2E_NO_SKIP").is_none(),
        "skipped although ROTA_E2E_NO_SKIP is set: {reason}"
    );
}

/// A number from the environment.
pub fn env_number(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}
