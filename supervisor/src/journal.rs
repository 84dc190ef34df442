//! The supervisor's journal: which tasks it started and how they ended.
//!
//! An exit is reported only once its record is synced, and forgotten only after the agent's
//! acknowledgement, so every exit is reported exactly once whatever dies in between. Starts are
//! written but not synced: they matter to a successor on the same boot only, and the page cache
//! outlives a killed process. A torn last line is the trace of a power cut and is dropped;
//! anything else that does not parse is an error, never a guess.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::protocol::{Exit, Started};

/// Name of the file in the supervisor's directory.
pub const JOURNAL: &str = "journal";

/// Size from which a journal is rewritten without what is over.
const COMPACT_BYTES: u64 = 16 << 20;

/// A start as it is remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRecord {
    /// Identity.
    #[serde(flatten)]
    pub started: Started,
    /// Directory of the attempt.
    pub attempt_dir: String,
    /// Environment mark.
    pub mark: String,
    /// Subject to the fence.
    pub fenced: bool,
    /// Number of its control group, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum Record {
    Boot { boot_id: String },
    Start(StartRecord),
    Exit(Exit),
    Ack(Vec<String>),
}

/// What a journal says.
#[derive(Debug, Default, PartialEq)]
pub struct State {
    /// Boot that it was written in.
    pub boot_id: String,
    /// Started and not ended.
    pub running: BTreeMap<String, StartRecord>,
    /// Ended and not acknowledged.
    pub exits: BTreeMap<String, Exit>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A line that nothing of ours wrote.
    #[error(
        "{path} is damaged at line {line}; stop the node's tasks, then move the file away to start without it"
    )]
    Damaged {
        /// File.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
}

fn checksum(bytes: &[u8]) -> u32 {
    // FNV-1a: recognises torn and damaged lines; nobody attacks a file of mode 0600.
    let mut h: u32 = 0x811c_9dc5;
    for b in bytes {
        h = (h ^ u32::from(*b)).wrapping_mul(0x0100_0193);
    }
    h
}

/// Reads a journal; an absent one is empty. Gives the state and the length of its sound part.
pub fn read(dir: &Path) -> Result<(State, u64), JournalError> {
    let path = dir.join(JOURNAL);
    let bytes = match std::fs::read(&path) {
        Ok(b) => b,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((State::default(), 0)),
        Err(source) => return Err(JournalError::Io { path, source }),
    };
    let mut state = State::default();
    let mut sound = 0usize;
    for (number, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let whole = line.ends_with(b"\n");
        let record = whole.then(|| parse(&line[..line.len() - 1])).flatten();
        let Some(record) = record else {
            if sound + line.len() == bytes.len() {
                break; // the torn end
            }
            return Err(JournalError::Damaged {
                path,
                line: number + 1,
            });
        };
        sound += line.len();
        match record {
            Record::Boot { boot_id } => state.boot_id = boot_id,
            Record::Start(s) => {
                state.running.insert(s.started.id.clone(), s);
            }
            Record::Exit(e) => {
                state.running.remove(&e.id);
                state.exits.insert(e.id.clone(), e);
            }
            Record::Ack(ids) => {
                for id in ids {
                    state.exits.remove(&id);
                }
            }
        }
    }
    Ok((state, sound as u64))
}

