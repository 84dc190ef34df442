//! Directories of attempts: made for a start, and kept for another one when their task left
//! nothing in them.
//!
//! An attempt lives in `tasks/<job uid>/<index>/<attempt>`, with `work` inside. Making and removing
//! those three costs more than the process itself: before ext4 gives out an inode it looks at every
//! one that was freed in the last seconds, so thousands of short tasks slow each other down. A tree
//! that is as it was made is therefore renamed to `spare/<n>`, and from there to its next place.
//!
//! Promise: a work directory is empty at the start of an attempt and is nobody else's, whether it
//! is new or was kept; what is not certainly as new is not kept.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys;

/// Name of the directory of kept trees, beside the supervisors' directories.
pub const SPARE: &str = "spare";
/// Kept trees: enough for what ends while a batch starts; each is three empty directories.
pub const SPARES: u32 = 1_024;
/// Pause between two looks for kept trees that found none.
const LOOK_MS: u64 = 50;
/// The one attempt whose tree is kept: nearly all are the first of their index.
const FIRST: &str = "0";
const WORK: &str = "work";

/// The supervisor's view of the kept trees. Another supervisor may take them as well.
#[derive(Debug)]
pub struct Spares {
    dir: PathBuf,
    known: Vec<PathBuf>,
    look_at: u64,
}

impl Spares {
    /// Kept trees of a data directory.
    pub fn new(data_dir: &Path) -> Self {
        Spares {
            dir: data_dir.join(SPARE),
            known: Vec::new(),
            look_at: 0,
        }
    }

    /// Makes the directories of an attempt, or takes kept ones.
    pub fn make(&mut self, attempt: &Path) -> io::Result<()> {
        if !self.take(attempt) {
            make(attempt)?;
        }
        Ok(())
    }

    fn take(&mut self, attempt: &Path) -> bool {
        if attempt.file_name().is_none_or(|n| n != FIRST) {
            return false;
        }
        let Some(index) = attempt.parent() else {
            return false;
        };
        let Some(spare) = self.next() else {
            return false;
        };
        // Fails where the index has a directory with something in it, as it must.
        let mut result = fs::rename(&spare, index);
        if result
            .as_ref()
            .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
            && spare.exists()
            && let Some(job) = index.parent()
            && fs::create_dir_all(job).is_ok()
        {
            result = fs::rename(&spare, index);
        }
        match result {
            Ok(()) => true,
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    self.known.push(spare);
                }
                false
            }
        }
    }

    fn next(&mut self) -> Option<PathBuf> {
        if self.known.is_empty() {
            let now = sys::boot_ms();
            if now < self.look_at {
                return None;
            }
            self.look_at = now + LOOK_MS;
            let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
            self.known = entries.map(|e| e.path()).collect();
        }
        self.known.pop()
    }
}

/// Makes the directories of an attempt. From the top, since mostly all of them are missing; the
/// agent removes them once the end is reported, off this thread, because that may wait for a disk.
fn make(attempt: &Path) -> io::Result<()> {
    let work = attempt.join(WORK);
    for dir in attempt.parent().into_iter().chain([attempt, &work]) {
        match fs::create_dir(dir) {
            // The agent may just have removed the index's directory with an earlier attempt.
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(dir)?,
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Keeps the tree of an ended attempt in the place `number` of `spares`; false when it is not as
/// it was made, or when the place is taken.
pub fn keep(spares: &Path, number: u32, attempt: &Path) -> bool {
    let (Some(index), work) = (attempt.parent(), attempt.join(WORK)) else {
        return false;
    };
    let Some(Ok(like)) = index.parent().map(fs::symlink_metadata) else {
        return false;
    };
    attempt.file_name().is_some_and(|n| n == FIRST)
        && holds_only(&work, None, &like)
        && holds_only(attempt, Some(WORK), &like)
        && holds_only(index, Some(FIRST), &like)
        && ["system.posix_acl_access", "system.posix_acl_default"]
            .iter()
            .all(|acl| rustix::fs::lgetxattr(&work, *acl, &mut [0u8; 0][..]).is_err())
        && fs::rename(index, spares.join((number % SPARES).to_string())).is_ok()
}

/// Whether a directory has the owner and the permissions of another one, and just this entry.
fn holds_only(dir: &Path, entry: Option<&str>, like: &fs::Metadata) -> bool {
    let Ok(m) = fs::symlink_metadata(dir) else {
        return false;
    };
    let same = (m.mode(), m.uid(), m.gid()) == (like.mode(), like.uid(), like.gid());
    if !same {
        return false;
    }
    let Ok(mut entries) = fs::read_dir(dir) else {
        return false;
    };
    let found = match entry {
        None => true,
        Some(name) => entries
            .next()
            .is_some_and(|e| e.is_ok_and(|e| e.file_name() == name)),
    };
    found && entries.next().is_none()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn setup() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let spare = dir.path().join(SPARE);
        fs::create_dir(&spare).unwrap();
        let tasks = dir.path().join("tasks");
        (dir, spare, tasks)
    }

    #[test]
    fn a_tree_as_it_was_made_is_used_again() {
        let (dir, spare, tasks) = setup();
        let mut spares = Spares::new(dir.path());
        let (first, second) = (tasks.join("a/5/0"), tasks.join("b/7/0"));
        spares.make(&first).unwrap();
        let inode = fs::metadata(first.join(WORK)).unwrap().ino();
        assert!(keep(&spare, SPARES + 3, &first));
        assert!(!tasks.join("a/5").exists() && spare.join("3").exists());
        spares.look_at = 0;
        spares.make(&second).unwrap();
        assert_eq!(fs::metadata(second.join(WORK)).unwrap().ino(), inode);
        assert!(!spare.join("3").exists());
        // A place that is taken keeps nothing more.
        fs::create_dir_all(spare.join("4/0/work")).unwrap();
        assert!(!keep(&spare, 4, &second));
    }

    #[test]
    fn what_a_task_changed_is_not_kept() {
        let (dir, spare, tasks) = setup();
        let mut spares = Spares::new(dir.path());
        let attempt = tasks.join("a/5/0");
        spares.make(&attempt).unwrap();
        let work = attempt.join(WORK);
        let refused = || assert!(!keep(&spare, 0, &attempt));
        for (path, undo) in [
            (work.join("file"), "file in work"),
            (attempt.join("log"), "output"),
            (tasks.join("a/5/1"), "another attempt"),
        ] {
            fs::write(&path, undo).unwrap();
            refused();
            fs::remove_file(&path).unwrap();
        }
        fs::set_permissions(&work, fs::Permissions::from_mode(0o700)).unwrap();
        refused();
        let mode = fs::metadata(&attempt).unwrap().permissions();
        fs::set_permissions(&work, mode).unwrap();
        assert!(!keep(&spare, 0, &tasks.join("a/5/1")), "not the first");
        assert!(keep(&spare, 0, &attempt));
    }

    #[test]
    fn a_used_index_and_a_later_attempt_are_left_as_they_are() {
        let (dir, spare, tasks) = setup();
        fs::create_dir_all(spare.join("1/0/work")).unwrap();
        let mut spares = Spares::new(dir.path());
        let attempt = tasks.join("a/5/0");
        make(&attempt).unwrap();
        fs::write(attempt.join("work/state"), "kept over restarts").unwrap();
        spares.make(&attempt).unwrap();
        assert!(attempt.join("work/state").exists() && spare.join("1").exists());
        spares.make(&tasks.join("a/5/1")).unwrap();
        assert!(tasks.join("a/5/1/work").is_dir() && spare.join("1").exists());
    }
}
