//! The cycle: one pass over what waits. Reads as its stages: whose turn it is (agenda), whether its
//! queue allows it, place; and when that fails make room (preempt) or keep room (ahead). What is
//! placed is taken from the cluster at once, so admission, limits, rules and placement cannot
//! disagree: there is no second decision.

use crate::agenda::{Agenda, Unit, head_room};
use crate::ahead::{Ahead, Need, Pick, Promises};
use crate::attempt::Attempt;
use crate::cluster::{Cluster, NodeId, TaskId};
use crate::mutant::{Mutant, mutant};
use crate::place::{Budget, Veto};
use crate::spec::{Backfill, Demand, NEVER, Order, Time};

/// Reservations of one cycle at most; under conservative backfill each costs a look at the nodes.
const RESERVATIONS_MAX: usize = 1000;

/// How much a cycle may do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Work units: demands looked at, states scored, nodes taken. The caller maps time to units,
    /// so that a replay decides the same. The cycle ends soon after they are spent.
    pub budget: u64,
    /// Most tasks placed, so that what follows from a cycle (writes) stays bounded too. A gang
    /// whose turn comes first starts whole all the same.
    pub placements: u32,
    /// Most tasks evicted.
    pub evictions: u32,
    /// A demand that waits longer than this may keep newcomers off nodes even if nobody knows when
    /// these will be free.
    pub patience: Time,
    /// What an eviction costs a task besides the work that is lost: its stop and its new start.
    pub restart: Time,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            budget: u64::MAX,
            placements: u32::MAX,
            evictions: u32::MAX,
            patience: Time::MAX,
            restart: 0,
        }
    }
}

/// One task that got a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Position in the demands.
    pub demand: u32,
    /// Where.
    pub node: NodeId,
    /// What it holds there, to be released when it ends or when its start fails.
    pub task: TaskId,
    /// Others must leave first: it may start once [`Cluster::may_start`] says so.
    pub waits: bool,
}

/// One task that has to leave, for the sake of a demand that was placed in the same cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Who leaves. The cluster counts it as leaving from now on.
    pub task: TaskId,
    /// For whom: position in the demands.
    pub demand: u32,
}

/// A start in the future that later demands do not delay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Position in the demands.
    pub demand: u32,
    /// When; [`crate::NEVER`] when the nodes are only kept free of newcomers.
    pub start: Time,
    /// Where, with the number of tasks.
    pub nodes: Vec<(NodeId, u32)>,
}

/// Why tasks of a demand still wait; [`crate::explain()`] says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The queue is not there.
    QueueMissing,
    /// The queue has no place in the tree: its parent is missing, or it is its own ancestor.
    QueueDetached,
    /// The limit of its queue, or of one above, is reached.
    QueueLimit,
    /// No node takes one more.
    NoFit,
    /// Some node would take one more, but that would delay a reservation.
    Reserved,
    /// Another member of its gang could not be placed: position of that demand.
    Gang(u32),
    /// The budget, or the number of placements allowed, ended before it was this demand's turn, or during it.
    Budget,
}

/// What is left of a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Position in the demands.
    pub demand: u32,
    /// Tasks that still wait.
    pub count: u32,
    /// Why.
    pub cause: Cause,
}

/// What a cycle decided.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// In the order decided.
    pub placements: Vec<Placement>,
    /// In the order decided.
    pub evictions: Vec<Eviction>,
    /// In the order looked at.
    pub waiting: Vec<Waiting>,
    /// In the order made.
    pub reservations: Vec<Reservation>,
    /// Work units spent.
    pub units: u64,
}

/// Decides as many of the demands as the budget allows.
pub fn cycle(cluster: &mut Cluster, demands: &[Demand], now: Time, options: Options) -> Outcome {
    cluster.advance(now);
    cluster.sweep();
    let mut agenda = Agenda::new(cluster, demands, now);
    let mut pass = Pass {
        left: demands.iter().map(|d| d.count).collect(),
        started: vec![false; demands.len()],
        outcome: Outcome::default(),
        budget: Budget {
            left: options.budget,
            spent: 0,
        },
        ahead: Ahead::with(std::mem::take(&mut cluster.lanes), now),
        promises: std::mem::take(&mut cluster.promises),
        overtaking: false,
        demands,
        now,
        options,
    };
    pass.promises.renew(cluster, demands, &mut pass.ahead);
    agenda.sequence(cluster, demands, now, &mut pass.budget);
    while let Some(turn) = agenda.next(cluster) {
        let unit = agenda.unit(turn.unit).clone();
        if agenda.holds(turn.unit) {
            pass.hold_back(cluster, &unit);
            agenda.over(&turn, false);
            continue;
        }
        let waiting = pass.outcome.waiting.len();
        let more = pass.turn(cluster, &unit, turn.most);
        agenda.over(&turn, more);
        if pass.outcome.waiting.len() > waiting {
            agenda.hold_nothing();
        }
        if std::mem::take(&mut pass.overtaking) {
            agenda.overtake(cluster, demands);
        }
    }
    cluster.promises = pass.promises;
    cluster.lanes = pass.ahead.into_lanes();
    pass.outcome.units = pass.budget.spent;
    pass.outcome
}

