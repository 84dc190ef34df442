//! Who gets how much: shares over a tree of queues, guarantees, limits, orders inside a queue.

use std::collections::BTreeMap;

use rota_scheduler::check::check;
use rota_scheduler::*;

fn amounts(pairs: &[(&str, i64)]) -> BTreeMap<String, i64> {
    pairs.iter().map(|(r, a)| (r.to_string(), *a)).collect()
}

fn class(pairs: &[(&str, i64)]) -> Class {
    Class::new(ClassSpec {
        requests: amounts(pairs),
        ..ClassSpec::default()
    })
}

/// One node that has everything.
fn cluster(pairs: &[(&str, i64)]) -> Cluster {
    let mut cluster = Cluster::new();
    resize(&mut cluster, pairs);
    cluster
}

fn resize(cluster: &mut Cluster, pairs: &[(&str, i64)]) {
    let node = NodeSpec {
        allocatable: amounts(pairs),
        ready: true,
        ..NodeSpec::default()
    };
    cluster.upsert_node("n", node);
}

fn queue(cluster: &mut Cluster, name: &str, parent: &str, weight: u32) -> QueueId {
    let spec = QueueSpec {
        parent: (!parent.is_empty()).then(|| parent.to_string()),
        weight,
        ..QueueSpec::default()
    };
    cluster.set_queue(name, Some(spec))
}

/// One cycle; answers the tasks placed per demand.
fn run(cluster: &mut Cluster, demands: &[Demand], now: Time) -> Vec<u32> {
    let outcome = cycle(cluster, demands, now, Options::default());
    assert_eq!(check(cluster), Vec::<String>::new());
    let mut placed = vec![0; demands.len()];
    for p in outcome.placements {
        placed[p.demand as usize] += 1;
    }
    placed
}

#[test]
fn dominant_shares_are_equal_in_the_papers_example() {
    let mut c = cluster(&[("cpu", 9), ("memory", 18)]);
    let (a, b) = (queue(&mut c, "a", "", 1), queue(&mut c, "b", "", 1));
    let demands = [
        Demand::new(1, class(&[("cpu", 1), ("memory", 4)]), a, 100),
        Demand::new(2, class(&[("cpu", 3), ("memory", 1)]), b, 100),
    ];
    assert_eq!(run(&mut c, &demands, 0), vec![3, 2]);
}

#[test]
fn weights_divide_and_what_one_does_not_want_the_others_get() {
    let mut c = cluster(&[("cpu", 1000)]);
    let (a, b) = (queue(&mut c, "a", "", 1), queue(&mut c, "b", "", 3));
    let d = queue(&mut c, "d", "", 6);
    let one = class(&[("cpu", 1)]);
    let demands = [
        Demand::new(1, one.clone(), a, 10_000),
        Demand::new(2, one.clone(), b, 10_000),
        Demand::new(3, one, d, 200),
    ];
    assert_eq!(run(&mut c, &demands, 0), vec![200, 600, 200]);
}

#[test]
fn a_child_that_holds_another_resource_does_not_starve_its_sister() {
    // The tree of the H-DRF paper: n1 asks CPU; n2,1 asks CPU and n2,2 asks GPU.
    let mut c = cluster(&[("cpu", 100), ("gpu", 100)]);
    let n1 = queue(&mut c, "n1", "", 1);
    queue(&mut c, "n2", "", 1);
    let n21 = queue(&mut c, "n21", "n2", 1);
    let n22 = queue(&mut c, "n22", "n2", 1);
    let cpu = class(&[("cpu", 1)]);
    let demands = [
        Demand::new(1, cpu.clone(), n1, 1000),
        Demand::new(2, cpu, n21, 1000),
        Demand::new(3, class(&[("gpu", 1)]), n22, 1000),
    ];
    assert_eq!(run(&mut c, &demands, 0), vec![50, 50, 100]);
}

