//! Rules between tasks: random clusters against a model that counts everything anew each time, and
//! small stories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rota_scheduler::check::check;
use rota_scheduler::*;

const HOST: &str = "kubernetes.io/hostname";

#[derive(Clone, Debug)]
enum Step {
    Node(u8, BTreeMap<String, String>, i64),
    RemoveNode(u8),
    Bind(u8, usize),
    Release(usize),
    /// Which class, how many, whether with the spread policy.
    Place(usize, u32, bool),
    Explain(usize),
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    owned.collect()
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let zone = prop::option::weighted(0.9, prop::sample::select(vec!["a", "b", "c"]));
    let host = prop::option::weighted(0.3, prop::sample::select(vec!["h1", "h2"]));
    (zone, host, any::<bool>()).prop_map(|(zone, host, fast)| {
        let zone = zone.map(|z| ("zone", z));
        let host = host.map(|h| (HOST, h));
        let fast = fast.then_some(("disk", "fast"));
        map(&zone.into_iter().chain(host).chain(fast).collect::<Vec<_>>())
    })
}

fn term() -> impl Strategy<Value = TaskTerm> {
    let operator = prop::sample::select(vec![
        Operator::In,
        Operator::In,
        Operator::In,
        Operator::NotIn,
        Operator::Exists,
        Operator::DoesNotExist,
    ]);
    let expression = (
        prop::sample::select(vec!["app", "tier"]),
        operator,
        prop::collection::vec("[xy]", 1..3),
    )
        .prop_map(|(key, operator, values)| Expression {
            key: key.to_owned(),
            operator,
            values,
        });
    (
        prop::sample::select(vec!["zone", HOST]),
        prop::collection::vec(expression, 0..3),
    )
        .prop_map(|(key, selector)| TaskTerm {
            topology_key: key.to_owned(),
            selector,
        })
}

fn class() -> impl Strategy<Value = ClassSpec> {
    let app = prop::option::weighted(0.8, prop::sample::select(vec!["x", "y"]));
    let tier = prop::option::weighted(0.3, prop::sample::select(vec!["x", "y"]));
    let few = |most| {
        prop_oneof![
            3 => Just(Vec::new()),
            2 => prop::collection::vec(term(), 1..=most),
        ]
    };
    let spread = (term(), 1u32..3, any::<bool>()).prop_map(|(term, max_skew, required)| Spread {
        term,
        max_skew,
        required,
    });
    let spreads = prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::vec(spread, 1..3),
    ];
    let about = (app, tier, "[ab]", 0i64..4, prop::bool::weighted(0.2));
    (about, few(2), few(2), spreads).prop_map(|(about, affinity, anti_affinity, spread)| {
        let (app, tier, namespace, cpu, fast) = about;
        let app = app.map(|a| ("app", a));
        let tier = tier.map(|t| ("tier", t));
        ClassSpec {
            requests: BTreeMap::from([("cpu".to_string(), cpu)]),
            node_selector: if fast {
                map(&[("disk", "fast")])
            } else {
                map(&[])
            },
            labels: map(&app.into_iter().chain(tier).collect::<Vec<_>>()),
            namespace,
            affinity,
            anti_affinity,
            spread,
            ..ClassSpec::default()
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..7, labels(), 0i64..12).prop_map(|(n, l, c)| Step::Node(n, l, c)),
        1 => (0u8..7).prop_map(Step::RemoveNode),
        1 => (0u8..7, any::<usize>()).prop_map(|(n, c)| Step::Bind(n, c)),
        3 => any::<usize>().prop_map(Step::Release),
        6 => (any::<usize>(), 1u32..12, any::<bool>()).prop_map(|(c, n, s)| Step::Place(c, n, s)),
        1 => any::<usize>().prop_map(Step::Explain),
    ]
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, (BTreeMap<String, String>, i64)>,
    tasks: Vec<(String, ClassSpec, TaskId)>,
}

fn matches(term: &TaskTerm, namespace: &str, class: &ClassSpec) -> bool {
    class.namespace == namespace && term.selector.iter().all(|e| e.holds(&class.labels))
}

impl Model {
    fn domain(&self, node: &str, key: &str) -> Option<String> {
        let label = self.nodes.get(node)?.0.get(key).cloned();
        label.or_else(|| (key == HOST).then(|| node.to_owned()))
    }

