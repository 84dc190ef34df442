//! Control groups of tasks, in each of the three layouts: v1, hybrid and v2.
//!
//! Every task gets a group of the `pids` controller where the host allows it, so that all its
//! descendants can be found and killed, and `cpu` and `memory` groups when it has such limits.
//! Where the host does not allow it, tasks run without, and the agent says so on the Node.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::protocol::Limits;
use crate::sys;

/// Processes and threads that one task may have: stops a fork bomb before it stops the node.
pub const PIDS_MAX: u64 = 32_768;

/// Length of the cpu quota period in microseconds, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Smallest cpu quota that the kernel takes.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// Empty groups kept for the next tasks: making and removing one costs about as much as starting
/// a process.
const POOL_MAX: usize = 256;

#[derive(Clone, Debug)]
struct Controller {
    base: PathBuf,
    v2: bool,
}

/// Where this host lets us make groups.
#[derive(Debug, Default)]
pub struct Groups {
    controllers: BTreeMap<&'static str, Controller>,
    refused: BTreeMap<&'static str, String>,
    /// Without limits of their own and without processes.
    pool: Vec<TaskGroup>,
}

/// The group of one task: its name and the controllers that it is in.
#[derive(Clone, Debug)]
pub struct TaskGroup {
    /// Name below the base.
    pub name: String,
    dirs: Vec<PathBuf>,
    memory: Option<(PathBuf, bool)>,
    limited: bool,
}

/// Mount points by controller, from /proc/self/mountinfo; `""` is v2.
fn mounts(mountinfo: &str) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = left.split(' ').nth(4) else {
            continue;
        };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup2") => {
                found.insert(String::new(), PathBuf::from(point));
            }
            Some("cgroup") => {
                for option in right.nth(1).unwrap_or("").split(',') {
                    found.insert(option.to_string(), PathBuf::from(point));
                }
            }
            _ => {}
        }
    }
    found
}

/// Own group by controller, from /proc/self/cgroup; `""` is v2.
fn own_groups(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(names), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        for name in names.split(',') {
            found.insert(name.to_string(), path.to_string());
        }
    }
    found
}

