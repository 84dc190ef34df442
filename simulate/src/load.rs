//! Bringing a trace to an offered load.

use rota_scheduler::{NEVER, Time};

use crate::nodes::Nodes;
use crate::random::Random;
use crate::trace::{Job, LoadRule, TIME_MAX, Trace};

/// Changes the trace so that it offers `percent` of what the nodes have.
///
/// [`LoadRule::Stretch`]: submission times are multiplied so that work per time is `percent` of the
/// resource that is short. [`LoadRule::Fill`]: the protocol of "Beware of Fragmentation" (Weng et al.,
/// USENIX ATC 2023): the trace's tasks arrive in seeded random order, then tasks are drawn
/// from the trace with replacement, until the GPUs asked for reach `percent` of all GPUs. Tasks are
/// placed one by one, never end, and are dropped when they do not fit.
pub fn apply(trace: &mut Trace, rule: LoadRule, nodes: &Nodes, percent: u32, seed: u64) {
    match rule {
        LoadRule::Stretch => stretch(trace, nodes, percent),
        LoadRule::Fill => fill(trace, nodes, percent, seed),
    }
}

/// Per resource of the nodes: what they have in all, and whether it comes as devices.
fn capacities(nodes: &Nodes) -> Vec<(&str, i128, bool)> {
    let mut totals = std::collections::BTreeMap::new();
    for (_, spec) in nodes {
        for (resource, amount) in &spec.allocatable {
            let total = totals.entry(resource.as_str()).or_insert((0i128, false));
            total.0 += i128::from((*amount).max(0));
            total.1 |= spec.devices.contains(resource);
        }
    }
    totals.into_iter().map(|(r, (t, d))| (r, t, d)).collect()
}

fn stretch(trace: &mut Trace, nodes: &Nodes, percent: u32) {
    let first = trace.jobs.first().map_or(0, |j| j.submit);
    let span = trace.jobs.last().map_or(0, |j| j.submit) - first;
    let offered = capacities(nodes)
        .into_iter()
        .filter(|(_, capacity, _)| *capacity > 0)
        .map(|(resource, capacity, _)| {
            let work: f64 = trace
                .jobs
                .iter()
                .map(|job| {
                    let amount = job.class.spec().requests.get(resource);
                    let time: f64 = (0..job.count).map(|i| finite(job.run(i)) as f64).sum();
                    time * amount.copied().unwrap_or(0) as f64
                })
                .sum();
            work / capacity as f64
        })
        .fold(0.0, f64::max);
    if span <= 0 || offered <= 0.0 || percent == 0 {
        return;
    }
    let factor = offered / (span as f64 * f64::from(percent) / 100.0);
    let moved = |time: Time| {
        let late = ((time - first) as f64 * factor).round() as Time;
        first.saturating_add(late).clamp(0, TIME_MAX)
    };
    for job in &mut trace.jobs {
        job.submit = moved(job.submit);
    }
    for (time, _) in &mut trace.changes {
        *time = moved(*time);
    }
}

fn finite(run: Time) -> Time {
    if run == NEVER { 0 } else { run }
}

fn fill(trace: &mut Trace, nodes: &Nodes, percent: u32, seed: u64) {
    let devices: Vec<(&str, i128)> = capacities(nodes)
        .into_iter()
        .filter_map(|(r, total, devices)| devices.then_some((r, total)))
        .collect();
    let total: i128 = devices.iter().map(|(_, total)| total).sum();
    let target = total * i128::from(percent) / 100;
    let asked = |job: &Job| -> i128 {
        let requests = &job.class.spec().requests;
        let each = devices.iter().filter_map(|(r, _)| requests.get(*r));
        each.map(|a| i128::from(*a)).sum::<i128>() * i128::from(job.count)
    };
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..trace.jobs.len()).collect();
    random.shuffle(&mut order);
    let drawable = trace.jobs.iter().any(|job| asked(job) > 0);
    let mut jobs = Vec::new();
    let mut arrived = 0;
    while arrived < target {
        let next = match order.get(jobs.len()) {
            Some(next) => *next,
            // Without any GPU task the target would never be reached.
            None if !drawable => break,
            None => random.below(trace.jobs.len()),
        };
        let mut job = trace.jobs[next].clone();
        arrived += asked(&job);
        if jobs.len() >= order.len() {
            job.id = format!("{}+{}", job.id, jobs.len());
        }
        job.submit = jobs.len() as Time;
        job.runs = vec![NEVER];
        job.limit = NEVER;
        job.impatient = true;
        jobs.push(job);
    }
    trace.jobs = jobs;
    trace.changes.clear();
}
