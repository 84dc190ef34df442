use std::collections::BTreeMap;

use proptest::prelude::*;
use rota_scheduler::check::{check, fingerprint, over_allocated, over_limit};
use rota_scheduler::*;

use crate::model::Model;

#[derive(Clone, Debug)]
enum Step {
    Node(u8, NodeSpec),
    RemoveNode(u8),
    Queue(u8, Option<QueueSpec>),
    Bind(u8, u8, ClassSpec),
    Release(usize),
    Cycle(Vec<(u8, ClassSpec, i32, u32)>, u64),
}

fn amounts(max: i64) -> impl Strategy<Value = BTreeMap<String, i64>> {
    let names = prop::sample::select(vec![
        "cpu", "memory", "gpu", "x1", "x2", "x3", "x4", "x5", "x6",
    ]);
    let skewed = prop_oneof![3 => Just("cpu"), 3 => Just("memory"), 2 => names];
    prop::collection::btree_map(skewed.prop_map(String::from), 0..=max, 0..4)
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[ab]", "[xy5]", 0..3)
}

fn effect() -> impl Strategy<Value = Effect> {
    prop::sample::select(vec![
        Effect::NoSchedule,
        Effect::PreferNoSchedule,
        Effect::NoExecute,
    ])
}

fn taint() -> impl Strategy<Value = Taint> {
    ("[tu]", "[v]?", effect()).prop_map(|(key, value, effect)| Taint { key, value, effect })
}

fn node_spec() -> impl Strategy<Value = NodeSpec> {
    (
        labels(),
        prop::collection::vec(taint(), 0..2),
        amounts(12),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.9),
    )
        .prop_map(
            |(labels, taints, allocatable, unschedulable, ready)| NodeSpec {
                labels,
                taints,
                allocatable,
                unschedulable,
                ready,
                ..NodeSpec::default()
            },
        )
}

fn node_term() -> impl Strategy<Value = NodeTerm> {
    let operator = prop::sample::select(vec![
        Operator::In,
        Operator::NotIn,
        Operator::Exists,
        Operator::DoesNotExist,
        Operator::Gt,
    ]);
    let expression = ("[ab]", operator, prop::collection::vec("[xy3]", 1..3));
    let expression = expression.prop_map(|(key, operator, values)| Expression {
        key,
        operator,
        values,
    });
    prop::collection::vec(expression, 1..3)
}

fn class_spec() -> impl Strategy<Value = ClassSpec> {
    let toleration = (
        prop::option::of("[tu]"),
        prop::option::of("[v]?"),
        prop::option::of(effect()),
    )
        .prop_map(|(key, value, effect)| Toleration { key, value, effect });
    (
        amounts(5),
        prop::collection::btree_map("[ab]", "[xy]", 0..2),
        prop::collection::vec(toleration, 0..2),
        prop::collection::vec(80u16..82, 0..2),
        prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(node_term(), 1..3)],
        prop_oneof![
            2 => Just(Vec::new()),
            1 => prop::collection::vec((-2i32..3, node_term()), 1..3)
        ],
    )
        .prop_map(
            |(requests, node_selector, tolerations, ports, required, preferred)| ClassSpec {
                requests,
                node_selector,
                tolerations,
                ports: if ports.len() == 1 { ports } else { Vec::new() },
                required,
                preferred,
                ..ClassSpec::default()
            },
        )
}

