//! The data directory of a server: where it is, and that only one process has it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rota_apiserver::auth::pki::private_dir;

use crate::fail::{Fail, Result};

/// A data directory that this process has locked until it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if need be and locks it. `what` is who has it, for the message when
    /// another one does.
    pub fn lock(path: &Path, what: &str) -> Result<DataDir> {
        private_dir(path)?;
        let lock = lock_file(&path.join("lock")).map_err(|e| match e {
            Held::By(pid) => Fail::new(
                format!(
                    "the data directory {} is in use by another {what}{}",
                    path.display(),
                    pid.map_or(String::new(), |p| format!(" (process {p})"))
                ),
                "stop that one, or give this one its own directory with --data-dir",
            ),
            Held::Io(e) => Fail::new(
                format!("cannot lock the data directory {}: {e}", path.display()),
                "check its owner, mode and file system",
            ),
        })?;
        Ok(DataDir {
            path: path.into(),
            _lock: lock,
        })
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Why a directory could not be locked.
#[derive(Debug)]
pub enum Held {
    /// Another process has it.
    By(Option<i32>),
    /// The file system says no.
    Io(std::io::Error),
}

/// Locks a file and writes our process id into it. The kernel drops the lock with the process.
pub fn lock_file(path: &Path) -> std::result::Result<File, Held> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(Held::Io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(Held::By(pid.trim().parse().ok()));
        }
        Err(TryLockError::Error(e)) => return Err(Held::Io(e)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(Held::Io)?;
    Ok(file)
}

/// `--data-dir`, else `$XDG_DATA_HOME/rota`, else `~/.local/share/rota`.
pub fn choose(flag: Option<&Path>) -> Result<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let path = flag
        .map(Path::to_path_buf)
        .or_else(|| variable("XDG_DATA_HOME").map(|d| d.join("rota")))
        .or_else(|| variable("HOME").map(|d| d.join(".local/share/rota")))
        .ok_or_else(|| {
            Fail::new(
                "neither HOME nor XDG_DATA_HOME says where data may go",
                "name a directory with --data-dir",
            )
        })?;
    std::path::absolute(&path).map_err(|e| {
        Fail::new(
            format!("{}: {e}", path.display()),
            "name an existing place with --data-dir",
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_one_has_it_and_the_other_hears_who() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("d");
        let first = DataDir::lock(&dir, "rota up").unwrap();
        let fail = DataDir::lock(&dir, "rota up").unwrap_err();
        let text = format!("{fail:?}");
        assert!(text.contains("in use by another rota up"), "{text}");
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        DataDir::lock(&dir, "rota up").unwrap();
    }

    #[test]
    fn the_flag_wins_and_becomes_absolute() {
        assert_eq!(choose(Some(Path::new("/a"))).unwrap(), Path::new("/a"));
        assert!(choose(Some(Path::new("a"))).unwrap().is_absolute());
    }
}
