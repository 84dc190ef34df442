//! Task output on disk: one file per attempt with a line per line of output, rotated by size.
//!
//! The supervisor reads the tasks' pipes and writes the lines itself. So output survives the
//! agent, carries the time at which it was read, is in time order across both streams, and is
//! bounded, none of which holds when tasks write files themselves. A line of the file is
//! `<RFC 3339 time, nanoseconds> <stdout|stderr> <F|P> <text>`; P marks a piece that its writer
//! had not ended with a newline yet, and the next line of that stream continues it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the current file in the attempt's directory; older ones are `log.1` (younger) to `log.4`.
pub const LOG: &str = "log";
/// Largest log file.
pub const LOG_FILE_MAX: u64 = 10 << 20;
/// Files kept per attempt, the current one included.
pub const LOG_FILES: u32 = 5;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As written in the file.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Writer of one attempt's log. The file appears with the first output.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    lost: u64,
    max: u64,
}

impl LogWriter {
    /// A writer into a directory.
    pub fn new(attempt_dir: &Path) -> Self {
        LogWriter {
            path: attempt_dir.join(LOG),
            file: None,
            size: 0,
            lost: 0,
            max: LOG_FILE_MAX,
        }
    }

    /// Writes output that was read at `unix_nanos`. A full disk loses output, and the log says
    /// how much as soon as it can be written again; the task itself never waits for the disk.
    pub fn write(&mut self, stream: Stream, bytes: &[u8], unix_nanos: u64, scratch: &mut Vec<u8>) {
        scratch.clear();
        let time = rfc3339(unix_nanos);
        if self.lost > 0 {
            scratch.extend_from_slice(
                format!(
                    "{time} stderr F rota: {} bytes of output were lost because the log could not be written\n",
                    self.lost
                )
                .as_bytes(),
            );
        }
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            scratch.extend_from_slice(time.as_bytes());
            scratch.push(b' ');
            scratch.extend_from_slice(stream.name().as_bytes());
            if piece.ends_with(b"\n") {
                scratch.extend_from_slice(b" F ");
                scratch.extend_from_slice(piece);
            } else {
                scratch.extend_from_slice(b" P ");
                scratch.extend_from_slice(piece);
                scratch.push(b'\n');
            }
        }
        if self.file.is_some() && self.size + scratch.len() as u64 > self.max {
            self.rotate();
        }
        match self.append(scratch) {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += bytes.len() as u64,
        }
    }

    fn append(&mut self, data: &[u8]) -> std::io::Result<()> {
        if self.file.is_none() {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            if let Err(e) = file.write_all(data) {
                let _ = file.set_len(self.size); // no half lines
                return Err(e);
            }
            self.size += data.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) {
        let numbered = |n: u32| self.path.with_extension(n.to_string());
        for n in (1..LOG_FILES - 1).rev() {
            let _ = std::fs::rename(numbered(n), numbered(n + 1)); // absent is fine
        }
        if std::fs::rename(&self.path, numbered(1)).is_ok() {
            self.file = None;
        }
    }
}

/// `2026-11-21T03:00:00.123456789Z`.
pub fn rfc3339(unix_nanos: u64) -> String {
    let seconds = unix_nanos / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to civil date in eras of 400 years that begin on 1 March.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        unix_nanos % 1_000_000_000
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn writes_times_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            rfc3339(951_826_199_000_000_001),
            "2000-02-29T12:09:59.000000001Z"
        );
        assert_eq!(
            rfc3339(1_798_761_599_999_999_999),
            "2026-12-31T23:59:59.999999999Z"
        );
    }

    #[test]
    fn rotates_by_size_and_keeps_five_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = LogWriter::new(dir.path());
        w.max = 200;
        let mut scratch = Vec::new();
        for i in 0..100 {
            w.write(
                Stream::Stdout,
                format!("line {i}\n").as_bytes(),
                0,
                &mut scratch,
            );
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2", "log.3", "log.4"]);
        let newest = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(newest.ends_with("stdout F line 99\n"), "{newest}");
        for n in names {
            assert!(std::fs::metadata(dir.path().join(n)).unwrap().len() <= 200);
        }
    }

    #[test]
    fn marks_unfinished_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = LogWriter::new(dir.path());
        w.write(Stream::Stderr, b"a\nb", 0, &mut Vec::new());
        assert_eq!(
            std::fs::read_to_string(dir.path().join("log")).unwrap(),
            "1970-01-01T00:00:00.000000000Z stderr F a\n1970-01-01T00:00:00.000000000Z stderr P b\n"
        );
    }
}
