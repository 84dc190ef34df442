//! Reading task output: all of it, its tail, since a time, one stream, or on and on.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use rota_supervisor::logs::{LOG, LOG_FILES, rfc3339};
use rota_supervisor::sys;
use tokio::sync::mpsc;

/// How long output and directories of an ended attempt are kept.
pub const RETENTION: Duration = Duration::from_secs(3600);
/// How often a follower looks for more.
const POLL: Duration = Duration::from_millis(100);
/// Output is handed on in pieces of about this size.
const PIECE: usize = 32 << 10;
/// Ended attempts without output that are remembered, so that their logs are empty, not unknown.
const REMEMBERED: usize = 100_000;

/// `(job uid, index, attempt)`.
pub type Attempt = (String, i32, i32);

/// What was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Go on until the task ends.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Only lines from this many seconds ago.
    pub since: Option<u64>,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// `stdout` or `stderr` only.
    pub stream: Option<String>,
}

impl Query {
    /// From a query string; a parameter that makes no sense is an error with a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut q = Query::default();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            let flag = || match value {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(format!("{key} must be true or false")),
            };
            match key {
                "follow" => q.follow = flag()?,
                "timestamps" => q.timestamps = flag()?,
                "tailLines" => {
                    q.tail = Some(
                        value
                            .parse()
                            .map_err(|_| "tailLines must be a number".to_string())?,
                    )
                }
                "sinceSeconds" => {
                    q.since = Some(
                        value
                            .parse()
                            .map_err(|_| "sinceSeconds must be a number".to_string())?,
                    )
                }
                "stream" => match value {
                    "stdout" | "stderr" => q.stream = Some(value.into()),
                    "" | "all" | "All" => {}
                    _ => return Err("stream must be stdout or stderr".into()),
                },
                _ => {} // the server's own parameters
            }
        }
        Ok(q)
    }
}

/// Which attempts are there, shared between the core and the tunnel.
#[derive(Debug, Default)]
pub struct Attempts {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashSet<Attempt>,
    ended: HashSet<Attempt>,
    order: VecDeque<Attempt>,
}

impl Attempts {
    /// It is being run.
    pub fn begin(&self, attempt: Attempt) {
        self.inner.lock().live.insert(attempt);
    }

    /// It is over.
    pub fn end(&self, attempt: &Attempt) {
        let mut inner = self.inner.lock();
        if inner.live.remove(attempt) && inner.ended.insert(attempt.clone()) {
            inner.order.push_back(attempt.clone());
            if inner.order.len() > REMEMBERED
                && let Some(old) = inner.order.pop_front()
            {
                inner.ended.remove(&old);
            }
        }
    }

    fn is_live(&self, attempt: &Attempt) -> bool {
        self.inner.lock().live.contains(attempt)
    }

    fn is_known(&self, attempt: &Attempt) -> bool {
        let inner = self.inner.lock();
        inner.live.contains(attempt) || inner.ended.contains(attempt)
    }
}

/// Directory of an attempt below the tasks' directory; `None` for a uid that is no plain name.
pub fn attempt_dir(tasks: &Path, attempt: &Attempt) -> Option<PathBuf> {
    let (uid, index, number) = attempt;
    let plain = !uid.is_empty()
        && uid.len() <= 64
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain.then(|| {
        tasks
            .join(uid)
            .join(index.to_string())
            .join(number.to_string())
    })
}

/// Whether there is (or was lately) anything to read.
pub fn exists(tasks: &Path, attempts: &Attempts, attempt: &Attempt) -> bool {
    attempts.is_known(attempt) || attempt_dir(tasks, attempt).is_some_and(|d| d.join(LOG).is_file())
}

struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    whole: bool,
    text: &'a [u8],
}

fn parse(record: &[u8]) -> Option<Line<'_>> {
    let mut parts = record.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let whole = parts.next()? == b"F";
    let text = parts.next()?;
    Some(Line {
        time,
        stream,
        whole,
        text: text.strip_suffix(b"\n").unwrap_or(text),
    })
}

/// Turns records into what the user sees.
struct Printer {
    query: Query,
    from: String,
    skip: usize,
    open: [bool; 2],
    out: Vec<u8>,
}

impl Printer {
    fn wants(&self, line: &Line<'_>) -> bool {
        self.query
            .stream
            .as_deref()
            .is_none_or(|s| s == line.stream)
            && line.time >= self.from.as_str()
    }

