//! Agenda: whose turn it is. Units (single demands and gangs) by the shares of their queues and,
//! inside a queue, by its own rule.

use fixedbitset::FixedBitSet;

use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::fair::bulk::Slots;
pub(crate) use crate::fair::limits::head_room;
use crate::fair::share::share;
use crate::fair::tree::{Ask, Head, Source, Tree};
use crate::intern::FxMap;
use crate::order::{overtaking, within};
use crate::place::Budget;
use crate::sequence::{Sequence, sequence};
use crate::spec::{Backfill, Class, Demand, Order, QueueSpec, Time};

/// What is decided together: one demand, or all demands of a gang.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// Positions in the cycle's demands; of a gang by (created, id).
    pub demands: Vec<u32>,
    /// 0 for a single demand.
    pub gang: u64,
    /// Part of it runs already: it goes before everything else.
    pub healing: bool,
}

/// One unit's turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub unit: u32,
    /// Tasks that it may place before another's turn comes; a gang's minimum ignores it.
    pub most: u32,
}

pub(crate) struct Agenda {
    units: Vec<Unit>,
    /// Units that heal, in order, and how many of them are done.
    healing: (Vec<u32>, usize),
    tree: Tree,
    /// Units whose queue has no place in the tree. They get their turn to hear so.
    stray: (Vec<u32>, usize),
    slots: Slots,
    /// By ask, for counting what is free.
    classes: Vec<Class>,
    given: Option<Given>,
    /// Units that a plan holds back, by number.
    held: FixedBitSet,
}

/// A turn that was given, and how often the use of queues had changed before it.
struct Given {
    turn: Turn,
    place: Place,
    charges: u64,
    queue_charges: u64,
    over: bool,
}

#[derive(Clone, Copy)]
enum Place {
    Healing,
    Leaf(u32),
    Stray,
}

impl Agenda {
    /// Everything that waits, in order. Costs as much as there are demands, and queues that have
    /// some; other queues cost nothing unless they are sisters of those.
    pub fn new(cluster: &Cluster, demands: &[Demand], now: Time) -> Self {
        let units = units(demands);
        let (asks, classes, of_demand) = asks(cluster, demands);
        let heads: Vec<Head> = units
            .iter()
            .map(|unit| {
                let first = unit.demands[0] as usize;
                Head {
                    ask: of_demand[first],
                    age: (demands[first].created, demands[first].id),
                    count: unit
                        .demands
                        .iter()
                        .map(|d| u64::from(demands[*d as usize].count))
                        .sum(),
                }
            })
            .collect();
        let waiting = heads.iter().map(|h| h.count).fold(0, u64::saturating_add);
        let mut agenda = Agenda {
            slots: Slots::new(asks.len(), waiting),
            tree: Tree::new(cluster, heads, asks, now.max(cluster.now)),
            units,
            healing: (Vec::new(), 0),
            stray: (Vec::new(), 0),
            classes,
            given: None,
            held: FixedBitSet::new(),
        };
        agenda.seat(cluster, demands);
        agenda.tree.start(cluster);
        agenda
    }

    /// A unit by number.
    pub fn unit(&self, unit: u32) -> &Unit {
        &self.units[unit as usize]
    }

    /// Whose turn it is by shares and orders as they are in the cluster now; None when nothing is left.
    pub fn next(&mut self, cluster: &Cluster) -> Option<Turn> {
        self.catch_up(cluster);
        if let Some(given) = &self.given {
            return Some(given.turn);
        }
        let all = u32::MAX;
        let (place, unit, most) = if let Some(unit) = self.healing.0.get(self.healing.1) {
            (Place::Healing, *unit, all)
        } else if let Some(leaf) = self.tree.first() {
            let unit = self.tree.nodes[leaf as usize].head;
            let class = &self.classes[self.tree.heads[unit as usize].ask as usize];
            let most = self.tree.most(cluster, leaf, class, &mut self.slots);
            (Place::Leaf(leaf), unit, most)
        } else {
            (Place::Stray, *self.stray.0.get(self.stray.1)?, all)
        };
        let turn = Turn { unit, most };
        self.given = Some(Given {
            turn,
            place,
            charges: cluster.charges,
            queue_charges: self.queue_charges(cluster, place),
            over: false,
        });
        Some(turn)
    }

    /// The turn is over. `more`: the unit has tasks left that may still be placed, so it gets
    /// further turns by its share; otherwise it is done, or blocked for this cycle.
    pub fn over(&mut self, turn: &Turn, more: bool) {
        let Some(given) = &mut self.given else {
            return;
        };
        debug_assert_eq!(given.turn.unit, turn.unit);
        given.over = true;
        if !more {
            match given.place {
                Place::Healing => self.healing.1 += 1,
                Place::Leaf(leaf) => self.tree.go_on(leaf),
                Place::Stray => self.stray.1 += 1,
            }
        }
    }

