//! The power-cut test: what a disk may hold when the power goes at any moment.
//!
//! A child process writes to a store under strace with full data. From the trace this rebuilds the
//! directory as it may be after a cut at a random call: synced bytes are there; of everything written
//! since, any subset of 4 KiB pages is there, in any order; of the creations, renames and removals
//! not yet synced (by their directory, or in the milder variant by the file itself, as ext4 does)
//! any last part is missing. The store must open by itself with every acknowledged write.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rota_store::{EmbeddedStore, Store};

use crate::durability::{Acked, CHILD_DIR, CHILD_WRITES, check, child_of, copy, note};
use crate::support::options;

const PAGE: usize = 4096;
/// Runs in an ordinary `cargo test`; `ROTA_POWERCUT_RUNS` asks for more.
const RUNS: usize = 10;
const CALLS: &str = "trace=openat,write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,mkdir,mkdirat,rmdir,lseek,fallocate,copy_file_range,sync_file_range";

/// A small generator: the same seed gives the same cut.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound.max(1)
    }
}

#[derive(Debug)]
enum Step {
    Create(PathBuf),
    Mkdir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Write {
        path: PathBuf,
        at: usize,
        data: Vec<u8>,
    },
    SetLen(PathBuf, usize),
    /// A sync that covers what came before `since`.
    Synced {
        path: PathBuf,
        since: usize,
    },
    Acked(String),
}

/// `\x2f...` or plain text between quotes or angle brackets.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4);
    let digit = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'\\' && bytes.get(i + 1) == Some(&b'x') && i + 3 < bytes.len() {
            out.push(digit(bytes[i + 2]) * 16 + digit(bytes[i + 3]));
            i += 4;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    out
}

fn path_of(text: &str) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(&decode(text)).into_owned())
}

/// The path that `-y` shows behind a file descriptor.
fn fd_path(args: &str) -> Option<PathBuf> {
    let open = args.find('<')?;
    let close = open + args[open..].find('>')?;
    Some(path_of(&args[open + 1..close]))
}

/// The descriptor itself, as text.
fn fd(args: &str) -> String {
    args.split('<').next().unwrap_or_default().to_owned()
}

fn strings(args: &str) -> Vec<Vec<u8>> {
    args.split('"').skip(1).step_by(2).map(decode).collect()
}

fn number_after_last_comma(args: &str) -> Option<usize> {
    args.rsplit(',')
        .next()?
        .trim()
        .trim_end_matches(')')
        .parse()
        .ok()
}

