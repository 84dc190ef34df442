//! EASY as Batsim does it, written down naively: nodes by number, lowest first; the first job that
//! does not fit reserves the lowest of the nodes free at its shadow time; what may last longer
//! stays off them.

use std::collections::BTreeSet;

use rota_simulate::trace::Trace;

/// Start of each job, by its position in the trace, on `n` nodes that one task fills.
pub fn easy(trace: &Trace, n: u32) -> Vec<i64> {
    let mut starts = vec![0; trace.jobs.len()];
    let mut free: BTreeSet<u32> = (0..n).collect();
    // End, promised end, nodes.
    let mut running: Vec<(i64, i64, BTreeSet<u32>)> = Vec::new();
    let mut queue: Vec<usize> = Vec::new();
    let mut next = 0;
    loop {
        let submit = trace.jobs.get(next).map(|j| j.submit);
        let end = running.iter().map(|r| r.0).min();
        let Some(now) = submit.into_iter().chain(end).min() else {
            return starts;
        };
        running.retain(|(end, _, nodes)| {
            if *end <= now {
                free.extend(nodes);
            }
            *end > now
        });
        while next < trace.jobs.len() && trace.jobs[next].submit <= now {
            queue.push(next);
            next += 1;
        }
        let mut shadow: Option<(i64, BTreeSet<u32>)> = None;
        queue.retain(|number| {
            let job = &trace.jobs[*number];
            let usable: Vec<u32> = match &shadow {
                Some((at, reserved)) if now + job.limit > *at => {
                    free.difference(reserved).copied().collect()
                }
                _ => free.iter().copied().collect(),
            };
            let size = job.count as usize;
            if usable.len() >= size {
                let nodes: BTreeSet<u32> = usable[..size].iter().copied().collect();
                free.retain(|node| !nodes.contains(node));
                running.push((now + job.run(0), now + job.limit, nodes));
                starts[*number] = now;
                return false;
            }
            if shadow.is_none() {
                shadow = Some(reserve(&free, &running, size));
            }
            true
        });
    }
}

fn reserve(
    free: &BTreeSet<u32>,
    running: &[(i64, i64, BTreeSet<u32>)],
    size: usize,
) -> (i64, BTreeSet<u32>) {
    let mut ends: Vec<i64> = running.iter().map(|r| r.1).collect();
    ends.sort_unstable();
    for at in ends {
        let mut there = free.clone();
        for (_, promised, nodes) in running {
            if *promised <= at {
                there.extend(nodes);
            }
        }
        if there.len() >= size {
            return (at, there.into_iter().take(size).collect());
        }
    }
    panic!("a job larger than the cluster");
}