    /// Domains of the tasks that a term matches.
    fn domains(&self, term: &TaskTerm, namespace: &str) -> Vec<String> {
        let tasks = self.tasks.iter();
        let tasks = tasks.filter(|(_, class, _)| matches(term, namespace, class));
        tasks
            .filter_map(|(node, ..)| self.domain(node, &term.topology_key))
            .collect()
    }

    fn fits(&self, node: &str, class: &ClassSpec) -> bool {
        let cpu = |class: &ClassSpec| class.requests["cpu"];
        let here = self.tasks.iter().filter(|t| t.0 == node);
        let used: i64 = here.map(|t| cpu(&t.1)).sum();
        self.usable(node, class) && (cpu(class) == 0 || used + cpu(class) <= self.nodes[node].1)
    }

    fn usable(&self, node: &str, class: &ClassSpec) -> bool {
        let (labels, _) = &self.nodes[node];
        let mut pairs = class.node_selector.iter();
        pairs.all(|(k, v)| labels.get(k) == Some(v))
    }

    fn affine(&self, node: &str, class: &ClassSpec) -> bool {
        class.affinity.iter().all(|term| {
            let there = self.domains(term, &class.namespace);
            let first = there.is_empty() && matches(term, &class.namespace, class);
            let domain = self.domain(node, &term.topology_key);
            domain.is_some_and(|d| first || there.contains(&d))
        })
    }

    fn repelled(&self, node: &str, class: &ClassSpec) -> bool {
        let near = |other: &str, key: &str| {
            let domain = self.domain(node, key);
            domain.is_some() && domain == self.domain(other, key)
        };
        let either = |a: &ClassSpec, b: &ClassSpec, other: &str| {
            let mut terms = a.anti_affinity.iter();
            terms.any(|t| matches(t, &a.namespace, b) && near(other, &t.topology_key))
        };
        let mut tasks = self.tasks.iter();
        tasks.any(|(other, theirs, _)| either(class, theirs, other) || either(theirs, class, other))
    }

    fn even(&self, node: &str, class: &ClassSpec, spread: &Spread) -> bool {
        let key = &spread.term.topology_key;
        let there = self.domains(&spread.term, &class.namespace);
        let count = |domain: &String| there.iter().filter(|d| *d == domain).count();
        let Some(domain) = self.domain(node, key) else {
            return false;
        };
        let usable = self.nodes.keys().filter(|n| self.usable(n, class));
        let domains: BTreeSet<String> = usable.filter_map(|n| self.domain(n, key)).collect();
        let fewest = domains.iter().map(count).min().unwrap_or(0);
        let itself = usize::from(matches(&spread.term, &class.namespace, class));
        count(&domain) + itself <= fewest + spread.max_skew as usize
    }

    fn legal(&self, node: &str, class: &ClassSpec) -> bool {
        let mut musts = class.spread.iter().filter(|s| s.required);
        self.fits(node, class)
            && self.affine(node, class)
            && !self.repelled(node, class)
            && musts.all(|s| self.even(node, class, s))
    }
}

struct Pair {
    real: Cluster,
    model: Model,
    serial: u64,
}

impl Pair {
    fn new() -> Self {
        let mut real = Cluster::new();
        for (name, policy) in [("deep", Policy::BinPack), ("level", Policy::Spread)] {
            let spec = QueueSpec {
                policy,
                ..QueueSpec::default()
            };
            real.set_queue(name, Some(spec));
        }
        Pair {
            real,
            model: Model::default(),
            serial: 0,
        }
    }

    fn apply(&mut self, step: &Step, classes: &[ClassSpec]) {
        let class_of = |at: usize| classes[at % classes.len()].clone();
        let name = |n: u8| format!("n{n}");
        match step {
            Step::Node(n, labels, cpu) => {
                let spec = NodeSpec {
                    labels: labels.clone(),
                    allocatable: BTreeMap::from([("cpu".to_string(), *cpu)]),
                    ready: true,
                    ..NodeSpec::default()
                };
                self.real.upsert_node(&name(*n), spec);
                self.model.nodes.insert(name(*n), (labels.clone(), *cpu));
            }
            Step::RemoveNode(n) => {
                self.real.remove_node(&name(*n));
                self.model.nodes.remove(&name(*n));
            }
            Step::Bind(n, class) => {
                let class = class_of(*class);
                let queue = self.real.queue("deep");
                let run = Run::since(0);
                let id = self
                    .real
                    .bind(&name(*n), queue, &Class::new(class.clone()), run);
                self.model.tasks.push((name(*n), class, id));
            }
            Step::Release(i) => {
                if !self.model.tasks.is_empty() {
                    let i = i % self.model.tasks.len();
                    let (.., id) = self.model.tasks.swap_remove(i);
                    assert!(self.real.release(id));
                }
            }
            Step::Place(class, count, level) => self.place(class_of(*class), *count, *level),
            Step::Explain(class) => self.explain(&class_of(*class)),
        }
        assert_eq!(check(&self.real), Vec::<String>::new());
    }

