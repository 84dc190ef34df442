//! The supervisor: a small process that starts tasks and outlives the agent.
//!
//! It owns the tasks' processes, their output and the record of how they ended, and nothing else.
//! It promises: a task survives the agent; every exit is reported exactly once, after it was
//! synced; a stopped task leaves no process behind (as far as the host's control groups let it
//! look); fenced tasks end when the agent stops extending their deadline.
//!
//! It is single-threaded and is entered before any runtime starts, because it clones children
//! that share its memory until they exec.

pub mod cgroup;
pub mod client;
pub mod dirs;
pub mod journal;
pub mod logs;
pub mod protocol;
mod server;
mod spawn;
pub mod sys;
mod task;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use server::Options;
pub use server::socket_path;

/// Runs a supervisor with the arguments after `rota supervisor`:
/// `--dir DIR --generation N [--import DIR]... [--group NAME]`.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    match parse(args) {
        Err(message) => {
            eprintln!(
                "error: {message}\nhint: the agent starts the supervisor; there is nothing to call by hand"
            );
            ExitCode::from(2)
        }
        Ok(options) => match server::serve(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("error: {e}");
                ExitCode::FAILURE
            }
        },
    }
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let (mut dir, mut generation, mut import, mut group) = (None, None, Vec::new(), None);
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .ok_or_else(|| format!("{} needs a value", flag.display()))?;
        match flag.to_str() {
            Some("--dir") => dir = Some(PathBuf::from(value)),
            Some("--generation") => {
                let text = value.to_string_lossy();
                generation = Some(
                    text.parse()
                        .map_err(|_| format!("{text} is no generation"))?,
                );
            }
            Some("--import") => import.push(PathBuf::from(value)),
            Some("--group") => group = Some(value.to_string_lossy().into_owned()),
            _ => return Err(format!("unknown flag {}", flag.display())),
        }
    }
    Ok(Options {
        dir: dir.ok_or("--dir is missing")?,
        generation: generation.ok_or("--generation is missing")?,
        import,
        group,
    })
}