impl Groups {
    /// Looks at the host and makes the parent group `rota/<parent>` wherever possible.
    pub fn detect(parent: &str) -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (mounts, own) = (mounts(&mountinfo), own_groups(&own));
        let mut groups = Groups::default();
        for name in ["pids", "memory", "cpu"] {
            let result = match (mounts.get(name), mounts.get("")) {
                (Some(mount), _) => {
                    v1_base(mount, own.get(name), parent).map(|base| Controller { base, v2: false })
                }
                (None, Some(mount)) => v2_base(mount, own.get(""), parent, name)
                    .map(|base| Controller { base, v2: true }),
                (None, None) => Err("no control group file system is mounted".to_string()),
            };
            match result {
                Ok(c) => {
                    groups.controllers.insert(name, c);
                }
                Err(why) => {
                    groups.refused.insert(name, why);
                }
            }
        }
        groups
    }

    /// Groups switched off.
    pub fn none() -> Self {
        let mut groups = Groups::default();
        for name in ["pids", "memory", "cpu"] {
            groups
                .refused
                .insert(name, "control groups are switched off".into());
        }
        groups
    }

    /// Why a controller is not there; absent when it is.
    pub fn refused(&self, controller: &str) -> Option<String> {
        self.refused.get(controller).cloned()
    }

    /// Makes the group of a task, or takes a kept one, and opens the files by which a process
    /// enters it. A kept one has its own name.
    pub fn create(&mut self, name: &str, limits: &Limits) -> io::Result<(TaskGroup, Vec<OwnedFd>)> {
        if *limits == Limits::default()
            && let Some(group) = self.pool.pop()
        {
            let open = |dir: &PathBuf| open_procs(dir).map(OwnedFd::from);
            match group.dirs.iter().map(open).collect() {
                Ok(fds) => return Ok((group, fds)),
                Err(_) => _ = group.remove(), // somebody else's doing: a new one then
            }
        }
        let mut group = TaskGroup {
            name: name.to_string(),
            dirs: Vec::new(),
            memory: None,
            limited: *limits != Limits::default(),
        };
        let result = self.fill(&mut group, limits);
        match result {
            Ok(fds) => Ok((group, fds)),
            Err(e) => {
                group.remove();
                Err(e)
            }
        }
    }

    fn fill(&self, group: &mut TaskGroup, limits: &Limits) -> io::Result<Vec<OwnedFd>> {
        let mut fds = Vec::new();
        for (controller, wanted) in [
            ("pids", true),
            ("memory", limits.memory_bytes.is_some()),
            ("cpu", limits.cpu_milli.is_some()),
        ] {
            let Some(c) = self.controllers.get(controller).filter(|_| wanted) else {
                continue;
            };
            let dir = c.base.join(&group.name);
            if !group.dirs.contains(&dir) {
                match fs::create_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                    _ => {}
                }
                group.dirs.push(dir.clone());
                fds.push(open_procs(&dir)?.into());
            }
            let set = |file: &str, value: String| fs::write(dir.join(file), value);
            match controller {
                "pids" => set("pids.max", PIDS_MAX.to_string())?,
                "memory" => {
                    let bytes = limits.memory_bytes.unwrap_or(0).to_string();
                    if c.v2 {
                        set("memory.max", bytes)?;
                        let _ = set("memory.swap.max", "0".into()); // absent without swap accounting
                    } else {
                        set("memory.limit_in_bytes", bytes.clone())?;
                        let _ = set("memory.memsw.limit_in_bytes", bytes); // likewise
                    }
                    group.memory = Some((dir.clone(), c.v2));
                }
                _ => {
                    let quota = (limits.cpu_milli.unwrap_or(0) * CPU_PERIOD_US / 1000)
                        .max(CPU_QUOTA_MIN_US);
                    if c.v2 {
                        set("cpu.max", format!("{quota} {CPU_PERIOD_US}"))?;
                    } else {
                        set("cpu.cfs_period_us", CPU_PERIOD_US.to_string())?;
                        set("cpu.cfs_quota_us", quota.to_string())?;
                    }
                }
            }
        }
        Ok(fds)
    }

    /// Keeps a group that no process is in; gives it back when it cannot be used again.
    pub fn keep(&mut self, group: TaskGroup) -> Option<TaskGroup> {
        if group.limited || group.dirs.is_empty() || self.pool.len() >= POOL_MAX {
            return Some(group);
        }
        self.pool.push(group);
        None
    }

    /// Removes what is kept.
    pub fn clear(&mut self) {
        for group in self.pool.drain(..) {
            group.remove();
        }
    }

    /// The group of a task that an earlier supervisor made, as far as it still exists.
    pub fn find(&self, name: &str) -> Option<TaskGroup> {
        let mut dirs = Vec::new();
        for c in self.controllers.values() {
            let dir = c.base.join(name);
            if dir.is_dir() && !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        (!dirs.is_empty()).then(|| TaskGroup {
            name: name.to_string(),
            dirs,
            memory: None,
            limited: true, // perhaps
        })
    }

    /// Kills and removes groups whose name begins with `prefix` and that are not among `known`.
    pub fn reap_unknown(&self, prefix: &str, known: &dyn Fn(&str) -> bool) {
        for c in self.controllers.values() {
            for entry in fs::read_dir(&c.base).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(prefix) && entry.path().is_dir() && !known(&name) {
                    let group = TaskGroup {
                        name,
                        dirs: vec![entry.path()],
                        memory: None,
                        limited: true,
                    };
                    group.kill();
                    group.remove();
                }
            }
        }
    }
}

fn open_procs(dir: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .open(dir.join("cgroup.procs"))
}