/// Turns the trace into steps under `root`.
fn parse(trace: &str, root: &Path) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut unfinished: HashMap<String, (String, usize)> = HashMap::new();
    // Per descriptor; `None` appends.
    let mut positions: HashMap<String, Option<usize>> = HashMap::new();
    let mut lengths: HashMap<PathBuf, usize> = HashMap::new();
    let inside = |path: &Path| path.starts_with(root);
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        let (call, since) = if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(pid.to_owned(), (start.to_owned(), steps.len()));
            continue;
        } else if rest.starts_with("<... ") {
            let Some((start, since)) = unfinished.remove(pid) else {
                continue;
            };
            let tail = rest.split_once(" resumed>").map_or("", |(_, tail)| tail);
            (format!("{start}{tail}"), since)
        } else {
            (rest.to_owned(), steps.len())
        };
        let Some((name, args)) = call.split_once('(') else {
            continue;
        };
        let Some((args, result)) = args.rsplit_once(" = ") else {
            continue;
        };
        if result.starts_with('-') || result.starts_with('?') {
            continue;
        }
        let args = args.trim_end().trim_end_matches(')');
        match name {
            "openat" => {
                let Some(path) = fd_path(result).filter(|path| inside(path)) else {
                    continue;
                };
                let writes = args.contains("O_WRONLY") || args.contains("O_RDWR");
                if args.contains("O_CREAT") && !lengths.contains_key(&path) {
                    lengths.insert(path.clone(), 0);
                    steps.push(Step::Create(path.clone()));
                }
                if args.contains("O_TRUNC") {
                    lengths.insert(path.clone(), 0);
                    steps.push(Step::SetLen(path.clone(), 0));
                }
                if writes {
                    let append = args.contains("O_APPEND");
                    positions.insert(fd(result), (!append).then_some(0));
                }
            }
            "write" | "writev" | "pwrite64" => {
                let Some(path) = fd_path(args) else { continue };
                let data = strings(args).concat();
                if args.starts_with("1<") {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    steps.extend(text.lines().map(|line| Step::Acked(line.to_owned())));
                    continue;
                }
                if !inside(&path) {
                    continue;
                }
                let at = if name == "pwrite64" {
                    number_after_last_comma(args).unwrap()
                } else {
                    match positions.get_mut(&fd(args)) {
                        Some(Some(position)) => {
                            *position += data.len();
                            *position - data.len()
                        }
                        // Opened to append: wherever the end is now.
                        _ => lengths.get(&path).copied().unwrap_or(0),
                    }
                };
                let length = lengths.entry(path.clone()).or_default();
                *length = (*length).max(at + data.len());
                steps.push(Step::Write { path, at, data });
            }
            "ftruncate" => {
                let Some(path) = fd_path(args).filter(|path| inside(path)) else {
                    continue;
                };
                let length = number_after_last_comma(args).unwrap();
                lengths.insert(path.clone(), length);
                steps.push(Step::SetLen(path, length));
            }
            "lseek" => {
                let position = positions.get_mut(&fd(args));
                if let (Some(Some(position)), Ok(at)) = (position, result.trim().parse()) {
                    *position = at;
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(path) = fd_path(args).filter(|path| inside(path)) {
                    steps.push(Step::Synced { path, since });
                }
            }
            "mkdir" | "mkdirat" => {
                let path = strings(args).pop().unwrap();
                let path = PathBuf::from(String::from_utf8(path).unwrap());
                if inside(&path) {
                    steps.push(Step::Mkdir(path));
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let mut names = strings(args).into_iter();
                let mut path = || PathBuf::from(String::from_utf8(names.next().unwrap()).unwrap());
                let (from, to) = (path(), path());
                if inside(&from) {
                    // Also of directories: everything below moves.
                    let moved: Vec<PathBuf> = lengths
                        .keys()
                        .filter(|path| path.starts_with(&from))
                        .cloned()
                        .collect();
                    for old in moved {
                        let rest = old.strip_prefix(&from).unwrap();
                        let new = if rest.as_os_str().is_empty() {
                            to.clone()
                        } else {
                            to.join(rest)
                        };
                        let length = lengths.remove(&old).unwrap();
                        lengths.insert(new, length);
                    }
                    steps.push(Step::Rename(from, to));
                }
            }
            "unlink" | "unlinkat" | "rmdir" => {
                let name = PathBuf::from(String::from_utf8(strings(args).pop().unwrap()).unwrap());
                let path = match fd_path(args) {
                    Some(dir) if name.is_relative() => dir.join(name),
                    _ => name,
                };
                if inside(&path) {
                    lengths.remove(&path);
                    steps.push(Step::Remove(path));
                }
            }
            other => panic!("the trace has a call that this test does not model: {other}"),
        }
    }
    steps
}

/// One file's changes, with the step at which each was made.
#[derive(Default, Clone)]
struct Inode {
    changes: Vec<(usize, usize)>,
    /// Changes before this step are on disk.
    durable: usize,
}

