//! Preemption as the cycle does it: stories, and a world in which evicted tasks come back.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rota_scheduler::check::{Event, History, Reason, check, over_allocated, snapshot};
use rota_scheduler::*;

fn cpu(amount: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([("cpu".to_string(), amount)])
}

fn class(amount: i64) -> Class {
    Class::new(ClassSpec {
        requests: cpu(amount),
        ..ClassSpec::default()
    })
}

fn cluster(nodes: &[i64], queues: &[(&str, QueueSpec)]) -> Cluster {
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

/// A task that may be evicted, started at this time.
fn runs(start: Time) -> Run {
    Run {
        preemptible: true,
        ..Run::since(start)
    }
}

fn urgent(c: &mut Cluster, queue: &str, amount: i64, count: u32) -> Demand {
    Demand {
        priority: 5,
        ..Demand::new(99, class(amount), c.queue(queue), count)
    }
}

/// One cycle at time 100: who is evicted, and how many are placed.
fn decide(c: &mut Cluster, demands: &[Demand]) -> (BTreeSet<TaskId>, usize) {
    let outcome = cycle(c, demands, 100, Options::default());
    assert_eq!(check(c), Vec::<String>::new());
    assert_eq!(over_allocated(c), []);
    let evicted = outcome.evictions.iter().map(|e| e.task).collect();
    (evicted, outcome.placements.len())
}

#[test]
fn a_gang_leaves_whole_and_all_its_room_is_used() {
    let mut c = cluster(&[4, 4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    let gang = Run {
        gang: 7,
        ..runs(10)
    };
    let members: BTreeSet<TaskId> = ["n0", "n1"]
        .map(|node| c.bind(node, q, &class(4), gang))
        .into();
    let demand = urgent(&mut c, "q", 4, 2);
    assert_eq!(decide(&mut c, &[demand]), (members, 2));
}

#[test]
fn a_gang_with_one_protected_member_stays() {
    let mut c = cluster(&[4, 4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    let gang = Run {
        gang: 7,
        ..runs(10)
    };
    c.bind("n0", q, &class(4), gang);
    let kept = Run {
        preemptible: false,
        ..gang
    };
    c.bind("n1", q, &class(4), kept);
    let demand = urgent(&mut c, "q", 4, 1);
    assert_eq!(decide(&mut c, &[demand]), (BTreeSet::new(), 0));
}

#[test]
fn a_gang_evicts_for_all_its_members_or_for_none() {
    let mut c = cluster(&[4, 4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    c.bind("n0", q, &class(4), runs(10));
    let kept = Run {
        preemptible: false,
        ..runs(10)
    };
    c.bind("n1", q, &class(4), kept);
    let mut gang = urgent(&mut c, "q", 4, 2);
    (gang.gang, gang.min) = (3, 2);
    assert_eq!(decide(&mut c, &[gang.clone()]), (BTreeSet::new(), 0));
    (gang.count, gang.min) = (1, 1);
    assert_eq!(decide(&mut c, &[gang]).1, 1);
}

#[test]
fn nobody_is_evicted_twice_for_the_same_room() {
    let mut c = cluster(&[4, 4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    let young = c.bind("n0", q, &class(4), runs(90));
    let old = c.bind("n1", q, &class(4), runs(10));
    let half = urgent(&mut c, "q", 2, 1);
    assert_eq!(decide(&mut c, &[half.clone()]), ([young].into(), 1));
    let second = Demand {
        id: 98,
        ..half.clone()
    };
    assert_eq!(decide(&mut c, &[second]), (BTreeSet::new(), 1));
    let third = Demand { id: 97, ..half };
    assert_eq!(decide(&mut c, &[third]), ([old].into(), 1));
}

#[test]
fn evictions_stay_below_what_a_cycle_may_do() {
    let mut c = cluster(&[4], &[("q", QueueSpec::default())]);
    let q = c.queue("q");
    for _ in 0..4 {
        c.bind("n0", q, &class(1), runs(10));
    }
    let demand = urgent(&mut c, "q", 1, 4);
    let options = Options {
        evictions: 3,
        ..Options::default()
    };
    let outcome = cycle(&mut c, &[demand], 100, options);
    assert_eq!((outcome.evictions.len(), outcome.placements.len()), (3, 3));
}

#[test]
fn only_what_comes_later_in_the_order_of_the_queue_is_evicted() {
    let evicts = |order, run, victim_end, preempt_within| {
        let spec = QueueSpec {
            order,
            preempt_within,
            ..QueueSpec::default()
        };
        let mut c = cluster(&[4], &[("q", spec)]);
        let q = c.queue("q");
        let victim = Run {
            end: victim_end,
            ..runs(90)
        };
        c.bind("n0", q, &class(4), victim);
        let demand = Demand {
            run,
            ..urgent(&mut c, "q", 4, 1)
        };
        decide(&mut c, &[demand]).1 == 1
    };
    assert!(evicts(Order::Priority, 500, 200, true));
    assert!(!evicts(Order::Priority, 500, 200, false));
    assert!(!evicts(Order::Fifo, 500, 200, true));
    assert!(!evicts(Order::ShortestJobFirst, 1, 900, true));
    let srtf = Order::ShortestRemainingTimeFirst;
    assert!(evicts(srtf, 10, 900, true));
    // 10 s are lost and a restart takes its time: not for a gain that small.
    assert!(!evicts(srtf, 90, 200, true));
    assert!(!evicts(srtf, NEVER, 900, true), "nobody knows");
}

#[test]
fn a_limit_of_the_queue_is_room_too() {
    let spec = QueueSpec {
        limit: cpu(4),
        ..QueueSpec::default()
    };
    let mut c = cluster(&[4, 4], &[("q", spec)]);
    let q = c.queue("q");
    let low = c.bind("n0", q, &class(4), runs(10));
    let demand = urgent(&mut c, "q", 4, 1);
    // A node is free, but not the queue.
    let outcome = cycle(&mut c, &[demand], 100, Options::default());
    assert_eq!(outcome.evictions.len(), 1);
    assert_eq!(&**c.node_name(outcome.placements[0].node), "n1");
    assert!(!c.may_start(outcome.placements[0].task));
    c.release(low);
    assert!(c.may_start(outcome.placements[0].task));
}

#[test]
fn a_guarantee_is_taken_back_from_borrowers_and_no_more() {
    let owed = |guarantee, reclaim| QueueSpec {
        guarantee: cpu(guarantee),
        reclaim,
        ..QueueSpec::default()
    };
    for (reclaim, evicted) in [(Reclaim::PreemptBorrowers, 2), (Reclaim::WhenIdle, 0)] {
        let queues = [("lender", owed(2, reclaim)), ("borrower", owed(2, reclaim))];
        let mut c = cluster(&[4], &queues);
        let borrower = c.queue("borrower");
        for _ in 0..4 {
            c.bind("n0", borrower, &class(1), runs(10));
        }
        let lender = c.queue("lender");
        let demand = Demand::new(1, class(1), lender, 4);
        assert_eq!(decide(&mut c, &[demand]).0.len(), evicted);
    }
}

/// What runs or waits, once per index of a demand.
#[derive(Clone, Debug)]
struct Job {
    queue: usize,
    amount: i64,
    count: u32,
    priority: i32,
    run: Time,
    gang: bool,
    arrives: Time,
}

fn job() -> impl Strategy<Value = Job> {
    (
        0..4usize,
        1..5i64,
        1..4u32,
        0..4i32,
        1..30i64,
        any::<bool>(),
        0..40i64,
    )
        .prop_map(|(queue, amount, count, priority, run, gang, arrives)| Job {
            queue,
            amount,
            count,
            priority,
            run: run * 20,
            gang,
            arrives: arrives * 10,
        })
}

const QUEUES: [&str; 4] = ["priority", "shortest", "left", "right"];

/// A task of a job in the world: its place, and whether it has started.
struct Held {
    task: TaskId,
    started: Option<Time>,
    leaves: Option<Time>,
}

/// Runs jobs until all are done: 10 s a step, what is evicted needs 20 s to leave and starts over.
fn live(jobs: &[Job]) {
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
        let outcome = cycle(&mut c, &demands, now, Options::default());
        wrong.extend(check(&c));
        let placed_for: BTreeSet<u32> = outcome.placements.iter().map(|p| p.demand).collect();
        let mut mins = BTreeMap::new();
        for demand in demands.iter().filter(|d| d.gang != 0) {
            mins.insert(demand.gang, demand.min);
        }
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn evicted_tasks_come_back_and_everything_gets_done(
        jobs in prop::collection::vec(job(), 1..14)
    ) {
        live(&jobs);
    }
}