#[test]
fn a_newcomer_does_not_draw_on_the_sisters_of_its_parent() {
    let mut c = cluster(&[("cpu", 100)]);
    let n1 = queue(&mut c, "n1", "", 1);
    queue(&mut c, "n2", "", 1);
    let n21 = queue(&mut c, "n21", "n2", 1);
    let n22 = queue(&mut c, "n22", "n2", 1);
    let cpu = class(&[("cpu", 1)]);
    let first = [
        Demand::new(1, cpu.clone(), n1, 40),
        Demand::new(2, cpu.clone(), n21, 40),
    ];
    assert_eq!(run(&mut c, &first, 0), vec![40, 40]);
    let then = [
        Demand::new(3, cpu.clone(), n1, 40),
        Demand::new(4, cpu, n22, 40),
    ];
    assert_eq!(run(&mut c, &then, 0), vec![10, 10]);
}

#[test]
fn own_work_of_a_queue_counts_as_one_more_child() {
    let mut c = cluster(&[("cpu", 90)]);
    let top = queue(&mut c, "top", "", 1);
    let below = queue(&mut c, "below", "top", 2);
    let cpu = class(&[("cpu", 1)]);
    let demands = [
        Demand::new(1, cpu.clone(), top, 1000),
        Demand::new(2, cpu, below, 1000),
    ];
    assert_eq!(run(&mut c, &demands, 0), vec![30, 60]);
}

#[test]
fn guarantees_come_first_and_limits_hold_on_every_level() {
    let mut c = cluster(&[("cpu", 100)]);
    let spec = |parent: &str, guarantee, limit| QueueSpec {
        parent: (!parent.is_empty()).then(|| parent.to_string()),
        guarantee: amounts(&[("cpu", guarantee)]),
        limit: amounts(&[("cpu", limit)]),
        ..QueueSpec::default()
    };
    let a = c.set_queue("a", Some(spec("", 70, 1000)));
    c.set_queue("top", Some(spec("", 0, 20)));
    let b = c.set_queue("b", Some(spec("top", 0, 15)));
    let d = c.set_queue("d", Some(spec("top", 0, 1000)));
    let cpu = class(&[("cpu", 1)]);
    let all = [
        Demand::new(1, cpu.clone(), a, 1000),
        Demand::new(2, cpu.clone(), b, 1000),
        Demand::new(3, cpu.clone(), d, 1000),
    ];
    assert_eq!(run(&mut c.clone(), &all, 0), vec![80, 10, 10]);
    // Without the sister, its own limit stops b; the rest is borrowed by a.
    assert_eq!(run(&mut c, &all[..2], 0), vec![85, 15]);
}

#[test]
fn past_use_counts_half_after_the_half_life() {
    let mut c = cluster(&[("cpu", 100)]);
    let spec = QueueSpec {
        half_life: 1000,
        ..QueueSpec::default()
    };
    let a = c.set_queue("a", Some(spec.clone()));
    let b = c.set_queue("b", Some(spec));
    let cpu = class(&[("cpu", 1)]);
    let outcome = cycle(
        &mut c,
        &[Demand::new(1, cpu.clone(), a, 80)],
        10_000,
        Options::default(),
    );
    // a holds 80 for one half-life, and another half-life passes: its average is 80 / 4.
    c.advance(11_000);
    for p in outcome.placements {
        c.release(p.task);
    }
    let both = [
        Demand::new(2, cpu.clone(), a, 1000),
        Demand::new(3, cpu, b, 1000),
    ];
    assert_eq!(run(&mut c.clone(), &both, 12_000), vec![40, 60]);
    // A clock that goes back changes nothing.
    assert_eq!(run(&mut c.clone(), &both, 5), vec![30, 70]);
    assert_eq!(run(&mut c, &both, 1_000_000), vec![50, 50]);
}