/// Builds the directory after a cut before step `cut`; returns what was acknowledged by then.
fn rebuild(steps: &[Step], cut: usize, root: &Path, to: &Path, random: &mut Random) -> Acked {
    let strict = random.below(2) == 0;
    let mut acked = Acked::new();
    // First pass: which files there are, what each sync covered, which name changes are certain.
    let mut names: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let mut inodes: Vec<Inode> = Vec::new();
    let mut born: HashMap<usize, usize> = HashMap::new();
    let mut meta: Vec<(usize, PathBuf)> = Vec::new();
    let mut certain = 0;
    for (i, step) in steps[..cut].iter().enumerate() {
        match step {
            Step::Create(path) => {
                born.insert(i, inodes.len());
                names.insert(path.clone(), inodes.len());
                inodes.push(Inode::default());
                meta.push((i, path.clone()));
            }
            Step::Mkdir(path) | Step::Remove(path) => {
                names.remove(path);
                meta.push((i, path.clone()));
            }
            Step::Rename(from, target) => {
                rename(&mut names, from, target);
                meta.push((i, target.clone()));
            }
            Step::Write { path, .. } | Step::SetLen(path, _) => {
                if let Some(inode) = names.get(path) {
                    inodes[*inode].changes.push((i, *inode));
                }
            }
            Step::Synced { path, since } => {
                if let Some(inode) = names.get(path) {
                    let inode = &mut inodes[*inode];
                    inode.durable = inode.durable.max(*since);
                }
                // Name changes are journaled in order: a sync of one makes the earlier ones certain.
                for (at, changed) in &meta {
                    let by_dir = changed.parent() == Some(path);
                    let by_file = !strict && changed == path;
                    if *at < *since && (by_dir || by_file) {
                        certain = certain.max(*at + 1);
                    }
                }
            }
            Step::Acked(line) => note(line, &mut acked),
        }
    }
    // Second pass: the names as of a random step that keeps what is certain.
    let upto = certain + random.below(cut - certain + 1);
    let mut names: BTreeMap<PathBuf, Option<usize>> = BTreeMap::new();
    for (i, step) in steps[..upto].iter().enumerate() {
        match step {
            Step::Create(path) => drop(names.insert(path.clone(), Some(born[&i]))),
            Step::Mkdir(path) => drop(names.insert(path.clone(), None)),
            Step::Remove(path) => drop(names.remove(path)),
            Step::Rename(from, target) => rename(&mut names, from, target),
            _ => {}
        }
    }
    std::fs::create_dir_all(to).unwrap();
    for (path, inode) in names {
        let target = to.join(path.strip_prefix(root).unwrap());
        match inode {
            None => std::fs::create_dir_all(target).unwrap(),
            Some(inode) => {
                std::fs::create_dir_all(target.parent().unwrap()).unwrap();
                write_sparse(&target, &contents(steps, &inodes[inode], random));
            }
        }
    }
    acked
}

fn rename<T>(names: &mut BTreeMap<PathBuf, T>, from: &Path, to: &Path) {
    let moved: Vec<PathBuf> = names
        .keys()
        .filter(|p| p.starts_with(from))
        .cloned()
        .collect();
    for old in moved {
        let rest = old.strip_prefix(from).unwrap();
        let new = if rest.as_os_str().is_empty() {
            to.to_owned()
        } else {
            to.join(rest)
        };
        let value = names.remove(&old).unwrap();
        names.insert(new, value);
    }
}

/// A file's bytes: the synced ones and, page by page, some of the newer ones.
fn contents(steps: &[Step], inode: &Inode, random: &mut Random) -> Vec<u8> {
    let keep_percent = [0, 10, 50, 90, 100][random.below(5)];
    let mut out: Vec<u8> = Vec::new();
    // From the first lost change of a page on, its later ones are lost too.
    let mut lost: HashMap<usize, bool> = HashMap::new();
    let mut length_lost = false;
    for (at, _) in &inode.changes {
        let durable = *at < inode.durable;
        match &steps[*at] {
            Step::SetLen(_, length) => {
                length_lost |= !durable && random.below(100) >= keep_percent;
                if !length_lost {
                    out.resize(*length, 0);
                }
            }
            Step::Write { at, data, .. } => {
                let mut from = *at;
                while from < at + data.len() {
                    let page = from / PAGE;
                    let to = ((page + 1) * PAGE).min(at + data.len());
                    let gone = lost.entry(page).or_default();
                    *gone |= !durable && random.below(100) >= keep_percent;
                    if !*gone {
                        if out.len() < to {
                            out.resize(to, 0);
                        }
                        out[from..to].copy_from_slice(&data[from - at..to - at]);
                    }
                    from = to;
                }
            }
            _ => {}
        }
    }
    out
}

fn write_sparse(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (i, page) in bytes.chunks(PAGE).enumerate() {
        if page != &[0; PAGE][..page.len()] {
            file.write_all_at(page, (i * PAGE) as u64).unwrap();
        }
    }
}

