//! The agent with a real supervisor against a small API server of the test's own.
#![allow(clippy::unwrap_used)]

mod fake;
mod servers;
mod tasks;

/// Command of the built supervisor.
pub fn supervisor() -> Vec<std::ffi::OsString> {
    let exe = std::env::current_exe().unwrap();
    let bin = exe
        .parent()
        .and_then(|d| d.parent())
        .unwrap()
        .join("rota-supervisor");
    assert!(
        bin.is_file(),
        "{} is missing: run `cargo build -p rota-supervisor` first",
        bin.display()
    );
    vec![bin.into()]
}