#[test]
fn shortest_jobs_first() {
    let mut c = cluster(&[("cpu", 1)]);
    let spec = QueueSpec {
        order: Order::ShortestJobFirst,
        ..QueueSpec::default()
    };
    let q = c.set_queue("q", Some(spec));
    let mut waiting: Vec<Demand> = [9, 1, NEVER, 4]
        .iter()
        .enumerate()
        .map(|(i, seconds)| Demand {
            run: *seconds,
            priority: -(i as i32),
            ..Demand::new(i as u64, class(&[("cpu", 1)]), q, 1)
        })
        .collect();
    let mut order = Vec::new();
    while !waiting.is_empty() {
        let outcome = cycle(&mut c, &waiting, 0, Options::default());
        let placed = outcome.placements[0];
        order.push(waiting.remove(placed.demand as usize).run);
        c.release(placed.task);
    }
    assert_eq!(order, vec![1, 4, 9, NEVER]);
}

#[test]
fn owners_share_a_fair_queue() {
    let mut c = cluster(&[("cpu", 30)]);
    let spec = QueueSpec {
        order: Order::Fair,
        ..QueueSpec::default()
    };
    let q = c.set_queue("q", Some(spec.clone()));
    let of = |id, owner, count| Demand {
        owner,
        ..Demand::new(id, class(&[("cpu", 1)]), q, count)
    };
    assert_eq!(run(&mut c, &[of(1, 7, 12)], 0), vec![12]);
    let more = [of(2, 7, 100), of(3, 8, 100), of(4, 8, 100)];
    assert_eq!(run(&mut c.clone(), &more, 0), vec![3, 15, 0]);
    // The table of owners is the same when it is made from the tasks.
    c.set_queue("q", Some(QueueSpec::default()));
    c.set_queue("q", Some(spec));
    assert_eq!(run(&mut c, &more, 0), vec![3, 15, 0]);
}

#[test]
fn no_nodes_no_capacity_and_queues_on_no_tree() {
    let mut c = Cluster::new();
    let q = queue(&mut c, "q", "", 1);
    let lost = queue(&mut c, "lost", "nowhere", 1);
    let round = queue(&mut c, "round", "round", 1);
    let gone = c.queue("gone");
    let demands: Vec<Demand> = [q, lost, round, gone]
        .iter()
        .enumerate()
        .map(|(i, q)| Demand::new(i as u64, class(&[("cpu", 1)]), *q, 9))
        .collect();
    let causes = |c: &mut Cluster| {
        let outcome = cycle(c, &demands, 0, Options::default());
        let mut causes: Vec<_> = outcome
            .waiting
            .iter()
            .map(|w| (w.demand, w.cause))
            .collect();
        causes.sort_by_key(|c| c.0);
        causes
    };
    let others = [
        (1, Cause::QueueDetached),
        (2, Cause::QueueDetached),
        (3, Cause::QueueMissing),
    ];
    assert_eq!(causes(&mut c), [&[(0, Cause::NoFit)], &others[..]].concat());
    resize(&mut c, &[("cpu", 0)]);
    assert_eq!(causes(&mut c), [&[(0, Cause::NoFit)], &others[..]].concat());
    resize(&mut c, &[("cpu", 9)]);
    assert_eq!(causes(&mut c), others);
}

fn guaranteed(cluster: &mut Cluster, name: &str, parent: &str, weight: u32, cpu: i64) -> QueueId {
    let spec = QueueSpec {
        parent: (!parent.is_empty()).then(|| parent.to_string()),
        weight,
        guarantee: amounts(&[("cpu", cpu)]),
        ..QueueSpec::default()
    };
    cluster.set_queue(name, Some(spec))
}