fn queue_spec() -> impl Strategy<Value = QueueSpec> {
    (amounts(20), any::<bool>(), any::<bool>()).prop_map(|(limit, fifo, spread)| QueueSpec {
        limit,
        order: if fifo { Order::Fifo } else { Order::Priority },
        policy: if spread {
            Policy::Spread
        } else {
            Policy::BinPack
        },
        ..QueueSpec::default()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let demand = (0u8..3, class_spec(), -1i32..2, 1u32..6);
    prop_oneof![
        4 => (0u8..6, node_spec()).prop_map(|(n, s)| Step::Node(n, s)),
        1 => (0u8..6).prop_map(Step::RemoveNode),
        2 => (0u8..3, prop::option::weighted(0.9, queue_spec())).prop_map(|(q, s)| Step::Queue(q, s)),
        1 => (0u8..6, 0u8..3, class_spec()).prop_map(|(n, q, c)| Step::Bind(n, q, c)),
        3 => any::<usize>().prop_map(Step::Release),
        4 => (prop::collection::vec(demand, 1..5), prop_oneof![3 => Just(u64::MAX), 1 => 1u64..30])
            .prop_map(|(d, b)| Step::Cycle(d, b)),
    ]
}

fn node_name(n: u8) -> String {
    format!("n{n}")
}
fn queue_name(q: u8) -> String {
    format!("q{q}")
}

/// A cluster and its model, kept in step.
#[derive(Default)]
struct Pair {
    real: Cluster,
    model: Model,
    ids: Vec<TaskId>,
    serial: u64,
}

impl Pair {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Node(n, spec) => {
                self.real.upsert_node(&node_name(*n), spec.clone());
                self.model.nodes.insert(node_name(*n), spec.clone());
            }
            Step::RemoveNode(n) => {
                let was = self.model.nodes.remove(&node_name(*n)).is_some();
                assert_eq!(self.real.remove_node(&node_name(*n)), was);
            }
            Step::Queue(q, spec) => {
                self.real.set_queue(&queue_name(*q), spec.clone());
                match spec {
                    Some(spec) => self.model.queues.insert(queue_name(*q), spec.clone()),
                    None => self.model.queues.remove(&queue_name(*q)),
                };
            }
            Step::Bind(n, q, class) => {
                let queue = self.real.queue(&queue_name(*q));
                let id = self.real.bind(
                    &node_name(*n),
                    queue,
                    &Class::new(class.clone()),
                    Run::since(0),
                );
                self.ids.push(id);
                self.model
                    .tasks
                    .push((node_name(*n), queue_name(*q), class.clone()));
            }
            Step::Release(which) => {
                if !self.ids.is_empty() {
                    let at = which % self.ids.len();
                    let id = self.ids.swap_remove(at);
                    self.model.tasks.swap_remove(at);
                    assert!(self.real.release(id));
                    assert!(!self.real.release(id), "a second release does nothing");
                }
            }
            Step::Cycle(demands, budget) => self.cycle(demands, *budget),
        }
    }

    fn cycle(&mut self, wanted: &[(u8, ClassSpec, i32, u32)], budget: u64) {
        let over_before = over_allocated(&self.real);
        let limits_before = over_limit(&self.real);
        let demands: Vec<Demand> = wanted
            .iter()
            .map(|(q, class, priority, count)| {
                self.serial += 1;
                Demand {
                    priority: *priority,
                    created: i64::from(*priority) % 2,
                    ..Demand::new(
                        self.serial,
                        Class::new(class.clone()),
                        self.real.queue(&queue_name(*q)),
                        *count,
                    )
                }
            })
            .collect();
        let outcome = cycle(
            &mut self.real,
            &demands,
            0,
            Options {
                budget,
                ..Options::default()
            },
        );
        let mut placed = vec![0; demands.len()];
        for p in &outcome.placements {
            let (q, class, ..) = &wanted[p.demand as usize];
            let node = self.real.node_name(p.node).to_string();
            assert!(
                self.model.fits(&node, class),
                "{class:?} does not fit {node}"
            );
            let rank = |n: &String| {
                let taints = self.model.nodes[n].taints.iter();
                let shunned = taints.filter(|t| !class.tolerations.iter().any(|s| s.accepts(t)));
                (shunned.count() == 0, self.model.preference(n, class))
            };
            let open = self
                .model
                .nodes
                .keys()
                .filter(|n| self.model.fits(n, class));
            assert!(
                open.into_iter().all(|n| rank(n) <= rank(&node)),
                "another node is preferred by {class:?}"
            );
            assert!(
                self.model.queue_allows(&queue_name(*q), class),
                "limit passed"
            );
            self.model.tasks.push((node, queue_name(*q), class.clone()));
            assert!(!self.ids.contains(&p.task), "a task id given twice");
            self.ids.push(p.task);
            placed[p.demand as usize] += 1;
        }
        for (i, (.., count)) in wanted.iter().enumerate() {
            let waits: u32 = outcome
                .waiting
                .iter()
                .filter(|w| w.demand == i as u32)
                .map(|w| w.count)
                .sum();
            assert_eq!(placed[i] + waits, *count, "every task is placed or waits");
        }
        for w in &outcome.waiting {
            let (q, class, ..) = &wanted[w.demand as usize];
            let fits_somewhere = self.model.nodes.keys().any(|n| self.model.fits(n, class));
            match w.cause {
                Cause::QueueMissing => assert!(!self.model.queues.contains_key(&queue_name(*q))),
                Cause::QueueLimit => assert!(!self.model.queue_allows(&queue_name(*q), class)),
                Cause::NoFit => assert!(!fits_somewhere, "{class:?} fits and waits"),
                Cause::Budget => assert!(budget < u64::MAX),
                Cause::QueueDetached | Cause::Reserved | Cause::Gang(_) => {
                    panic!("{w:?}: there is none of that here")
                }
            }
            if w.cause != Cause::Budget {
                let demand = &demands[w.demand as usize];
                self.explained(&queue_name(*q), demand, class, fits_somewhere);
            }
        }
        // What was over before may stay over; nothing new may be.
        assert!(
            over_allocated(&self.real)
                .iter()
                .all(|n| over_before.contains(n))
        );
        assert!(
            over_limit(&self.real)
                .iter()
                .all(|q| limits_before.contains(q))
        );
    }

    fn explained(&mut self, queue: &str, demand: &Demand, class: &ClassSpec, fits: bool) {
        let why = explain(&mut self.real, &demand.class, demand.queue, 1);
        assert!(!why.blockers.is_empty(), "waits without a reason");
        let m = &self.model;
        let count = |f: &dyn Fn(&String) -> bool| m.nodes.keys().filter(|n| f(n)).count() as u32;
        for blocker in &why.blockers {
            match blocker {
                Blocker::QueueDetached(_) | Blocker::TooFewTogether { .. } => {
                    panic!("{blocker:?}: there is none of that here")
                }
                Blocker::NoNodes => assert!(m.nodes.is_empty()),
                Blocker::QueueMissing => assert!(!m.queues.contains_key(queue)),
                Blocker::QueueLimit {
                    resource,
                    limit,
                    used,
                    request,
                    ..
                } => {
                    assert_eq!(*used, m.queue_used(queue, resource));
                    assert!(used + request > *limit);
                }
                Blocker::NodeNotReady { nodes } => {
                    assert_eq!(*nodes, count(&|n| !m.nodes[n].ready))
                }
                Blocker::NodeUnschedulable { nodes } => {
                    assert_eq!(*nodes, count(&|n| m.nodes[n].unschedulable));
                }
                Blocker::TaintNotTolerated { taint, nodes } => {
                    assert_eq!(*nodes, count(&|n| m.nodes[n].taints.contains(taint)));
                }
                Blocker::NodeSelectorMismatch { nodes } => {
                    assert_eq!(*nodes, count(&|n| !m.carries(n, class)));
                }
                Blocker::NodeAffinityMismatch { nodes } => {
                    assert_eq!(*nodes, count(&|n| !m.affine(n, class)));
                }
                Blocker::InsufficientResource {
                    resource, nodes, ..
                } => {
                    let lacks =
                        |n: &String| m.eligible(n, class) && m.lacks(n, class).contains(resource);
                    assert_eq!(*nodes, count(&lacks));
                }
                Blocker::PortInUse { nodes } => {
                    let taken = |n: &String| {
                        m.eligible(n, class)
                            && m.lacks(n, class).is_empty()
                            && !m.ports_free(n, class)
                    };
                    assert_eq!(*nodes, count(&taken));
                }
                Blocker::Affinity { .. }
                | Blocker::AntiAffinity { .. }
                | Blocker::SpreadSkew { .. } => panic!("nothing has such rules here"),
                Blocker::NeverFits { .. } => {
                    let mut empty = m.clone();
                    empty.tasks.clear();
                    assert!(m.nodes.keys().all(|n| {
                        !m.carries(n, class)
                            || !m.affine(n, class)
                            || !m.tolerated(n, class)
                            || !empty.lacks(n, class).is_empty()
                    }));
                }
            }
        }
        // The change is true: with it, one more task fits (unless the queue is what stands in the way).
        let mut changed = class.clone();
        let mut model = m.clone();
        match &why.change {
            Some(Change::Lower(cuts)) => {
                for (resource, from, to) in cuts {
                    assert_eq!(changed.requests.insert(resource.clone(), *to), Some(*from));
                }
                if why.never {
                    model.tasks.clear();
                    for node in model.nodes.values_mut() {
                        (node.ready, node.unschedulable) = (true, false);
                    }
                }
            }
            Some(Change::DropSelector { key, .. }) => {
                changed.node_selector.remove(key);
            }
            Some(Change::DropNodeAffinity { .. }) => changed.required.clear(),
            Some(Change::Tolerate { taint, .. }) => changed.tolerations.push(Toleration {
                key: Some(taint.key.clone()),
                value: Some(taint.value.clone()),
                effect: Some(taint.effect),
            }),
            Some(Change::RaiseQueueLimit(raises)) => {
                assert!(fits);
                for (named, resource, _, to) in raises {
                    assert_eq!(named, queue);
                    model
                        .queues
                        .get_mut(queue)
                        .unwrap()
                        .limit
                        .insert(resource.clone(), *to);
                }
                assert!(model.queue_allows(queue, class));
                return;
            }
            Some(Change::CreateQueue | Change::LowerTogether { .. }) | None => return,
        }
        changed.ports.clear();
        let helped = model.nodes.keys().any(|n| model.fits(n, &changed));
        assert!(helped, "{:?} does not help {class:?}", why.change);
    }

    fn verify(&self) {
        assert_eq!(check(&self.real), Vec::<String>::new());
        for name in self.model.nodes.keys() {
            let node = self.real.node(name).unwrap();
            for (resource, free) in self.real.free(node) {
                assert_eq!(free, self.model.free(name, resource), "{name} {resource}");
            }
        }
        assert_eq!(self.real.node_count(), self.model.nodes.len());
        // The same nodes and tasks told to a new cluster make the same picture.
        let mut rebuilt = Cluster::new();
        for (node, queue, class) in &self.model.tasks {
            let queue = rebuilt.queue(queue);
            rebuilt.bind(node, queue, &Class::new(class.clone()), Run::since(0));
        }
        for (name, spec) in &self.model.nodes {
            rebuilt.upsert_node(name, spec.clone());
        }
        assert_eq!(fingerprint(&self.real), fingerprint(&rebuilt));
        assert_eq!(check(&rebuilt), Vec::<String>::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec(step(), 1..40)) {
        let mut pair = Pair::default();
        for step in &steps {
            pair.apply(step);
            pair.verify();
        }
        for id in std::mem::take(&mut pair.ids) {
            assert!(pair.real.release(id));
        }
        pair.model.tasks.clear();
        pair.verify();
    }

    #[test]
    fn the_same_inputs_give_the_same_answer(steps in prop::collection::vec(step(), 1..30)) {
        let (mut a, mut b) = (Pair::default(), Pair::default());
        for step in &steps {
            a.apply(step);
            b.apply(step);
            assert_eq!(a.ids, b.ids);
            let last = |p: &Pair| p.model.tasks.last().map(|t| t.0.clone());
            assert_eq!(last(&a), last(&b));
        }
    }
}
