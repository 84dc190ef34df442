//! Ahead against a timeline that is looked up moment by moment.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Ahead, Lanes, Need, Pick, Slot};
use crate::cluster::{Cluster, NodeId};
use crate::place::{Ask, Budget, place};
use crate::spec::{Class, ClassSpec, NEVER, NodeSpec, Policy, QueueSpec, Run, Time};

const NOW: Time = 100;
/// All ends and runs of the tests are below; what is free then is free for ever.
const HORIZON: Time = 240;

#[derive(Clone, Debug)]
struct Case {
    /// CPUs and memory per node.
    nodes: Vec<(i64, i64)>,
    /// Node, CPUs, memory, end.
    tasks: Vec<(usize, i64, i64, Time)>,
    /// Demands in order: each a list of (CPUs, memory, count, run).
    demands: Vec<Vec<(i64, i64, u32, Time)>>,
}

fn case(needs: std::ops::Range<usize>) -> impl Strategy<Value = Case> {
    let nodes = prop::collection::vec((1i64..5, 1i64..5), 1..5);
    let end = prop_oneof![5 => NOW + 1..NOW + 20, 1 => Just(NEVER), 1 => Just(NOW - 5)];
    let tasks = prop::collection::vec((0usize..4, 0i64..4, 0i64..4, end), 0..8);
    let run = prop_oneof![6 => 1i64..12, 1 => Just(NEVER)];
    let need = (1i64..4, 0i64..3, 1u32..4, run);
    let demands = prop::collection::vec(prop::collection::vec(need, needs), 1..6);
    (nodes, tasks, demands).prop_map(|(nodes, tasks, demands)| Case {
        nodes,
        tasks,
        demands,
    })
}

fn class(cpu: i64, memory: i64) -> Class {
    let requests = [("cpu".to_string(), cpu), ("memory".to_string(), memory)];
    Class::new(ClassSpec {
        requests: requests.into(),
        ..ClassSpec::default()
    })
}

fn build(case: &Case) -> Cluster {
    let mut cluster = Cluster::new();
    let queue = cluster.set_queue("q", Some(QueueSpec::default()));
    for (i, (cpu, memory)) in case.nodes.iter().enumerate() {
        let allocatable = [("cpu".to_string(), *cpu), ("memory".to_string(), *memory)];
        cluster.upsert_node(
            &i.to_string(),
            NodeSpec {
                allocatable: allocatable.into(),
                ready: true,
                ..NodeSpec::default()
            },
        );
    }
    for (node, cpu, memory, end) in &case.tasks {
        let node = NodeId((node % case.nodes.len()) as u32);
        let free: BTreeMap<String, i64> = cluster.free(node).map(|(r, f)| (r.into(), f)).collect();
        if *cpu > free["cpu"] || *memory > free["memory"] {
            continue;
        }
        let run = Run {
            end: *end,
            end_max: *end,
            ..Run::since(NOW - 10)
        };
        let name = cluster.node_name(node).clone();
        cluster.bind(&name, queue, &class(*cpu, *memory), run);
    }
    cluster
}

fn needs(cluster: &mut Cluster, demand: &[(i64, i64, u32, Time)]) -> Vec<Need> {
    let needs = demand.iter().map(|(cpu, memory, count, run_max)| Need {
        class: cluster.class(&class(*cpu, *memory)),
        count: *count,
        run_max: *run_max,
    });
    needs.collect()
}

/// Free amounts per moment from NOW to HORIZON, per node and resource.
type Timeline = Vec<Vec<[i64; 2]>>;

