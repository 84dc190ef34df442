//! Resources that come as devices: what each task holds, against a count device by device.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rota_scheduler::check::{check, over_allocated};
use rota_scheduler::*;

const GPU: &str = "gpu";

fn node(gpus: i64) -> NodeSpec {
    NodeSpec {
        allocatable: BTreeMap::from([(GPU.into(), gpus * DEVICE), ("cpu".into(), 64)]),
        devices: [GPU.to_string()].into(),
        ready: true,
        ..NodeSpec::default()
    }
}

fn class(gpu: i64) -> Class {
    Class::new(ClassSpec {
        requests: BTreeMap::from([(GPU.into(), gpu), ("cpu".into(), 1)]),
        ..ClassSpec::default()
    })
}

/// Tasks by node and amount, as the test believes them.
#[derive(Default)]
struct Fleet {
    cluster: Cluster,
    nodes: BTreeMap<String, i64>,
    tasks: Vec<(String, i64, TaskId)>,
    serial: u64,
}

impl Fleet {
    fn new(policy: Policy) -> Self {
        let mut fleet = Fleet::default();
        let spec = QueueSpec {
            policy,
            ..QueueSpec::default()
        };
        fleet.cluster.set_queue("q", Some(spec));
        fleet
    }

    fn node(&mut self, name: &str, gpus: i64) {
        self.cluster.upsert_node(name, node(gpus));
        self.nodes.insert(name.into(), gpus);
    }

    /// Free amount of every device of a node that is there.
    fn free(&self, name: &str) -> Vec<i64> {
        let mut free = vec![DEVICE; self.nodes[name] as usize];
        for (_, amount, task) in self.tasks.iter().filter(|t| t.0 == name) {
            for (resource, mask) in self.cluster.devices_of(*task) {
                assert_eq!(resource, GPU);
                for (i, free) in free.iter_mut().enumerate() {
                    *free -= (mask >> i & 1) as i64 * (*amount).min(DEVICE);
                }
            }
        }
        free
    }

    fn fits(&self, name: &str, amount: i64) -> bool {
        // A node on which the caller bound too much takes nothing new, whichever device has room.
        let held = self.tasks.iter().filter(|t| t.0 == name);
        let held: i64 = held.map(|(_, amount, _)| amount).sum();
        if self.nodes[name] * DEVICE - held < amount {
            return false;
        }
        let free = self.free(name);
        if amount < DEVICE {
            return free.iter().any(|free| *free >= amount);
        }
        let whole = free.iter().filter(|free| **free == DEVICE).count() as i64;
        amount % DEVICE == 0 && whole * DEVICE >= amount
    }

    fn place(&mut self, amount: i64, count: u32) -> u32 {
        self.serial += 1;
        let queue = self.cluster.queue("q");
        let demand = Demand::new(self.serial, class(amount), queue, count);
        let outcome = cycle(&mut self.cluster, &[demand], 0, Options::default());
        for p in &outcome.placements {
            let name = self.cluster.node_name(p.node).to_string();
            let mask = self.cluster.devices_of(p.task)[0].1;
            let needs = (amount as u64).div_ceil(DEVICE as u64) as u32;
            assert_eq!(mask.count_ones(), needs);
            for (i, free) in self.free(&name).iter().enumerate() {
                let part = (mask >> i & 1) as i64 * amount.min(DEVICE);
                assert!(
                    part == 0 || *free >= part,
                    "{name}, device {i}: {free} free, {part} wanted"
                );
            }
            self.tasks.push((name, amount, p.task));
        }
        let placed = outcome.placements.len() as u32;
        let fits = self.nodes.keys().any(|name| self.fits(name, amount));
        assert!(placed == count || !fits, "{amount} fits and waits");
        let why = explain(&mut self.cluster, &class(amount), queue, 1);
        assert_eq!(why.blockers.is_empty(), fits, "{why:?}");
        placed
    }

    fn bind(&mut self, name: &str, amount: i64) {
        let queue = self.cluster.queue("q");
        let task = self
            .cluster
            .bind(name, queue, &class(amount), Run::since(0));
        self.tasks.push((name.into(), amount, task));
    }
}

#[test]
fn parts_share_a_device_and_whole_ones_are_alone() {
    let mut fleet = Fleet::new(Policy::BinPack);
    fleet.node("a", 2);
    assert_eq!(fleet.place(600, 3), 2, "600 of one device leaves 400 of it");
    assert_eq!(fleet.place(1000, 1), 0);
    assert_eq!(fleet.place(400, 3), 2);
}

#[test]
fn a_part_goes_where_least_is_left() {
    let mut fleet = Fleet::new(Policy::BinPack);
    fleet.node("a", 3);
    fleet.place(500, 1);
    fleet.place(700, 1);
    fleet.place(300, 1);
    assert_eq!(fleet.free("a"), vec![500, 0, 1000]);
    assert_eq!(fleet.place(1000, 1), 1);
}

#[test]
fn amounts_between_whole_devices_never_fit_and_that_is_said() {
    let mut fleet = Fleet::new(Policy::BinPack);
    fleet.node("a", 4);
    assert_eq!(fleet.place(1500, 1), 0);
    let queue = fleet.cluster.queue("q");
    let why = explain(&mut fleet.cluster, &class(1500), queue, 1);
    assert!(why.never);
    let lower = vec![(GPU.to_string(), 1500, 1000)];
    assert_eq!(why.change, Some(Change::Lower(lower)));
}