    fn take(&mut self, record: &[u8]) {
        let Some(line) = parse(record) else { return };
        if !self.wants(&line) {
            return;
        }
        if self.skip > 0 {
            self.skip -= usize::from(line.whole);
            return;
        }
        let which = usize::from(line.stream == "stderr");
        if self.query.timestamps && !self.open[which] {
            self.out.extend_from_slice(line.time.as_bytes());
            self.out.push(b' ');
        }
        self.out.extend_from_slice(line.text);
        if line.whole {
            self.out.push(b'\n');
        }
        self.open[which] = !line.whole;
    }
}

/// Reads an attempt's output into the channel; blocking, ends when the receiver is gone.
pub fn read(
    tasks: &Path,
    attempts: &Arc<Attempts>,
    attempt: &Attempt,
    query: Query,
    out: &mpsc::Sender<Bytes>,
) {
    let Some(dir) = attempt_dir(tasks, attempt) else {
        return;
    };
    let from = query
        .since
        .map(|s| rfc3339(sys::wall_nanos().saturating_sub(s.saturating_mul(1_000_000_000))))
        .unwrap_or_default();
    let mut printer = Printer {
        from,
        skip: 0,
        open: [false; 2],
        out: Vec::new(),
        query,
    };
    if let Some(tail) = printer.query.tail {
        printer.skip = count(&dir, &printer).saturating_sub(tail);
    }
    let send = |printer: &mut Printer, all: bool| -> bool {
        if printer.out.len() < PIECE && !all || printer.out.is_empty() {
            return !out.is_closed();
        }
        out.blocking_send(Bytes::from(std::mem::take(&mut printer.out)))
            .is_ok()
    };
    let mut file: Option<BufReader<File>> = oldest(&dir);
    let mut record = Vec::new();
    loop {
        // Asked before reading: what was written before the end is read for certain.
        let live = attempts.is_live(attempt);
        if file.is_none() {
            file = oldest(&dir);
        }
        while let Some(reader) = &mut file {
            match reader.read_until(b'\n', &mut record) {
                Ok(0) | Err(_) => match younger(&dir, reader.get_ref()) {
                    Some(next) => file = Some(next),
                    None => break,
                },
                Ok(_) if record.ends_with(b"\n") => {
                    printer.take(&record);
                    record.clear();
                    if !send(&mut printer, false) {
                        return;
                    }
                }
                Ok(_) => break, // the rest of the record follows
            }
        }
        if !send(&mut printer, true) || !printer.query.follow || !live {
            return;
        }
        std::thread::sleep(POLL);
    }
}

fn name(n: u32) -> String {
    if n == 0 {
        LOG.into()
    } else {
        format!("{LOG}.{n}")
    }
}

fn oldest(dir: &Path) -> Option<BufReader<File>> {
    (0..LOG_FILES)
        .rev()
        .find_map(|n| File::open(dir.join(name(n))).ok())
        .map(BufReader::new)
}

/// The file that follows an open one, found by inode because names move at rotation.
fn younger(dir: &Path, file: &File) -> Option<BufReader<File>> {
    let inode = file.metadata().ok()?.ino();
    let number = (0..LOG_FILES)
        .find(|n| std::fs::metadata(dir.join(name(*n))).is_ok_and(|m| m.ino() == inode));
    match number {
        Some(0) => None,
        Some(n) => File::open(dir.join(name(n - 1))).ok().map(BufReader::new),
        None => oldest(dir), // rotated away while we read it
    }
}

fn count(dir: &Path, printer: &Printer) -> usize {
    let mut lines = 0;
    let mut bytes = Vec::new();
    for n in (0..LOG_FILES).rev() {
        bytes.clear();
        if File::open(dir.join(name(n)))
            .and_then(|mut f| f.read_to_end(&mut bytes))
            .is_err()
        {
            continue;
        }
        lines += bytes
            .split_inclusive(|b| *b == b'\n')
            .filter_map(parse)
            .filter(|l| l.whole && printer.wants(l))
            .count();
    }
    lines
}