/// What a cycle keeps while it goes through its turns.
struct Pass<'a> {
    demands: &'a [Demand],
    now: Time,
    options: Options,
    budget: Budget,
    /// Tasks not placed yet, per demand.
    left: Vec<u32>,
    /// Of gangs: the minimum is placed.
    started: Vec<bool>,
    ahead: Ahead,
    promises: Promises,
    /// The first reservation was made just now: what follows can only overtake.
    overtaking: bool,
    outcome: Outcome,
}

impl<'a> Pass<'a> {
    /// One turn of a unit; true if it may have another one.
    fn turn(&mut self, cluster: &mut Cluster, unit: &Unit, most: u32) -> bool {
        let first = unit.demands[0] as usize;
        let whole = unit.gang != 0 && !self.started[first];
        let room = self.room();
        if self.budget.left == 0 || room == 0 {
            return self.blocked(unit, |_| Cause::Budget);
        }
        for position in &unit.demands {
            let id = self.demands[*position as usize].id;
            self.promises.withdraw(id, &mut self.ahead);
        }
        if whole {
            return self.start_gang(cluster, unit);
        }
        // The demands of a gang that has started, and single demands: as many as there is room for.
        let mut most = most.min(room);
        let mut open = false;
        for position in &unit.demands {
            let want = self.left[*position as usize].min(most);
            if want == 0 {
                open |= self.left[*position as usize] > 0;
                continue;
            }
            let (attempt, answer) = self.attempt(cluster, &[(*position, want)], None);
            let placed = attempt.placements.len() as u32;
            self.take(attempt);
            most -= placed;
            let (missing, cause) = match answer {
                Err((_, cause)) => (want - placed, cause),
                Ok(()) if self.left[*position as usize] == 0 => continue,
                // Told at once and not in its next turn: until then a task that no limit lets in
                // would stand for its queue, in the place of those whom a guarantee lets past.
                Ok(()) if self.is_shut_out(cluster, *position) => (1, Cause::QueueLimit),
                Ok(()) => {
                    open = true;
                    continue;
                }
            };
            self.push_aside(cluster, *position, missing, cause);
            if self.left[*position as usize] == 0 {
                continue;
            }
            let count = std::mem::take(&mut self.left[*position as usize]);
            self.outcome.waiting.push(Waiting {
                demand: *position,
                count,
                cause,
            });
            self.reserve(cluster, &[(*position, 1)], cause);
        }
        open
    }

    /// Whether limits of queues let no further task of a demand in.
    fn is_shut_out(&self, cluster: &mut Cluster, position: u32) -> bool {
        let demand = &self.demands[position as usize];
        let class = cluster.class(&demand.class);
        let shape = cluster.classes.all[class as usize].shape;
        let requests = &cluster.tasks.shapes.get(shape).requests;
        head_room(cluster, demand.queue.0, requests, 1).0 == 0
    }

    /// A unit for whose place a plan has a better use now. It may have a reservation all the same.
    fn hold_back(&mut self, cluster: &mut Cluster, unit: &Unit) {
        let wants: Vec<(u32, u32)> = unit
            .demands
            .iter()
            .map(|position| (*position, self.min(*position).max(1)))
            .collect();
        self.reserve(cluster, &wants, Cause::Reserved);
        self.blocked(unit, |_| Cause::Reserved);
    }

    /// The minimum of every demand of a gang, or nothing.
    fn start_gang(&mut self, cluster: &mut Cluster, unit: &Unit) -> bool {
        let total: u64 = unit.demands.iter().map(|p| u64::from(self.min(*p))).sum();
        let idle = self.outcome.placements.is_empty();
        if total > u64::from(self.room()) && !idle {
            return self.blocked(unit, |_| Cause::Budget);
        }
        let wants: Vec<(u32, u32)> = unit
            .demands
            .iter()
            .map(|position| (*position, self.min(*position)))
            .filter(|(_, min)| *min > 0)
            .collect();
        // A gang that a whole cycle's budget does not suffice for would never start otherwise.
        let budget = idle.then_some(u64::MAX);
        let (attempt, answer) = self.attempt(cluster, &wants, budget);
        if let Err((at, cause)) = answer
            && !mutant(Mutant::PartOfGang)
        {
            attempt.undo(cluster);
            if self.push_aside_for_gang(cluster, &wants, cause) {
                return self.gang_started(unit);
            }
            self.reserve(cluster, &wants, cause);
            return self.blocked(unit, |p| if p == at { cause } else { Cause::Gang(at) });
        }
        self.take(attempt);
        self.gang_started(unit)
    }

