//! Checks fjall's journals before fjall opens them, and removes the torn tail of a power cut.
//!
//! fjall appends one batch per commit and recovers by reading batches from the start. A power cut
//! may keep any subset of the pages of the *last*, unacknowledged batch. fjall drops such a tail
//! when its end is missing, but refuses to open when only its middle is, and it silently drops
//! acknowledged batches behind a damaged one. Both are decided here instead:
//! a bad batch with no whole batch behind it was never acknowledged (each batch is synced before
//! the next is written), so it is cut off; a bad batch *followed* by a whole one, or in a journal
//! that is not the newest, is damage and the store refuses to open.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::StoreError;

const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;
/// Ends the end marker of every batch.
const TRAILER: &[u8] = b"FJL\x03";

/// One whole batch: its sequence number and the offset behind it.
#[derive(Debug, PartialEq, Eq)]
struct Batch {
    seqno: u64,
    end: usize,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let part = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(part)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<usize> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?).into())
    }

    fn u32(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize)
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// Reads one whole batch at `at`; `None` if there is none or its checksum is wrong.
fn read_batch(bytes: &[u8], at: usize) -> Option<Batch> {
    let mut cursor = Cursor { bytes, at };
    if cursor.u8()? != TAG_START {
        return None;
    }
    let count = cursor.u32()?;
    let seqno = cursor.u64()?;
    let mut hash = Xxh3::new();
    for _ in 0..count {
        let from = cursor.at;
        match cursor.u8()? {
            TAG_ITEM => {
                // Value type, compression, keyspace.
                cursor.take(1 + 1 + 8)?;
                let key = cursor.u16()?;
                cursor.u32()?;
                let value = cursor.u32()?;
                cursor.take(key.checked_add(value)?)?;
            }
            TAG_CLEAR => {
                cursor.take(8)?;
            }
            _ => return None,
        }
        hash.update(&bytes[from..cursor.at]);
    }
    if cursor.u8()? != TAG_END || cursor.u64()? != hash.digest() || cursor.take(4)? != TRAILER {
        return None;
    }
    Some(Batch {
        seqno,
        end: cursor.at,
    })
}

/// What a journal's bytes say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Whole batches up to here, nothing but zeros or torn bytes behind.
    Good { end: usize, torn: bool },
    /// Damage at this offset with a whole, newer batch behind it.
    Damaged { at: usize },
}

fn judge(bytes: &[u8]) -> Verdict {
    let mut end = 0;
    let mut last = None;
    while let Some(batch) = read_batch(bytes, end) {
        end = batch.end;
        last = Some(batch.seqno);
    }
    // Whole pages at a time: the preallocated rest of a journal is tens of megabytes of zeros.
    const PAGE: usize = 4096;
    let zeros = [0; PAGE];
    let blank = |page: &[u8]| page == &zeros[..page.len()];
    let Some(first) = bytes[end..].chunks(PAGE).position(|page| !blank(page)) else {
        return Verdict::Good { end, torn: false };
    };
    for at in (end + first * PAGE)..bytes.len() {
        // Sequence numbers only grow, which rules out most look-alikes inside values at once.
        if bytes[at] == TAG_START
            && at != end
            && read_batch(bytes, at).is_some_and(|batch| last.is_none_or(|last| batch.seqno > last))
        {
            return Verdict::Damaged { at: end };
        }
    }
    Verdict::Good { end, torn: true }
}

fn journals(dir: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
        if path.extension().is_some_and(|ext| ext == "jnl") {
            let id = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            if let Some(id) = id {
                found.push((id, path));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes the journals under `dir` fit for fjall, or says which one is damaged.
pub(super) fn mend(dir: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path, error: std::io::Error| {
        StoreError::Unavailable(format!("cannot check {}: {error}", path.display()))
    };
    let found = journals(dir).map_err(|error| failed(dir, error))?;
    let count = found.len();
    for (i, (_, path)) in found.into_iter().enumerate() {
        let bytes = std::fs::read(&path).map_err(|error| failed(&path, error))?;
        let newest = i + 1 == count;
        match judge(&bytes) {
            Verdict::Good { torn: false, .. } => {}
            Verdict::Good { end, torn: true } if newest => {
                tracing::warn!(
                    journal = %path.display(), offset = end,
                    "cut an unfinished batch off the journal (power cut or full disk)"
                );
                let file = OpenOptions::new().write(true).open(&path);
                let cut = file.and_then(|file: File| {
                    file.set_len(end as u64)?;
                    file.sync_all()
                });
                cut.map_err(|error| failed(&path, error))?;
            }
            Verdict::Good { end, .. } | Verdict::Damaged { at: end } => {
                return Err(StoreError::Corrupt(format!(
                    "{} is damaged at offset {end}: restore a backup or move the store away",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn batch(seqno: u64, value: &[u8]) -> Vec<u8> {
        let mut item = vec![TAG_ITEM, 0, 0];
        item.extend(1u64.to_le_bytes());
        item.extend(3u16.to_le_bytes());
        item.extend((value.len() as u32).to_le_bytes());
        item.extend((value.len() as u32).to_le_bytes());
        item.extend(b"key");
        item.extend(value);
        let mut hash = Xxh3::new();
        hash.update(&item);
        let mut out = vec![TAG_START];
        out.extend(1u32.to_le_bytes());
        out.extend(seqno.to_le_bytes());
        out.extend(item);
        out.push(TAG_END);
        out.extend(hash.digest().to_le_bytes());
        out.extend(TRAILER);
        out
    }

    #[test]
    fn whole_batches_then_zeros_are_good() {
        let mut bytes = [batch(1, b"a"), batch(2, b"b")].concat();
        let end = bytes.len();
        bytes.resize(end + 9000, 0);
        assert_eq!(judge(&bytes), Verdict::Good { end, torn: false });
    }

    #[test]
    fn a_torn_last_batch_is_cut_and_a_torn_earlier_one_is_damage() {
        let (one, two) = (batch(1, &[7; 9000]), batch(2, &[8; 9000]));
        for hole in (0..two.len()).step_by(512) {
            let mut torn = two.clone();
            let to = (hole + 512).min(torn.len());
            torn[hole..to].fill(0);
            let mut bytes = [one.clone(), torn.clone()].concat();
            bytes.resize(bytes.len() + 100, 0);
            let end = one.len();
            assert_eq!(judge(&bytes), Verdict::Good { end, torn: true });
            let bytes = [torn, batch(3, b"c")].concat();
            assert_eq!(judge(&bytes), Verdict::Damaged { at: 0 });
        }
    }
}