    /// Plans what the queues that leave the order to Rota start now and what they hold back; see
    /// [`crate::sequence`].
    pub fn sequence(
        &mut self,
        cluster: &mut Cluster,
        demands: &[Demand],
        now: Time,
        budget: &mut Budget,
    ) {
        cluster.sizes.turn_over();
        let mut planned_any = false;
        for node in &mut self.tree.nodes {
            let Some(first) = node.units.get(node.at) else {
                continue;
            };
            let queue = demands[self.units[*first as usize].demands[0] as usize].queue;
            let spec = cluster.queues[queue.0 as usize].spec.as_ref();
            let open = |s: &QueueSpec| {
                matches!(s.order, Order::Priority | Order::Fair) && s.backfill == Backfill::Easy
            };
            if !spec.is_some_and(open) {
                continue;
            }
            let rest = &mut node.units[node.at..];
            let planned = sequence(cluster, demands, &self.units, rest, now, budget);
            if let Some(Sequence { now, later, open }) = planned {
                self.held.grow(self.units.len());
                self.held.extend(later.iter().map(|unit| *unit as usize));
                let all = now.into_iter().chain(later).chain(open);
                for (place, unit) in rest.iter_mut().zip(all) {
                    *place = unit;
                }
                planned_any = true;
            }
        }
        if planned_any {
            self.tree.recount(cluster);
        }
    }

    /// Whether a plan holds the unit back.
    pub fn holds(&self, unit: u32) -> bool {
        self.held.contains(unit as usize)
    }

    /// Plans are void: nothing is held back any more.
    pub fn hold_nothing(&mut self) {
        self.held.clear();
    }

    /// The first that cannot start has a reservation: from now on units only overtake it. In queues
    /// that do not go by arrival, of equal priority the shortest go first.
    pub fn overtake(&mut self, cluster: &Cluster, demands: &[Demand]) {
        self.catch_up(cluster);
        let units = &self.units;
        let first = |u: &u32| &demands[units[*u as usize].demands[0] as usize];
        for node in &mut self.tree.nodes {
            let rest = &mut node.units[node.at..];
            let Some(queue) = rest.first().map(|u| first(u).queue.0) else {
                continue;
            };
            let spec = cluster.queues[queue as usize].spec.as_ref();
            if spec.is_some_and(|s| matches!(s.order, Order::Priority | Order::Fair)) {
                rest.sort_by(|a, b| overtaking(first(a), first(b)));
            }
        }
        self.tree.recount(cluster);
    }

    /// Brings the tree up to what happened in the last turn.
    fn catch_up(&mut self, cluster: &Cluster) {
        let Some(given) = self.given.take_if(|given| given.over) else {
            return;
        };
        let several = self.units[given.turn.unit as usize].demands.len() > 1;
        let changes = cluster.charges - given.charges;
        let own = self.queue_charges(cluster, given.place) - given.queue_charges;
        match given.place {
            Place::Leaf(leaf) if own == changes && !several => self.tree.lift(cluster, leaf),
            Place::Leaf(_) => self.tree.recount(cluster),
            Place::Healing if changes > 0 => self.tree.recount(cluster),
            Place::Healing | Place::Stray => {}
        }
    }

    fn queue_charges(&self, cluster: &Cluster, place: Place) -> u64 {
        match place {
            Place::Leaf(leaf) => {
                let queue = self.tree.nodes[leaf as usize].queue;
                cluster.queues[queue as usize].charges
            }
            Place::Healing | Place::Stray => 0,
        }
    }