    fn gang_started(&mut self, unit: &Unit) -> bool {
        for position in &unit.demands {
            self.started[*position as usize] = true;
        }
        // What is beyond the minimum comes in turns of its own, like any other work.
        unit.demands.iter().any(|p| self.left[*p as usize] > 0)
    }

    /// Places what is wanted of each demand, in order, up to the first that cannot be placed in
    /// full: that one is named with the cause. Nothing is undone.
    fn attempt(
        &mut self,
        cluster: &mut Cluster,
        wants: &[(u32, u32)],
        budget: Option<u64>,
    ) -> (Attempt<'a>, Result<(), (u32, Cause)>) {
        let mut budget = Budget {
            left: budget.unwrap_or(self.budget.left),
            spent: 0,
        };
        let mut attempt = Attempt::new(self.demands, self.now, self.options.restart);
        let mut answer = Ok(());
        for (position, want) in wants {
            let demand = &self.demands[*position as usize];
            let end_max = demand.starts(self.now).end_max;
            let reserved = (!self.ahead.is_empty() && !mutant(Mutant::IgnoreReservation))
                .then(|| self.ahead.veto(end_max));
            let vetoes: Vec<&dyn Veto> = reserved.iter().map(|v| v as &dyn Veto).collect();
            let first = match reserved.is_some() && pick(cluster, demand) == Pick::Latest {
                true => self.ahead.reserved_nodes(),
                false => Vec::new(),
            };
            let placed = attempt.place(cluster, (*position, *want), &first, &vetoes, &mut budget);
            if let Err(cause) = placed {
                answer = Err((*position, cause));
                break;
            }
        }
        self.budget.spend(budget.spent);
        (attempt, answer)
    }

    /// Places up to `want` tasks of a demand by evicting others, one first, then twice as many as
    /// long as that goes well: a search for many costs more than one for few.
    fn push_aside(&mut self, cluster: &mut Cluster, position: u32, want: u32, cause: Cause) {
        let mut left = want.min(self.room());
        let (mut step, mut growing) = (1, true);
        while left > 0 && self.may_evict(cause) {
            let demand = &self.demands[position as usize];
            let count = step.min(left);
            let mut attempt = Attempt::new(self.demands, self.now, self.options.restart);
            let reserved =
                (!self.ahead.is_empty() && !mutant(Mutant::IgnoreReservation)).then(|| {
                    let end_max = demand.starts(self.now).end_max;
                    self.ahead.veto(end_max)
                });
            let vetoes: Vec<&dyn Veto> = reserved.iter().map(|v| v as &dyn Veto).collect();
            let victims = self.victims_max(cluster, position);
            let budget = &mut self.budget;
            if attempt.make_room(cluster, position, count, victims, &vetoes, budget) {
                drop(vetoes);
                drop(reserved);
                self.evicted(cluster, &attempt);
                self.take(attempt);
                left -= count;
                step = if growing {
                    step.saturating_mul(2)
                } else {
                    step
                };
            } else if count > 1 {
                growing = false;
                step = count / 2;
            } else {
                return;
            }
        }
    }

    /// The minimum of every demand of a gang, by evicting others where it does not fit, or nothing.
    fn push_aside_for_gang(
        &mut self,
        cluster: &mut Cluster,
        wants: &[(u32, u32)],
        cause: Cause,
    ) -> bool {
        if !self.may_evict(cause) {
            return false;
        }
        let mut attempt = Attempt::new(self.demands, self.now, self.options.restart);
        let mut budget = self.budget;
        let whole = wants.iter().all(|(position, want)| {
            let demand = &self.demands[*position as usize];
            let end_max = demand.starts(self.now).end_max;
            let reserved = (!self.ahead.is_empty() && !mutant(Mutant::IgnoreReservation))
                .then(|| self.ahead.veto(end_max));
            let vetoes: Vec<&dyn Veto> = reserved.iter().map(|v| v as &dyn Veto).collect();
            let answer = attempt.place(cluster, (*position, *want), &[], &vetoes, &mut budget);
            let left = want - attempt.placed(*position);
            let used = u32::try_from(attempt.evictions.len()).unwrap_or(u32::MAX);
            let victims = self.victims_max(cluster, *position).saturating_sub(used);
            answer.is_ok()
                || attempt.make_room(cluster, *position, left, victims, &vetoes, &mut budget)
        });
        self.budget = budget;
        if whole {
            self.evicted(cluster, &attempt);
            self.take(attempt);
        } else {
            attempt.undo(cluster);
        }
        whole
    }

    fn may_evict(&self, cause: Cause) -> bool {
        matches!(cause, Cause::NoFit | Cause::Reserved | Cause::QueueLimit) && self.budget.left > 0
    }

