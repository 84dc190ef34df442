//! A world in which jobs arrive, run, are evicted, come back and end, with every checker on.
//! The tests of seeded defects run it too.

use std::collections::{BTreeMap, BTreeSet};

use rota_scheduler::check::{Event, History, Reason, check, snapshot};
use rota_scheduler::*;

pub fn cpu(amount: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([("cpu".to_string(), amount)])
}

pub fn class(amount: i64) -> Class {
    Class::new(ClassSpec {
        requests: cpu(amount),
        ..ClassSpec::default()
    })
}

pub fn cluster(nodes: &[i64], queues: &[(&str, QueueSpec)]) -> Cluster {
    let mut c = Cluster::new();
    for (n, amount) in nodes.iter().enumerate() {
        let spec = NodeSpec {
            allocatable: cpu(*amount),
            ready: true,
            ..NodeSpec::default()
        };
        c.upsert_node(&format!("n{n}"), spec);
    }
    for (name, spec) in queues {
        c.set_queue(name, Some(spec.clone()));
    }
    c
}

/// What runs or waits, once per index of a demand.
#[derive(Clone, Debug)]
pub struct Job {
    pub queue: usize,
    pub amount: i64,
    pub count: u32,
    pub priority: i32,
    pub run: Time,
    pub gang: bool,
    pub arrives: Time,
}

const QUEUES: [&str; 4] = ["priority", "shortest", "left", "right"];

/// A task of a job in the world: its place, and whether it has started.
struct Held {
    task: TaskId,
    started: Option<Time>,
    leaves: Option<Time>,
}

/// Runs jobs until all are done: 10 s a step, what is evicted needs 20 s to leave and starts over.
pub fn live(jobs: &[Job]) {
    let srtf = QueueSpec {
        order: Order::ShortestRemainingTimeFirst,
        ..QueueSpec::default()
    };
    let owed = QueueSpec {
        guarantee: cpu(3),
        ..QueueSpec::default()
    };
    let specs = [QueueSpec::default(), srtf, owed.clone(), owed];
    let queues: Vec<_> = QUEUES.into_iter().zip(specs).collect();
    let mut c = cluster(&[4, 4, 6], &queues);
    let ids: Vec<QueueId> = QUEUES.iter().map(|q| c.queue(q)).collect();
    let options = Options {
        restart: 30,
        ..Options::default()
    };
    let mut history = History::new(200);
    let mut held: BTreeMap<(u64, u32), Held> = BTreeMap::new();
    let mut done: BTreeSet<(u64, u32)> = BTreeSet::new();
    let mut wrong = Vec::new();
    let all: usize = jobs.iter().map(|j| j.count as usize).sum();
    for step in 1..2000 {
        if done.len() == all {
            return;
        }
        let now = step * 10;
        for (work, h) in &held {
            let run = jobs[work.0 as usize - 1].run;
            let ended = h.leaves.is_none() && h.started.is_some_and(|s| s + run <= now);
            let left = h.leaves.is_some_and(|l| l <= now);
            if ended || left {
                c.release(h.task);
                let for_ever = ended;
                wrong.extend(history.see(
                    now,
                    &Event::Ended {
                        work: *work,
                        for_ever,
                    },
                ));
                if ended {
                    done.insert(*work);
                }
            }
        }
        held.retain(|work, h| !done.contains(work) && h.leaves.is_none_or(|l| l > now));
        let node_of: BTreeMap<TaskId, String> = (0..3)
            .filter_map(|n| c.node(&format!("n{n}")))
            .flat_map(|n| c.tasks_on(n).map(move |t| (t, n)).collect::<Vec<_>>())
            .map(|(t, n)| (t, c.node_name(n).to_string()))
            .collect();
        for (work, h) in &mut held {
            if h.started.is_none() && h.leaves.is_none() && c.may_start(h.task) {
                h.started = Some(now);
                let placed = Event::Placed {
                    work: *work,
                    node: &node_of[&h.task],
                    priority: jobs[work.0 as usize - 1].priority,
                    fenced: true,
                };
                wrong.extend(history.see(now, &placed));
            }
        }
        let mut demands = Vec::new();
        for (j, job) in jobs.iter().enumerate() {
            let id = j as u64 + 1;
            let waits = |i: &u32| !held.contains_key(&(id, *i)) && !done.contains(&(id, *i));
            let waiting = (0..job.count).filter(waits).count() as u32;
            // A gang whose members leave starts again when all have left.
            let whole =
                waiting + (0..job.count).filter(|i| done.contains(&(id, *i))).count() as u32;
            if waiting == 0 || job.arrives > now || (job.gang && whole < job.count) {
                continue;
            }
            demands.push(Demand {
                priority: job.priority,
                created: job.arrives,
                run: job.run,
                run_max: job.run,
                gang: if job.gang { id } else { 0 },
                min: if job.gang { waiting } else { 0 },
                preemptible: true,
                ..Demand::new(id, class(job.amount), ids[job.queue], waiting)
            });
        }
        let outcome = cycle(&mut c, &demands, now, options);
        wrong.extend(check(&c));
        let placed_for: BTreeSet<u32> = outcome.placements.iter().map(|p| p.demand).collect();
        // Of a gang that runs, those that are not done are there.
        let gangs = jobs.iter().zip(1u64..).filter(|(job, _)| job.gang);
        let mins = gangs.map(|(job, id)| {
            let over = (0..job.count).filter(|i| done.contains(&(id, *i))).count();
            (id, job.count - over as u32)
        });
        let mins: BTreeMap<u64, u32> = mins.collect();
        wrong.extend(snapshot(&c, &mins));
        let mut new: BTreeMap<u32, (u64, u32)> = BTreeMap::new();
        for p in &outcome.placements {
            let id = demands[p.demand as usize].id;
            let next = |i: &u32| !held.contains_key(&(id, *i)) && !done.contains(&(id, *i));
            let index = (0..jobs[id as usize - 1].count).find(next).unwrap();
            new.entry(p.demand).or_insert((id, index));
            let started = (!p.waits).then_some(now);
            let (task, leaves) = (p.task, None);
            held.insert(
                (id, index),
                Held {
                    task,
                    started,
                    leaves,
                },
            );
            if !p.waits {
                let placed = Event::Placed {
                    work: (id, index),
                    node: c.node_name(p.node),
                    priority: jobs[id as usize - 1].priority,
                    fenced: true,
                };
                wrong.extend(history.see(now, &placed));
            }
        }
        for e in &outcome.evictions {
            if !placed_for.contains(&e.demand) {
                wrong.push("somebody is evicted for nobody".to_string());
            }
            let by = &demands[e.demand as usize];
            let (work, h) = held.iter_mut().find(|(_, h)| h.task == e.task).unwrap();
            let victim = &jobs[work.0 as usize - 1];
            let reason = if ids[victim.queue] != by.queue {
                Reason::Reclaim
            } else if QUEUES[victim.queue] == "shortest" {
                let ran = h.started.map_or(0, |s| now - s);
                Reason::Shorter {
                    victim: victim.run - ran,
                    by: by.run,
                }
            } else {
                Reason::Priority
            };
            let out = Event::Evicted {
                work: *work,
                by: new[&e.demand],
                priority: by.priority,
                reason,
            };
            wrong.extend(history.see(now, &out));
            h.leaves = Some(if h.started.is_some() { now + 20 } else { now });
        }
        wrong.extend(history.overdue(now));
        assert_eq!(wrong, Vec::<String>::new(), "at {now}");
    }
    panic!("{} of {all} tasks are done", done.len());
}