#[test]
fn the_caller_says_which_devices() {
    let mut fleet = Fleet::new(Policy::BinPack);
    fleet.node("a", 4);
    fleet.bind("a", 2000);
    let task = fleet.tasks[0].2;
    assert!(fleet.cluster.set_devices(task, GPU, 0b1010));
    assert!(!fleet.cluster.set_devices(task, GPU, 0b10000));
    assert!(!fleet.cluster.set_devices(task, GPU, 0b1));
    assert_eq!(fleet.cluster.devices_of(task), vec![(GPU, 0b1010)]);
    assert_eq!(fleet.free("a"), vec![1000, 0, 1000, 0]);
    assert_eq!(check(&fleet.cluster), Vec::<String>::new());
}

#[test]
fn eviction_frees_whole_devices() {
    let mut fleet = Fleet::new(Policy::BinPack);
    fleet.node("a", 2);
    let queue = fleet.cluster.queue("q");
    let run = |priority, preemptible| Run {
        priority,
        preemptible,
        ..Run::since(0)
    };
    // Two halves that may go lie on different devices, each beside one; only one pair is cheap to free.
    for (amount, may_go, mask) in [
        (500, true, 1),
        (400, false, 1),
        (500, true, 2),
        (400, true, 2),
    ] {
        let task = fleet
            .cluster
            .bind("a", queue, &class(amount), run(0, may_go));
        assert!(fleet.cluster.set_devices(task, GPU, mask));
    }
    let demand = Demand {
        priority: 9,
        ..Demand::new(1, class(1000), queue, 1)
    };
    let outcome = cycle(&mut fleet.cluster, &[demand], 10, Options::default());
    assert_eq!(outcome.evictions.len(), 2);
    for eviction in &outcome.evictions {
        assert_eq!(fleet.cluster.devices_of(eviction.task), vec![(GPU, 2)]);
    }
    assert_eq!(check(&fleet.cluster), Vec::<String>::new());
}

#[derive(Clone, Debug)]
enum Step {
    Node(u8, i64),
    Remove(u8),
    Bind(u8, i64),
    Release(usize),
    Place(i64, u32),
}

fn amount() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![200, 250, 300, 500, 700, 1000, 2000, 3000, 1500])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u8..4, 0i64..5).prop_map(|(n, g)| Step::Node(n, g)),
        1 => (0u8..4).prop_map(Step::Remove),
        1 => (0u8..4, amount()).prop_map(|(n, a)| Step::Bind(n, a)),
        4 => any::<usize>().prop_map(Step::Release),
        5 => (amount(), 1u32..5).prop_map(|(a, n)| Step::Place(a, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_device_is_given_twice_and_what_fits_is_placed(
        policy in prop::sample::select(vec![Policy::BinPack, Policy::Spread, Policy::Fragmentation]),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut fleet = Fleet::new(policy);
        for step in steps {
            match step {
                Step::Node(n, gpus) => fleet.node(&format!("n{n}"), gpus),
                Step::Remove(n) => {
                    fleet.cluster.remove_node(&format!("n{n}"));
                    fleet.nodes.remove(&format!("n{n}"));
                }
                Step::Bind(n, amount) => fleet.bind(&format!("n{n}"), amount),
                Step::Release(which) => {
                    if !fleet.tasks.is_empty() {
                        let at = which % fleet.tasks.len();
                        let (_, _, task) = fleet.tasks.swap_remove(at);
                        fleet.cluster.release(task);
                    }
                }
                Step::Place(amount, count) => {
                    let over = over_allocated(&fleet.cluster);
                    fleet.place(amount, count);
                    prop_assert!(over_allocated(&fleet.cluster).iter().all(|n| over.contains(n)));
                }
            }
            prop_assert_eq!(check(&fleet.cluster), Vec::<String>::new());
        }
    }
}

/// Nodes of two models, and a history of tasks of which some want one of them.
#[test]
fn fragmentation_keeps_off_what_others_depend_on() {
    let mut fleet = Fleet::new(Policy::Fragmentation);
    for (name, model) in [("a", "rare"), ("b", "common")] {
        let mut spec = node(4);
        spec.labels.insert("model".into(), model.into());
        fleet.cluster.upsert_node(name, spec);
        fleet.nodes.insert(name.into(), 4);
    }
    let mut picky = class(1000).spec().clone();
    picky.node_selector.insert("model".into(), "rare".into());
    let any = class(1000);
    let workload = [(Class::new(picky), 1), (any, 1)];
    fleet.cluster.set_typical_workload(&workload);
    fleet.place(1000, 5);
    assert_eq!(fleet.free("b"), vec![0; 4]);
    assert_eq!(fleet.free("a").iter().sum::<i64>(), 3000);
}

#[test]
fn fragmentation_keeps_processors_for_devices() {
    let mut fleet = Fleet::new(Policy::Fragmentation);
    // The node with devices is the fuller one, which BinPack would take.
    let mut plain = node(0);
    plain.allocatable.insert("cpu".into(), 128);
    fleet.cluster.upsert_node("plain", plain);
    fleet.node("gpus", 4);
    fleet.cluster.set_typical_workload(&[(class(1000), 1)]);
    let queue = fleet.cluster.queue("q");
    let cpu_only = Class::new(ClassSpec {
        requests: BTreeMap::from([("cpu".into(), 32)]),
        ..ClassSpec::default()
    });
    let demand = Demand::new(1, cpu_only, queue, 4);
    let outcome = cycle(&mut fleet.cluster, &[demand], 0, Options::default());
    let on_plain = |p: &Placement| **fleet.cluster.node_name(p.node) == *"plain";
    assert!(outcome.placements.iter().all(on_plain));
    assert_eq!(outcome.placements.len(), 4);
}