    /// Gives every unit its place.
    fn seat(&mut self, cluster: &Cluster, demands: &[Demand]) {
        let rule = |queue: u32| {
            let spec = cluster.queues[queue as usize].spec.as_ref();
            spec.map_or(Order::Fifo, |s| s.order)
        };
        // A gang stands where its best demand would.
        let best = |unit: &Unit, rule: Order| {
            let each = unit.demands.iter().map(|d| &demands[*d as usize]);
            each.min_by(|a, b| within(rule, a, b))
        };
        let mut by_queue: FxMap<u32, Vec<u32>> = FxMap::default();
        for (u, unit) in self.units.iter().enumerate() {
            let queue = demands[unit.demands[0] as usize].queue.0;
            let entry = &cluster.queues[queue as usize];
            if unit.healing {
                self.healing.0.push(u as u32);
            } else if entry.spec.is_none() || entry.detached.is_some() {
                self.stray.0.push(u as u32);
            } else {
                by_queue.entry(queue).or_default().push(u as u32);
            }
        }
        let age = |u: &u32| {
            let first = &demands[self.units[*u as usize].demands[0] as usize];
            (first.created, first.id)
        };
        self.healing.0.sort_by_key(age);
        self.stray.0.sort_by_key(age);
        let mut queues: Vec<(u32, Vec<u32>)> = by_queue.into_iter().collect();
        queues.sort_unstable_by_key(|(queue, _)| *queue);
        let mut nodes: FxMap<u32, u32> = FxMap::default();
        for (queue, mut members) in queues {
            let rule = rule(queue);
            let of = |u: &u32| best(&self.units[*u as usize], rule);
            members.sort_by(|a, b| match (of(a), of(b)) {
                (Some(a), Some(b)) => within(rule, a, b),
                (a, b) => a.is_some().cmp(&b.is_some()),
            });
            let mut leaf = branch(&mut self.tree, &mut nodes, cluster, queue);
            if !cluster.queues[queue as usize].children.is_empty() {
                leaf = self.tree.add(queue, leaf, Source::Own, 1);
            }
            if rule != Order::Fair {
                self.tree.nodes[leaf as usize].units = members;
                continue;
            }
            let mut owners: FxMap<u64, u32> = FxMap::default();
            for unit in members {
                let owner = demands[self.units[unit as usize].demands[0] as usize].owner;
                let tree = &mut self.tree;
                let node = owners
                    .entry(owner)
                    .or_insert_with(|| tree.add(queue, leaf, Source::Owner(owner), 1));
                tree.nodes[*node as usize].units.push(unit);
            }
        }
    }
}

/// The node of a queue, made together with those above it where they are missing.
fn branch(tree: &mut Tree, nodes: &mut FxMap<u32, u32>, cluster: &Cluster, queue: u32) -> u32 {
    let mut missing = Vec::new();
    let mut at = queue;
    while at != NONE && !nodes.contains_key(&at) {
        missing.push(at);
        at = cluster.queues[at as usize].parent;
    }
    let mut node = if at == NONE { 0 } else { nodes[&at] };
    for queue in missing.into_iter().rev() {
        let entry = &cluster.queues[queue as usize];
        let weight = entry.spec.as_ref().map_or(1, |s| s.weight.max(1));
        let source = if entry.children.is_empty() {
            Source::Queue
        } else {
            Source::Below
        };
        node = tree.add(queue, node, source, weight);
        nodes.insert(queue, node);
    }
    node
}

/// Single demands, and gangs. Demands with nothing to place belong to nobody.
fn units(demands: &[Demand]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut gangs: FxMap<u64, usize> = FxMap::default();
    for (position, demand) in demands.iter().enumerate() {
        let position = position as u32;
        if demand.gang != 0
            && let Some(unit) = gangs.get(&demand.gang)
        {
            let unit = &mut units[*unit];
            unit.demands.push(position);
            unit.healing |= demand.healing;
            continue;
        }
        if demand.gang != 0 {
            gangs.insert(demand.gang, units.len());
        }
        units.push(Unit {
            demands: vec![position],
            gang: demand.gang,
            healing: demand.healing && demand.gang != 0,
        });
    }
    for unit in &mut units {
        if unit.demands.len() > 1 {
            let age = |d: &u32| (demands[*d as usize].created, demands[*d as usize].id);
            unit.demands.sort_by_key(age);
        }
    }
    units
}

/// What each class asks, in resource numbers; and which of these each demand asks.
fn asks(cluster: &Cluster, demands: &[Demand]) -> (Vec<Ask>, Vec<Class>, Vec<u32>) {
    let mut ids: FxMap<&Class, u32> = FxMap::default();
    let (mut asks, mut classes) = (Vec::new(), Vec::new());
    let of_demand = demands
        .iter()
        .map(|demand| {
            *ids.entry(&demand.class).or_insert_with(|| {
                // A resource that was never named is on no node: nobody's share counts it.
                let requests: Vec<(u32, i64)> = demand
                    .class
                    .spec()
                    .requests
                    .iter()
                    .filter_map(|(name, amount)| Some((cluster.resources.get(name)?, *amount)))
                    .collect();
                let part = |(r, amount): &(u32, i64)| {
                    share(i128::from(*amount), cluster.total[*r as usize])
                };
                // Of equal parts the first, so that it is always the same one.
                let most = requests.iter().map(part).max();
                let dominant = requests.iter().find(|ask| Some(part(ask)) == most);
                asks.push(Ask {
                    dominant: dominant.copied(),
                    requests,
                });
                classes.push(demand.class.clone());
                asks.len() as u32 - 1
            })
        })
        .collect();
    (asks, classes, of_demand)
}