fn trace(writer: &str, dir: &Path, trace: &Path, writes: usize) -> bool {
    let found = Command::new("strace").arg("-V").output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: strace is not installed");
        return false;
    }
    let plain = child_of(writer, dir);
    let status = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "100000000", "-e", CALLS, "-o"])
        .arg(trace)
        .arg(plain.get_program())
        .args(plain.get_args())
        .env(CHILD_DIR, dir)
        .env(CHILD_WRITES, writes.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    if !status.success() {
        eprintln!("skipped: strace cannot trace here ({status})");
    }
    status.success()
}

/// Every other cut is at a random call; those between come just before a sync is done, when a whole
/// group is written and none of it is certain.
fn cut_of(run: usize, steps: &[Step], random: &mut Random) -> usize {
    let anywhere = random.below(steps.len() + 1);
    if run.is_multiple_of(2) {
        return anywhere;
    }
    let is_sync = |step: &Step| matches!(step, Step::Synced { .. });
    let next = steps[anywhere.min(steps.len() - 1)..]
        .iter()
        .position(is_sync);
    next.map_or(anywhere, |next| anywhere + next)
}

/// What a writer left after one cut.
pub struct Image {
    /// The directory; gone when this is dropped.
    pub dir: tempfile::TempDir,
    /// What was acknowledged before the cut.
    pub acked: Acked,
    /// Says which cut it is.
    pub name: String,
}

/// Cuts the power of a writer at `ROTA_POWERCUT_RUNS` moments, from `ROTA_POWERCUT_SEED` on, and gives
/// each image to `judge`. `false`, with the reason printed, where nothing can be traced.
pub async fn campaign(writer: &str, mut judge: impl AsyncFnMut(&Image)) -> bool {
    let runs: usize =
        std::env::var("ROTA_POWERCUT_RUNS").map_or(RUNS, |runs| runs.parse().unwrap());
    let seed: u64 =
        std::env::var("ROTA_POWERCUT_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().canonicalize().unwrap().join("store");
    let log = scratch.path().join("trace");
    if !trace(writer, &root, &log, 60) {
        return false;
    }
    let text = std::fs::read_to_string(&log).unwrap();
    let steps = parse(&text, &root);
    drop(text);
    let acks = steps
        .iter()
        .filter(|step| matches!(step, Step::Acked(_)))
        .count();
    assert!(
        acks > 400,
        "{acks} acknowledgements in {} steps",
        steps.len()
    );
    let mut covered = 0;
    for run in 0..runs {
        let mut random = Random(
            seed.wrapping_add(run as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                | 1,
        );
        for _ in 0..8 {
            random.next();
        }
        let cut = cut_of(run, &steps, &mut random);
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let acked = rebuild(&steps, cut, &root, dir.path(), &mut random);
        covered += acked.len();
        let name = format!("run {run} (seed {seed}), cut {cut}");
        judge(&Image { dir, acked, name }).await;
    }
    println!(
        "{writer}: {runs} cuts in {} steps, {covered} acknowledged keys",
        steps.len()
    );
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_a_power_cut() {
    // How often the database without our mending would not have come back.
    let compare = std::env::var_os("ROTA_POWERCUT_COMPARE").is_some();
    let mut refused = 0;
    let judge = async |image: &Image| {
        let db = image.dir.path().join("db");
        if compare && db.exists() {
            let bare = tempfile::tempdir().unwrap();
            copy(&db, bare.path());
            // A debug build of it may also meet one of its own assertions.
            let open = || fjall::Database::builder(bare.path()).open().map(drop);
            let opened = std::panic::catch_unwind(open);
            if !matches!(opened, Ok(Ok(()))) {
                println!("{}: the bare database refuses: {opened:?}", image.name);
                refused += 1;
            }
        }
        // Twice: what the first opening mended must hold for the second.
        for _ in 0..2 {
            let store: Arc<dyn Store> = EmbeddedStore::open(image.dir.path(), options())
                .unwrap_or_else(|error| panic!("{}: {error}", image.name));
            check(&store, &image.acked).await;
        }
    };
    if campaign("durability::child_writer", judge).await && compare {
        println!("{refused} refused by the bare database");
    }
}