    fn place(&mut self, class: ClassSpec, count: u32, level: bool) {
        let queue = self.real.queue(if level { "level" } else { "deep" });
        self.serial += 1;
        let demand = Demand::new(self.serial, Class::new(class.clone()), queue, count);
        let outcome = cycle(&mut self.real, &[demand], 0, Options::default());
        for p in &outcome.placements {
            let node = self.real.node_name(p.node).to_string();
            assert!(
                self.model.legal(&node, &class),
                "{class:?} is not legal on {node}"
            );
            if let [only] = class.spread.as_slice()
                && !self.model.even(&node, &class, only)
            {
                let mut others = self.model.nodes.keys();
                let better =
                    |n: &String| self.model.legal(n, &class) && self.model.even(n, &class, only);
                assert!(!others.any(better), "{class:?} could be spread better");
            }
            self.model.tasks.push((node, class.clone(), p.task));
        }
        for w in &outcome.waiting {
            assert_eq!(w.cause, Cause::NoFit);
            let mut nodes = self.model.nodes.keys();
            let legal = nodes.find(|n| self.model.legal(n, &class));
            assert_eq!(legal, None, "legal, and yet {class:?} waits");
        }
    }

    fn explain(&mut self, class: &ClassSpec) {
        let queue = self.real.queue("deep");
        let why = explain(&mut self.real, &Class::new(class.clone()), queue, 1);
        let m = &self.model;
        let mut nodes = m.nodes.keys();
        assert_eq!(why.blockers.is_empty(), nodes.any(|n| m.legal(n, class)));
        let fitting: Vec<&String> = m.nodes.keys().filter(|n| m.fits(n, class)).collect();
        let count = |f: &dyn Fn(&String) -> bool| fitting.iter().filter(|n| f(n)).count() as u32;
        let apart = |n: &String| !m.affine(n, class);
        let repelled = |n: &String| m.affine(n, class) && m.repelled(n, class);
        let uneven = |n: &String| m.affine(n, class) && !m.repelled(n, class);
        for blocker in &why.blockers {
            match blocker {
                Blocker::Affinity { nodes } => assert_eq!(*nodes, count(&apart)),
                Blocker::AntiAffinity { nodes } => assert_eq!(*nodes, count(&repelled)),
                Blocker::SpreadSkew { nodes } => assert_eq!(*nodes, count(&uneven)),
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_at_every_placement(
        classes in prop::collection::vec(class(), 1..5),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.apply(step, &classes);
        }
        for (.., id) in std::mem::take(&mut pair.model.tasks) {
            assert!(pair.real.release(id));
        }
        assert_eq!(check(&pair.real), Vec::<String>::new());
    }
}

fn node(zone: &str, cpu: i64) -> NodeSpec {
    NodeSpec {
        labels: map(&[("zone", zone)]),
        allocatable: BTreeMap::from([("cpu".to_string(), cpu)]),
        ready: true,
        ..NodeSpec::default()
    }
}

/// A roomy node in each of these zones.
fn story(zones: &[&str]) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.set_queue("q", Some(QueueSpec::default()));
    for (i, zone) in zones.iter().enumerate() {
        cluster.upsert_node(&format!("n{i}"), node(zone, 1000));
    }
    cluster
}

/// Selects tasks by their `app`.
fn of_app(key: &str, app: &str) -> TaskTerm {
    TaskTerm {
        topology_key: key.into(),
        selector: vec![Expression {
            key: "app".into(),
            operator: Operator::In,
            values: vec![app.into()],
        }],
    }
}

fn app(name: &str) -> ClassSpec {
    ClassSpec {
        requests: BTreeMap::from([("cpu".to_string(), 1)]),
        labels: map(&[("app", name)]),
        ..ClassSpec::default()
    }
}

/// Tasks per node that one cycle places.
fn run(cluster: &mut Cluster, class: ClassSpec, count: u32) -> BTreeMap<String, u32> {
    let queue = cluster.queue("q");
    let demand = Demand::new(1, Class::new(class), queue, count);
    let outcome = cycle(cluster, &[demand], 0, Options::default());
    assert_eq!(check(cluster), Vec::<String>::new());
    let mut out = BTreeMap::new();
    for p in outcome.placements {
        let name = cluster.node_name(p.node).to_string();
        *out.entry(name).or_default() += 1;
    }
    out
}

fn counts(pairs: &[(&str, u32)]) -> BTreeMap<String, u32> {
    pairs.iter().map(|(n, c)| (n.to_string(), *c)).collect()
}

#[test]
fn a_thousand_tasks_over_three_zones_fill_one_node_in_each() {
    let mut cluster = story(&["a", "a", "b", "b", "c", "c"]);
    let class = ClassSpec {
        spread: vec![Spread {
            term: of_app("zone", "web"),
            max_skew: 1,
            required: true,
        }],
        ..app("web")
    };
    let placed = run(&mut cluster, class, 999);
    assert_eq!(
        placed.values().copied().collect::<Vec<_>>(),
        [333, 333, 333]
    );
}

#[test]
fn a_soft_spread_goes_on_where_there_is_room() {
    let mut cluster = story(&["a", "b"]);
    cluster.upsert_node("n1", node("b", 3));
    let spread = |required| ClassSpec {
        spread: vec![Spread {
            term: of_app("zone", "web"),
            max_skew: 2,
            required,
        }],
        ..app("web")
    };
    assert_eq!(
        run(&mut cluster, spread(true), 20),
        counts(&[("n0", 5), ("n1", 3)])
    );
    assert_eq!(run(&mut cluster, spread(false), 20), counts(&[("n0", 20)]));
}

#[test]
fn who_is_repelled_by_what_runs_stays_away_without_a_rule_of_its_own() {
    let mut cluster = story(&["a", "b"]);
    cluster.upsert_node("small", node("a", 5));
    let class = ClassSpec {
        anti_affinity: vec![of_app("zone", "noisy")],
        ..app("quiet")
    };
    let queue = cluster.queue("q");
    let quiet = cluster.bind("n0", queue, &Class::new(class), Run::since(0));
    assert_eq!(run(&mut cluster, app("noisy"), 2), counts(&[("n1", 2)]));
    // Twice, so that its index has parked the node; then nothing keeps it away any more.
    assert_eq!(run(&mut cluster, app("noisy"), 3), counts(&[("n1", 3)]));
    cluster.remove_node("n1");
    assert_eq!(run(&mut cluster, app("noisy"), 3), counts(&[]));
    assert!(cluster.release(quiet));
    let all = counts(&[("n0", 1000), ("small", 5)]);
    assert_eq!(run(&mut cluster, app("noisy"), 1005), all);
}

#[test]
fn the_first_of_a_kind_chooses_where_all_go() {
    let mut cluster = story(&["a", "b", "b"]);
    let class = ClassSpec {
        affinity: vec![of_app("zone", "web")],
        anti_affinity: vec![of_app(HOST, "web")],
        ..app("web")
    };
    // One task per host, all in one zone: no zone has more than two.
    let placed = run(&mut cluster, class.clone(), 3);
    assert!(placed.len() < 3 && placed.values().all(|n| *n == 1));
    let queue = cluster.queue("q");
    let why = explain(&mut cluster, &Class::new(class), queue, 1);
    let used = placed.len() as u32;
    let both = [
        Blocker::Affinity { nodes: 3 - used },
        Blocker::AntiAffinity { nodes: used },
    ];
    assert_eq!(why.blockers, both);
}

#[test]
fn a_node_that_becomes_like_those_shut_before_is_found() {
    let mut cluster = story(&[]);
    for name in ["n0", "n1", "n2"] {
        cluster.upsert_node(name, node("a", 2));
    }
    let queue = cluster.queue("q");
    let mut other = || {
        let class = Class::new(app("other"));
        cluster.bind("n2", queue, &class, Run::since(0))
    };
    let (_, second) = (other(), other());
    let class = ClassSpec {
        anti_affinity: vec![of_app(HOST, "web")],
        ..app("web")
    };
    let mut placed = run(&mut cluster, class.clone(), 1);
    placed.extend(run(&mut cluster, class.clone(), 3));
    assert_eq!(placed, counts(&[("n0", 1), ("n1", 1)]));
    // It has now as much free as the two that the class is kept from, and is in their state.
    assert!(cluster.release(second));
    assert_eq!(run(&mut cluster, class, 1), counts(&[("n2", 1)]));
}