/// Removes directories of attempts that ended longer ago than the retention.
pub fn sweep(tasks: &Path, attempts: &Attempts, retention: Duration) {
    let dirs = |p: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(p)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.is_dir())
            .collect()
    };
    let number = |p: &Path| p.file_name()?.to_str()?.parse::<i32>().ok();
    for job in dirs(tasks) {
        let uid = job
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for index in dirs(&job) {
            for attempt in dirs(&index) {
                let (Some(i), Some(a)) = (number(&index), number(&attempt)) else {
                    continue;
                };
                if attempts.is_live(&(uid.clone(), i, a)) {
                    continue;
                }
                let newest = [attempt.clone(), attempt.join(LOG)]
                    .iter()
                    .filter_map(|p| std::fs::metadata(p).ok()?.modified().ok())
                    .max()
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                if newest.elapsed().unwrap_or_default() >= retention {
                    let _ = std::fs::remove_dir_all(&attempt); // tried again by the next sweep
                }
            }
            let _ = std::fs::remove_dir(&index); // stays while something is in it
        }
        let _ = std::fs::remove_dir(&job);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn attempt() -> Attempt {
        ("u".into(), 0, 0)
    }
    fn all(tasks: &Path, query: &str) -> String {
        let (tx, mut rx) = mpsc::channel(100);
        read(
            tasks,
            &Arc::default(),
            &attempt(),
            Query::parse(query).unwrap(),
            &tx,
        );
        drop(tx);
        let mut out = Vec::new();
        while let Ok(b) = rx.try_recv() {
            out.extend_from_slice(&b);
        }
        String::from_utf8(out).unwrap()
    }
    fn setup() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let at = attempt_dir(dir.path(), &attempt()).unwrap();
        std::fs::create_dir_all(&at).unwrap();
        let t = |s: u64| rfc3339(s * 1_000_000_000);
        std::fs::write(
            at.join("log.1"),
            format!("{} stdout F one\n{} stderr F two\n", t(1), t(2)),
        )
        .unwrap();
        std::fs::write(
            at.join("log"),
            format!(
                "{} stdout P thr\n{} stdout F ee\n{} stdout P tail\n",
                t(3),
                t(4),
                t(5)
            ),
        )
        .unwrap();
        (dir, at)
    }

    #[test]
    fn reads_across_rotation_in_order() {
        let (dir, _) = setup();
        assert_eq!(all(dir.path(), ""), "one\ntwo\nthree\ntail");
        assert_eq!(all(dir.path(), "stream=stderr"), "two\n");
        assert_eq!(all(dir.path(), "tailLines=1"), "three\ntail");
        assert_eq!(all(dir.path(), "sinceSeconds=5"), "");
        let stamped = all(dir.path(), "timestamps=true&stream=stdout");
        assert_eq!(stamped.lines().count(), 3, "{stamped}");
        assert!(
            stamped.contains("1970-01-01T00:00:03.000000000Z three\n"),
            "{stamped}"
        );
    }

    #[test]
    fn follows_to_the_end_of_the_task() {
        let (dir, at) = setup();
        let attempts = Arc::new(Attempts::default());
        attempts.begin(attempt());
        let (tx, mut rx) = mpsc::channel(100);
        let reader = {
            let (tasks, attempts) = (dir.path().to_path_buf(), attempts.clone());
            std::thread::spawn(move || {
                read(
                    &tasks,
                    &attempts,
                    &attempt(),
                    Query::parse("follow=true").unwrap(),
                    &tx,
                )
            })
        };
        assert_eq!(
            rx.blocking_recv().unwrap(),
            "one\ntwo\nthree\ntail".as_bytes()
        );
        std::fs::rename(at.join("log.1"), at.join("log.2")).unwrap();
        std::fs::rename(at.join("log"), at.join("log.1")).unwrap();
        std::fs::write(
            at.join("log"),
            format!("{} stdout F end\n", rfc3339(6_000_000_000)),
        )
        .unwrap();
        assert_eq!(rx.blocking_recv().unwrap(), "end\n".as_bytes());
        attempts.end(&attempt());
        assert!(rx.blocking_recv().is_none());
        reader.join().unwrap();
    }

    #[test]
    fn refuses_nonsense_and_paths() {
        assert!(Query::parse("tailLines=x").is_err());
        assert!(Query::parse("stream=both").is_err());
        assert_eq!(attempt_dir(Path::new("/t"), &("../x".into(), 0, 0)), None);
        let (dir, _) = setup();
        let attempts = Attempts::default();
        assert!(exists(dir.path(), &attempts, &attempt()));
        assert!(!exists(dir.path(), &attempts, &("v".into(), 0, 0)));
        sweep(dir.path(), &attempts, Duration::ZERO);
        assert!(!dir.path().join("u").exists());
    }
}