fn v1_base(mount: &Path, own: Option<&String>, parent: &str) -> Result<PathBuf, String> {
    // Below our own group, so that limits around us hold for our tasks too; the path may be
    // outside of what is mounted here (in a container), then the mount's root is our own group.
    let own = own.map_or("", |p| p.trim_start_matches('/'));
    let start = Some(mount.join(own))
        .filter(|p| p.is_dir())
        .unwrap_or(mount.into());
    let base = start.join("rota").join(parent);
    fs::create_dir_all(&base).map_err(|e| format!("{} cannot be made: {e}", base.display()))?;
    let probe = fs::OpenOptions::new()
        .write(true)
        .open(base.join("cgroup.procs"));
    probe.map_err(|e| format!("{} cannot be written: {e}", base.display()))?;
    Ok(base)
}

fn v2_base(
    mount: &Path,
    own: Option<&String>,
    parent: &str,
    name: &str,
) -> Result<PathBuf, String> {
    let own = own.map_or("", |p| p.trim_start_matches('/'));
    let start = Some(mount.join(own))
        .filter(|p| p.is_dir())
        .unwrap_or(mount.into());
    let offered = fs::read_to_string(start.join("cgroup.controllers")).unwrap_or_default();
    if !offered.split_whitespace().any(|c| c == name) {
        return Err(format!(
            "the controller {name} is not delegated to {}",
            start.display()
        ));
    }
    let top = start.join("rota");
    let base = top.join(parent);
    fs::create_dir_all(&base).map_err(|e| format!("{} cannot be made: {e}", base.display()))?;
    for dir in [&start, &top, &base] {
        let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
        if enabled.split_whitespace().any(|c| c == name) {
            continue;
        }
        // Refused for a group other than the root that holds processes itself.
        fs::write(dir.join("cgroup.subtree_control"), format!("+{name}"))
            .map_err(|e| format!("{name} cannot be enabled in {}: {e}", dir.display()))?;
    }
    Ok(base)
}

impl TaskGroup {
    /// Kills every process in the group, again until none is left or it seems hopeless. True when
    /// there was none to begin with, so that none can come either.
    pub fn kill(&self) -> bool {
        let mut none = true;
        for dir in &self.dirs {
            // A fork may win a round; it cannot win many against the pids limit.
            for round in 0..16 {
                let pids = fs::read_to_string(dir.join("cgroup.procs"));
                none &= pids.as_ref().is_ok_and(String::is_empty);
                let pids = pids.unwrap_or_default();
                if pids.is_empty() || round == 0 && fs::write(dir.join("cgroup.kill"), "1").is_ok()
                {
                    break;
                }
                let mut any = false;
                for pid in pids.lines().filter_map(|p| p.parse().ok()) {
                    any |= sys::kill(pid, libc::SIGKILL);
                }
                if !any {
                    break;
                }
            }
        }
        none
    }

    /// Whether the kernel killed a process of the group for its memory limit.
    pub fn out_of_memory(&self) -> bool {
        let Some((dir, v2)) = &self.memory else {
            return false;
        };
        let file = if *v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        fs::read_to_string(dir.join(file))
            .unwrap_or_default()
            .lines()
            .any(|l| l.strip_prefix("oom_kill ").is_some_and(|n| n.trim() != "0"))
    }

    /// Removes the group; false while processes are in it.
    pub fn remove(&self) -> bool {
        let mut gone = true;
        for dir in &self.dirs {
            if let Err(e) = fs::remove_dir(dir) {
                gone &= e.kind() == io::ErrorKind::NotFound;
            }
        }
        gone
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_layouts() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      22 1 0:20 / /proc rw - proc proc rw\n";
        let m = mounts(hybrid);
        assert_eq!(m["cpu"], PathBuf::from("/sys/fs/cgroup/cpu"));
        assert_eq!(m["cpuacct"], PathBuf::from("/sys/fs/cgroup/cpu"));
        assert_eq!(m[""], PathBuf::from("/sys/fs/cgroup/unified"));
        assert!(!m.contains_key("memory"));
        let own = own_groups("4:memory:/a/b\n2:cpu,cpuacct:/\n0::/user.slice\n");
        assert_eq!(own["memory"], "/a/b");
        assert_eq!(own["cpuacct"], "/");
        assert_eq!(own[""], "/user.slice");
    }
}