    /// How many tasks may still be evicted for a demand.
    fn victims_max(&self, cluster: &Cluster, position: u32) -> u32 {
        let queue = self.demands[position as usize].queue;
        let evicted = u32::try_from(self.outcome.evictions.len()).unwrap_or(u32::MAX);
        let left = self.options.evictions.saturating_sub(evicted);
        left.min(cluster.queues[queue.0 as usize].evictions_left)
    }

    /// Counts evictions against the bounds of those for whom they are.
    fn evicted(&mut self, cluster: &mut Cluster, attempt: &Attempt<'_>) {
        for eviction in &attempt.evictions {
            let queue = self.demands[eviction.demand as usize].queue;
            let left = &mut cluster.queues[queue.0 as usize].evictions_left;
            if *left != u32::MAX {
                *left = left.saturating_sub(1);
            }
        }
    }

    /// Keeps a place in the future for tasks that cannot start now, if it is their queue's way and
    /// their turn: under EASY the first that cannot start has one, under conservative backfill all.
    fn reserve(&mut self, cluster: &mut Cluster, wants: &[(u32, u32)], cause: Cause) {
        if !matches!(cause, Cause::NoFit | Cause::Reserved) {
            return;
        }
        let Some((first, _)) = wants.first() else {
            return;
        };
        let demand = &self.demands[*first as usize];
        let queue = &cluster.queues[demand.queue.0 as usize];
        let made = self.outcome.reservations.len();
        let backfill = queue.spec.as_ref().map(|s| s.backfill);
        let conservative = backfill == Some(Backfill::Conservative);
        let may = match backfill {
            None | Some(Backfill::Off) => false,
            Some(Backfill::Easy) => made == 0,
            Some(Backfill::Conservative) => made < RESERVATIONS_MAX,
        };
        if !may || self.budget.left == 0 {
            return;
        }
        let needs: Vec<Need> = wants
            .iter()
            .map(|(position, count)| {
                let demand = &self.demands[*position as usize];
                Need {
                    class: cluster.class(&demand.class),
                    count: *count,
                    run_max: demand.run_max.max(demand.run),
                }
            })
            .collect();
        let budget = &mut self.budget;
        let pick = pick(cluster, demand);
        let known = self.ahead.earliest(cluster, &needs, pick, &[], budget);
        let waited = self.now.saturating_sub(demand.created);
        let slot = match known {
            // It fits as far as amounts go, and was refused for another reason: keeping others off
            // would not help it.
            Some(slot) if slot.start <= self.now => None,
            Some(slot) => Some(slot),
            None if waited > self.options.patience => self.ahead.hold(cluster, &needs),
            None => None,
        };
        if let Some(slot) = slot {
            self.overtaking = made == 0;
            if conservative && slot.start != NEVER {
                let ahead = &mut self.ahead;
                self.promises.give(cluster, demand.id, &slot, &needs, ahead);
            } else {
                self.ahead.reserve(cluster, &slot, &needs, 0);
            }
            let places = slot.places.iter();
            self.outcome.reservations.push(Reservation {
                demand: *first,
                start: slot.start,
                nodes: places.map(|(node, _, n)| (NodeId(*node), *n)).collect(),
            });
        }
    }

    fn min(&self, position: u32) -> u32 {
        let demand = &self.demands[position as usize];
        demand.min.min(demand.count)
    }

    /// How many more tasks this cycle may place.
    fn room(&self) -> u32 {
        let placed = u32::try_from(self.outcome.placements.len()).unwrap_or(u32::MAX);
        self.options.placements.saturating_sub(placed)
    }

    /// Everything that is left of the unit waits.
    fn blocked(&mut self, unit: &Unit, cause: impl Fn(u32) -> Cause) -> bool {
        for position in &unit.demands {
            let count = std::mem::take(&mut self.left[*position as usize]);
            if count > 0 {
                self.outcome.waiting.push(Waiting {
                    demand: *position,
                    count,
                    cause: cause(*position),
                });
            }
        }
        false
    }

    fn take(&mut self, attempt: Attempt<'_>) {
        for placement in attempt.placements {
            self.left[placement.demand as usize] -= 1;
            self.outcome.placements.push(placement);
        }
        self.outcome.evictions.extend(attempt.evictions);
    }
}

/// How reservations for a queue choose nodes. Under [`Order::Fifo`] as in the textbook; otherwise
/// so that they are least in the way of others.
fn pick(cluster: &Cluster, demand: &Demand) -> Pick {
    let queue = &cluster.queues[demand.queue.0 as usize];
    match queue.spec.as_ref().map(|s| s.order) {
        None | Some(Order::Fifo) => Pick::Lowest,
        Some(_) => Pick::Latest,
    }
}