fn timeline(cluster: &Cluster) -> Timeline {
    let at = |t: Time| {
        let nodes = 0..cluster.nodes.len() as u32;
        let free = nodes.map(|n| {
            let all = &cluster.nodes[n as usize].spec.allocatable;
            let mut free = [all["cpu"], all["memory"]];
            let mut task = cluster.nodes[n as usize].first_task;
            while let Some(found) = cluster.tasks.slots.get(task as usize) {
                let run = cluster.tasks.runs.get(found.run);
                // Tasks run since NOW - 10; one expected to end at NOW - 5 is given 10 more, then 20.
                let end = if run.end_max == NOW - 5 {
                    NOW + 10
                } else {
                    run.end_max
                };
                if t < end {
                    for (sum, amount) in free.iter_mut().zip(of_shape(cluster, found.shape)) {
                        *sum -= amount;
                    }
                }
                task = found.next;
            }
            free
        });
        free.collect()
    };
    (NOW..HORIZON).map(at).collect()
}

fn of_shape(cluster: &Cluster, shape: u32) -> [i64; 2] {
    let requests = &cluster.tasks.shapes.get(shape).requests;
    ["cpu", "memory"].map(|name| {
        let r = cluster.resources.get(name).unwrap();
        let found = requests.iter().find(|(q, _)| *q == r);
        found.map_or(0, |(_, amount)| *amount)
    })
}

fn span(start: Time, run: Time) -> std::ops::Range<usize> {
    let end = start.saturating_add(run).min(HORIZON);
    (start - NOW) as usize..(end - NOW) as usize
}

/// Takes the slot out of the timeline; false when something of it is not free.
fn book(line: &mut Timeline, cluster: &Cluster, slot: &Slot, needs: &[Need]) -> bool {
    for (node, need, count) in &slot.places {
        let need = needs[*need as usize];
        let shape = cluster.classes.all[need.class as usize].shape;
        for moment in &mut line[span(slot.start, need.run_max)] {
            let free = &mut moment[*node as usize];
            for (sum, amount) in free.iter_mut().zip(of_shape(cluster, shape)) {
                *sum -= amount * i64::from(*count);
                if amount > 0 && *sum < 0 {
                    return false;
                }
            }
        }
    }
    true
}

/// How many tasks of the need fit over all nodes when they start at a moment.
fn fitting(line: &Timeline, cluster: &Cluster, start: Time, need: &Need) -> u32 {
    let asked = of_shape(cluster, cluster.classes.all[need.class as usize].shape);
    let fit = |moment: &Vec<[i64; 2]>, node: usize| {
        let free = moment[node].iter().zip(asked);
        let fit = free.filter(|(_, a)| *a > 0).map(|(f, a)| (f / a).max(0));
        fit.min().unwrap()
    };
    let nodes = 0..line[0].len();
    let least = nodes.map(|n| {
        let window = &line[span(start, need.run_max)];
        window.iter().map(|m| fit(m, n)).min().unwrap() as u32
    });
    least.sum()
}

fn unlimited() -> Budget {
    Budget {
        left: u64::MAX,
        spent: 0,
    }
}

fn counted(slot: &Slot, needs: &[Need]) -> bool {
    let mut sums = vec![0; needs.len()];
    for (_, need, count) in &slot.places {
        sums[*need as usize] += count;
    }
    sums.iter().zip(needs).all(|(sum, need)| *sum == need.count)
}

