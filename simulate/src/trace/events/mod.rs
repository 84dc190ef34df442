//! Rota's own event log: a JSON object per line, in order of time.
//!
//! It is what a cluster records and what a simulation can write, so that a run can be replayed with
//! other rules. Times are integer milliseconds from any origin. How long a task really ran comes
//! from its start and its end; a task without them runs for the job's `run`, else for ever.
//! `docs/designs/simulate.md` lists the fields.

mod convert;
mod line;

use std::collections::{BTreeMap, HashMap};

use rota_scheduler::{NodeSpec, Time};

pub use self::convert::{changed, submitted};
use self::convert::{job, node_change, queue_change};
pub use self::line::*;
use super::{Change, Job, Machine, ReadError, TASKS_MAX, TIME_MAX, Trace};

/// Reads a log.
pub fn read(text: &str) -> Result<Trace, ReadError> {
    let mut trace = Trace::default();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut started: HashMap<(usize, u32), Time> = HashMap::new();
    let mut ran: HashMap<(usize, u32), Time> = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let bad = |found: String, expected: &str| ReadError::new(at + 1, found, expected);
        let event: Event = serde_json::from_str(line).map_err(|e| {
            bad(
                e.to_string(),
                "an event: {\"time\": ms, \"kind\": node|queue|submit|start|end|evict|cancel, ...}",
            )
        })?;
        let time = event.time;
        if !(0..=TIME_MAX).contains(&time) {
            return Err(bad(
                format!("time {time}"),
                "milliseconds of at least 0 and at most 2^50",
            ));
        }
        let number = |job: &str| {
            let number = numbers.get(job).copied();
            number.ok_or_else(|| bad(format!("job {job}"), "a job submitted on a line before"))
        };
        match event.kind {
            Kind::Node(node) => trace.changes.push((time, node_change(node))),
            Kind::Queue(queue) => trace.changes.push((time, queue_change(queue))),
            Kind::Submit(submit) => {
                if numbers.contains_key(&submit.job) {
                    return Err(bad(
                        format!("job {} a second time", submit.job),
                        "one submit per job",
                    ));
                }
                numbers.insert(submit.job.clone(), trace.jobs.len());
                trace.jobs.push(job(time, submit));
            }
            Kind::Start { job, index, .. } => {
                started.insert((number(&job)?, index), time);
            }
            Kind::End { job, index } => {
                let key = (number(&job)?, index);
                if let Some(start) = started.remove(&key) {
                    *ran.entry(key).or_default() += (time - start).max(0);
                }
            }
            // What it did until then is done again.
            Kind::Evict { job, index } => {
                started.remove(&(number(&job)?, index));
            }
            Kind::Cancel { job } => trace.changes.push((time, Change::Cancel(number(&job)?))),
        }
    }
    for (number, job) in trace.jobs.iter_mut().enumerate() {
        let fallback = job.runs[0];
        // One entry is enough while all that is known is the same.
        let known = (0..job.count.min(TASKS_MAX))
            .rev()
            .find(|i| ran.contains_key(&(number, *i)));
        if let Some(last) = known {
            job.runs = (0..=last)
                .map(|i| ran.get(&(number, i)).copied().unwrap_or(fallback))
                .collect();
            if last + 1 < job.count {
                job.runs.push(fallback);
            }
            let first = job.runs[0];
            if job.runs.iter().all(|run| *run == first) {
                job.runs.truncate(1);
            }
        }
    }
    drop_impossible(&mut trace);
    Ok(trace)
}

/// Takes out jobs whose size makes no sense, and keeps the numbers of the others right.
fn drop_impossible(trace: &mut Trace) {
    let mut moved = Vec::with_capacity(trace.jobs.len());
    let mut kept = Vec::new();
    for job in std::mem::take(&mut trace.jobs) {
        if job.count == 0 || job.count > TASKS_MAX || job.min > job.count {
            trace.reject("its number of tasks is out of range");
            moved.push(None);
        } else {
            moved.push(Some(kept.len()));
            kept.push(job);
        }
    }
    // Sorting keeps the order of equals; a log is sorted already, so numbers rarely change.
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by_key(|i| kept[*i].submit);
    let mut position = vec![0; kept.len()];
    for (new, old) in order.iter().enumerate() {
        position[*old] = new;
    }
    let mut slots: Vec<Option<Job>> = kept.into_iter().map(Some).collect();
    trace.jobs = order.iter().filter_map(|i| slots[*i].take()).collect();
    trace.changes.retain_mut(|(_, change)| match change {
        Change::Cancel(number) => match moved[*number] {
            Some(new) => {
                *number = position[new];
                true
            }
            None => false,
        },
        _ => true,
    });
    trace.changes.sort_by_key(|(time, _)| *time);
}

/// A node for `--nodes N`: 16 CPUs and 64 GiB.
pub fn node(_: u64, _: Machine) -> NodeSpec {
    NodeSpec {
        allocatable: BTreeMap::from([("cpu".into(), 16_000), ("memory".into(), 64 << 30)]),
        ready: true,
        ..NodeSpec::default()
    }
}