#[test]
fn standings_say_what_is_borrowed_lent_and_fair() {
    let mut c = cluster(&[("cpu", 100)]);
    let a = guaranteed(&mut c, "a", "", 1, 60);
    let b = guaranteed(&mut c, "b", "", 3, 10);
    let cpu = class(&[("cpu", 1)]);
    assert_eq!(
        run(&mut c, &[Demand::new(1, cpu.clone(), b, 95)], 0),
        vec![95]
    );
    let all = standings(&c, &[Demand::new(2, cpu, a, 70)]);
    assert_eq!(all[0].queue, a);
    assert_eq!(all[0].guaranteed, amounts(&[("cpu", 60)]));
    // 5 are free, so 55 of its 60 are with others.
    assert_eq!(all[0].lent, amounts(&[("cpu", 55)]));
    assert_eq!((all[0].waiting, all[0].dominant_share), (70, 0));
    assert_eq!(all[1].borrowed, amounts(&[("cpu", 85)]));
    assert_eq!(all[1].dominant.as_deref(), Some("cpu"));
    assert_eq!(all[1].dominant_share, 950_000);
    // Its weight would make 25 of a; its guarantee makes 60, and leaves 40.
    let fair: Vec<u64> = all.iter().map(|s| s.fair_share / 1000).collect();
    assert_eq!(fair, vec![600, 400]);
}

#[test]
fn guarantees_above_what_there_is_are_shared_by_weight() {
    let mut c = cluster(&[("cpu", 50)]);
    let a = guaranteed(&mut c, "a", "", 1, 100);
    let b = guaranteed(&mut c, "b", "", 1, 400);
    let cpu = class(&[("cpu", 1)]);
    let demands = [
        Demand::new(1, cpu.clone(), a, 1000),
        Demand::new(2, cpu, b, 1000),
    ];
    assert_eq!(run(&mut c, &demands, 0), vec![25, 25]);
    let all = standings(&c, &demands);
    let fair: Vec<u64> = all.iter().map(|s| s.fair_share / 1000).collect();
    assert_eq!(fair, vec![500, 500]);
}

#[test]
fn shares_follow_what_the_cluster_has() {
    let mut c = cluster(&[("cpu", 100), ("gpu", 10)]);
    let (a, b) = (queue(&mut c, "a", "", 1), queue(&mut c, "b", "", 1));
    let with_gpu = class(&[("cpu", 1), ("gpu", 1)]);
    let cpu = class(&[("cpu", 1)]);
    assert_eq!(run(&mut c, &[Demand::new(1, with_gpu, a, 5)], 0), vec![5]);
    let both = [
        Demand::new(2, cpu.clone(), a, 1000),
        Demand::new(3, cpu, b, 1000),
    ];
    // Half of the GPUs counts as much as half of the CPUs.
    assert_eq!(run(&mut c.clone(), &both, 0), vec![45, 50]);
    // With more of them, its CPUs are what a has most of.
    resize(&mut c, &[("cpu", 100), ("gpu", 1000)]);
    assert_eq!(run(&mut c.clone(), &both, 0), vec![45, 50]);
    resize(&mut c, &[("cpu", 60), ("gpu", 6)]);
    assert_eq!(run(&mut c, &both, 0), vec![5, 50]);
}

#[test]
fn a_removed_queue_is_no_sister_any_more() {
    let mut c = cluster(&[("cpu", 90)]);
    queue(&mut c, "top", "", 1);
    let a = queue(&mut c, "a", "top", 1);
    let b = queue(&mut c, "b", "top", 1);
    let d = queue(&mut c, "d", "", 1);
    let cpu = class(&[("cpu", 1)]);
    let of = |q: QueueId| Demand::new(u64::from(q == a), cpu.clone(), q, 1000);
    c.set_queue("top", None);
    let alone = run(&mut c.clone(), &[of(a), of(b), of(d)], 0);
    assert_eq!(alone, vec![0, 0, 90]);
    queue(&mut c, "top", "", 2);
    c.set_queue("b", None);
    assert_eq!(run(&mut c, &[of(a), of(b), of(d)], 0), vec![60, 0, 30]);
}