proptest! {
    #[test]
    fn what_is_kept_from_cycle_to_cycle_answers_like_what_is_looked_up_anew(
        case in case(1..3),
        changes in prop::collection::vec((0usize..5, 0usize..8, 1i64..40, -2i64..12), 1..12),
    ) {
        let mut cluster = build(&case);
        let mut lanes = Lanes::default();
        let mut now = NOW;
        for (what, which, end, later) in changes {
            now += later;
            let node = NodeId((which % case.nodes.len()) as u32);
            let run = Run { end_max: now + end, ..Run::since(now) };
            let task = cluster.tasks_on(node).nth(which / 4);
            match task {
                Some(task) if what == 0 => {
                    cluster.release(task);
                }
                Some(task) if what == 1 => {
                    cluster.leave(task);
                }
                Some(task) if what == 2 => {
                    cluster.set_run(task, run);
                }
                _ if what == 3 => {
                    let (name, queue) = (cluster.node_name(node).clone(), cluster.queue("q"));
                    cluster.bind(&name, queue, &class(1, 0), run);
                }
                _ => {}
            }
            let mut kept = Ahead::with(lanes, now);
            let mut anew = Ahead::new(now);
            for demand in &case.demands {
                let needs = needs(&mut cluster, demand);
                let ask = |ahead: &mut Ahead, cluster: &Cluster| {
                    ahead.earliest(cluster, &needs, Pick::Latest, &[], &mut unlimited())
                };
                let slot = ask(&mut kept, &cluster);
                prop_assert_eq!(&slot, &ask(&mut anew, &cluster));
                if let Some(slot) = slot {
                    kept.reserve(&cluster, &slot, &needs, 0);
                    anew.reserve(&cluster, &slot, &needs, 0);
                }
            }
            lanes = kept.into_lanes();
        }
    }

    #[test]
    fn the_slot_of_one_need_is_free_and_the_earliest(case in case(1..2)) {
        let mut cluster = build(&case);
        let mut ahead = Ahead::new(NOW);
        let mut line = timeline(&cluster);
        for demand in &case.demands {
            let needs = needs(&mut cluster, demand);
            let slot = ahead.earliest(&cluster, &needs, Pick::Lowest, &[], &mut unlimited());
            let until = slot.as_ref().map_or(HORIZON - 1, |s| s.start);
            for earlier in NOW..until {
                prop_assert!(
                    fitting(&line, &cluster, earlier, &needs[0]) < needs[0].count,
                    "it fits at {earlier} already, not only at {slot:?}"
                );
            }
            if let Some(slot) = slot {
                prop_assert!(counted(&slot, &needs));
                prop_assert!(book(&mut line, &cluster, &slot, &needs), "{slot:?} is not free");
                ahead.reserve(&cluster, &slot, &needs, 0);
            }
        }
    }

    #[test]
    fn the_slot_of_several_needs_is_free(case in case(2..4)) {
        let mut cluster = build(&case);
        let mut ahead = Ahead::new(NOW);
        let mut line = timeline(&cluster);
        for demand in &case.demands {
            let needs = needs(&mut cluster, demand);
            let slot = ahead.earliest(&cluster, &needs, Pick::Lowest, &[], &mut unlimited());
            if let Some(slot) = slot {
                prop_assert!(counted(&slot, &needs));
                prop_assert!(book(&mut line, &cluster, &slot, &needs), "{slot:?} is not free");
                ahead.reserve(&cluster, &slot, &needs, 0);
            }
        }
    }

    #[test]
    fn what_starts_under_the_veto_delays_no_reservation(
        case in case(1..3),
        newcomers in prop::collection::vec((1i64..3, 0i64..3, 1u32..4, 1i64..30), 1..6),
    ) {
        let mut cluster = build(&case);
        let mut ahead = Ahead::new(NOW);
        let mut reserved = Vec::new();
        for demand in &case.demands {
            let needs = needs(&mut cluster, demand);
            if let Some(slot) = ahead.earliest(&cluster, &needs, Pick::Lowest, &[], &mut unlimited()) {
                ahead.reserve(&cluster, &slot, &needs, 0);
                reserved.push((slot, needs));
            }
        }
        for (cpu, memory, count, run) in newcomers {
            let end_max = NOW + run;
            let (told, _) = cluster.tasks.runs.intern(Run { end: end_max, end_max, ..Run::since(NOW) });
            let ask = Ask {
                class: cluster.class(&class(cpu, memory)),
                queue: cluster.queue("q").0,
                policy: Policy::BinPack,
                run: told,
                count,
            };
            let before = timeline(&cluster);
            let placed = place(&mut cluster, ask, &[&ahead.veto(end_max)], &mut unlimited(), |_, _| {});
            cluster.tasks.runs.drop_unused(told);
            let mut line = timeline(&cluster);
            for (slot, needs) in &reserved {
                prop_assert!(book(&mut line, &cluster, slot, needs), "{slot:?} is delayed");
            }
            // Nor is anything kept off that is in nobody's way.
            let mut rest = before;
            for (slot, needs) in &reserved {
                book(&mut rest, &cluster, slot, needs);
            }
            let need = Need { class: ask.class, count, run_max: run };
            prop_assert_eq!(placed, fitting(&rest, &cluster, NOW, &need).min(count));
        }
    }
}