fn parse(line: &[u8]) -> Option<Record> {
    let (sum, json) = line.split_at_checked(9)?;
    let sum = std::str::from_utf8(&sum[..8]).ok()?;
    if u32::from_str_radix(sum, 16).ok()? != checksum(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

fn line(record: &Record, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(b"00000000 ");
    if serde_json::to_writer(&mut *out, record).is_err() {
        out.truncate(at); // cannot happen: the records hold strings and numbers only
        return;
    }
    let sum = format!("{:08x}", checksum(&out[at + 9..]));
    out[at..at + 8].copy_from_slice(sum.as_bytes());
    out.push(b'\n');
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    buffer: Vec<u8>,
    /// The file may lack what was written to it, and nothing more goes into it. After a failed sync
    /// the kernel may have dropped the pages, and a second sync of the same file would say "done".
    broken: bool,
}

impl Journal {
    /// Opens the journal of a directory for appending after its sound part.
    pub fn open(dir: &Path, boot_id: &str) -> Result<(Journal, State), JournalError> {
        let (state, sound) = read(dir)?;
        let path = dir.join(JOURNAL);
        let io = |source| JournalError::Io {
            path: dir.join(JOURNAL),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(io)?;
        file.set_len(sound).map_err(io)?;
        let mut journal = Journal {
            path,
            file,
            bytes: sound,
            buffer: Vec::new(),
            broken: false,
        };
        if state.boot_id != boot_id {
            line(
                &Record::Boot {
                    boot_id: boot_id.to_string(),
                },
                &mut journal.buffer,
            );
            journal.flush(true).map_err(io)?;
            if let Ok(d) = File::open(dir) {
                let _ = d.sync_all(); // best effort: without it a power cut may lose the empty journal
            }
        }
        Ok((journal, state))
    }

    /// Queues a start.
    pub fn start(&mut self, record: &StartRecord) {
        line(&Record::Start(record.clone()), &mut self.buffer);
    }

    /// Queues an exit.
    pub fn exit(&mut self, exit: &Exit) {
        line(&Record::Exit(exit.clone()), &mut self.buffer);
    }

    /// Queues an acknowledgement.
    pub fn ack(&mut self, ids: &[String]) {
        line(&Record::Ack(ids.to_vec()), &mut self.buffer);
    }

    /// Writes what is queued, synced when asked. After an error nothing of it counts as written: it
    /// stays queued, unless the journal [is broken](Self::is_broken).
    pub fn flush(&mut self, sync: bool) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the journal has to be written anew"));
        }
        if !self.buffer.is_empty() {
            if let Err(e) = self.file.write_all(&self.buffer) {
                // Part of it may be there; cut it off so that the retry does not follow a torn line.
                self.broken = self.file.set_len(self.bytes).is_err();
                return Err(e);
            }
            self.bytes += self.buffer.len() as u64;
            self.buffer.clear();
        }
        if sync && let Err(e) = self.file.sync_data() {
            self.broken = true;
            return Err(e);
        }
        Ok(())
    }

    /// Whether only [`compact`](Self::compact) helps: a failed sync is never tried again in place.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether a rewrite pays.
    pub fn wants_compaction(&self) -> bool {
        self.bytes > COMPACT_BYTES
    }

    /// Replaces the file by a new, synced one that holds only this state, which must include what
    /// is queued.
    pub fn compact<'a>(
        &mut self,
        boot_id: &str,
        running: impl Iterator<Item = StartRecord>,
        exits: impl Iterator<Item = &'a Exit>,
    ) -> io::Result<()> {
        let mut out = Vec::new();
        line(
            &Record::Boot {
                boot_id: boot_id.to_string(),
            },
            &mut out,
        );
        for r in running {
            line(&Record::Start(r), &mut out);
        }
        for e in exits {
            line(&Record::Exit(e.clone()), &mut out);
        }
        let temporary = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&temporary)?;
        file.write_all(&out)?;
        file.sync_data()?;
        // From here until the end, the open file may no longer be the one that a successor reads.
        self.broken = true;
        std::fs::rename(&temporary, &self.path)?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.bytes = out.len() as u64;
        self.buffer.clear();
        self.broken = false;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::protocol::ExitCause;

    fn start(id: &str) -> StartRecord {
        StartRecord {
            started: Started {
                id: id.into(),
                pid: 5,
                ..Started::default()
            },
            attempt_dir: "/a".into(),
            mark: "M".into(),
            fenced: false,
            group: None,
        }
    }
    fn exit(id: &str) -> Exit {
        Exit {
            id: id.into(),
            tag: String::new(),
            pid: 5,
            code: Some(3),
            signal: None,
            cause: ExitCause::Ended,
            reason: None,
            message: None,
            started_ms: 1,
            finished_ms: 2,
        }
    }

    #[test]
    fn replays_what_was_written_and_drops_a_torn_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut j, _) = Journal::open(dir.path(), "b").unwrap();
        for id in ["x", "y", "z"] {
            j.start(&start(id));
        }
        j.exit(&exit("x"));
        j.exit(&exit("y"));
        j.ack(&["x".into()]);
        j.flush(true).unwrap();
        let path = dir.path().join(JOURNAL);
        let whole = std::fs::read(&path).unwrap();
        let check = || {
            let (s, _) = read(dir.path()).unwrap();
            assert_eq!(s.boot_id, "b");
            assert_eq!(s.running.keys().collect::<Vec<_>>(), ["z"]);
            assert_eq!(s.exits.keys().collect::<Vec<_>>(), ["y"]);
        };
        check();
        let mut torn = whole.clone();
        torn.extend_from_slice(b"0123abcd {\"Exit\":{");
        std::fs::write(&path, &torn).unwrap();
        check();
        // Opening cuts the torn end off, so that the next record starts a line.
        let (mut j, _) = Journal::open(dir.path(), "b").unwrap();
        j.ack(&["none".into()]);
        j.flush(false).unwrap();
        check();
    }

    #[test]
    fn damage_in_the_middle_is_an_error_that_names_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let (mut j, _) = Journal::open(dir.path(), "b").unwrap();
        j.start(&start("x"));
        j.start(&start("y"));
        j.flush(true).unwrap();
        let path = dir.path().join(JOURNAL);
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.iter().position(|b| *b == b'\n').unwrap() + 20;
        bytes[second] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = read(dir.path()).unwrap_err();
        assert!(
            matches!(error, JournalError::Damaged { line: 2, .. }),
            "{error}"
        );
    }

    #[test]
    fn compaction_keeps_the_live_state() {
        let dir = tempfile::tempdir().unwrap();
        let (mut j, _) = Journal::open(dir.path(), "b").unwrap();
        j.compact("b", [start("r")].into_iter(), [exit("e")].iter())
            .unwrap();
        j.ack(&["e".into()]);
        j.flush(false).unwrap();
        let (s, _) = read(dir.path()).unwrap();
        assert_eq!(s.running.len(), 1);
        assert!(s.exits.is_empty());
    }

    #[test]
    fn a_failed_sync_is_not_tried_again_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (mut j, _) = Journal::open(dir.path(), "b").unwrap();
        // Takes every write and cannot be synced.
        let null = OpenOptions::new().append(true).open("/dev/null").unwrap();
        let sound = std::mem::replace(&mut j.file, null);
        j.exit(&exit("e"));
        assert!(j.flush(true).is_err() && j.is_broken());
        // This one could be synced, but what was written may be missing from it.
        j.file = sound;
        j.start(&start("r"));
        assert!(j.flush(true).is_err());
        j.compact("b", [start("r")].into_iter(), [exit("e")].iter())
            .unwrap();
        j.flush(true).unwrap();
        let (s, _) = read(dir.path()).unwrap();
        assert_eq!((s.running.len(), s.exits.len()), (1, 1));
    }
}