/// Nodes of one CPU each; of them `busy` run until the given moments.
fn slots(nodes: usize, busy: &[Time]) -> Cluster {
    let tasks = busy.iter().enumerate();
    build(&Case {
        nodes: vec![(1, 1); nodes],
        tasks: tasks.map(|(i, end)| (i, 1, 0, *end)).collect(),
        demands: Vec::new(),
    })
}

#[test]
fn a_hold_takes_the_nodes_that_are_least_stuck_and_keeps_newcomers_off() {
    let mut cluster = slots(4, &[NEVER, NOW + 50, NEVER, NOW + 5]);
    let needs = needs(&mut cluster, &[(1, 0, 3, 10)]);
    let mut ahead = Ahead::new(NOW);
    assert_eq!(
        ahead.earliest(&cluster, &needs, Pick::Lowest, &[], &mut unlimited()),
        None
    );
    let slot = ahead.hold(&cluster, &needs).unwrap();
    assert_eq!(slot.start, NEVER);
    assert_eq!(slot.places, [(0, 0, 1), (1, 0, 1), (3, 0, 1)]);
    ahead.reserve(&cluster, &slot, &needs, 0);
    // The node that is left is occupied for ever.
    let next = ahead.earliest(
        &cluster,
        &[Need {
            count: 1,
            ..needs[0]
        }],
        Pick::Lowest,
        &[],
        &mut unlimited(),
    );
    assert_eq!(next, None);
    let too_many = [Need {
        count: 5,
        ..needs[0]
    }];
    assert_eq!(ahead.hold(&cluster, &too_many), None);
}

#[test]
fn a_spent_budget_still_gives_a_slot_of_the_nodes_looked_at() {
    let mut cluster = slots(40, &[NOW + 50; 40]);
    let soon = Run {
        end: NOW + 1,
        end_max: NOW + 1,
        ..Run::since(NOW)
    };
    let last = cluster.tasks_on(NodeId(39)).next().unwrap();
    cluster.set_run(last, soon);
    let needs = needs(&mut cluster, &[(1, 0, 1, 10)]);
    let mut small = Budget { left: 40, spent: 0 };
    let slot = Ahead::new(NOW).earliest(&cluster, &needs, Pick::Lowest, &[], &mut small);
    assert_eq!(slot.unwrap().start, NOW + 50);
    let slot = Ahead::new(NOW).earliest(&cluster, &needs, Pick::Lowest, &[], &mut unlimited());
    assert_eq!(slot.unwrap().start, NOW + 1);
}

#[test]
fn what_starts_and_leaves_between_two_questions_is_seen() {
    let mut cluster = slots(1, &[NOW + 50]);
    let needs = needs(&mut cluster, &[(1, 0, 1, 10)]);
    let mut ahead = Ahead::new(NOW);
    let mut start = |cluster: &Cluster| {
        let slot = ahead.earliest(cluster, &needs, Pick::Lowest, &[], &mut unlimited());
        slot.map(|s| s.start)
    };
    assert_eq!(start(&cluster), Some(NOW + 50));
    let task = cluster.tasks_on(NodeId(0)).next().unwrap();
    cluster.release(task);
    assert_eq!(start(&cluster), Some(NOW));
    let queue = cluster.queue("q");
    let run = Run {
        end: NOW + 7,
        end_max: NOW + 7,
        ..Run::since(NOW)
    };
    cluster.bind("0", queue, &class(1, 0), run);
    assert_eq!(start(&cluster), Some(NOW + 7));
}
