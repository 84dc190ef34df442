//! Ahead: what is known of the future within one cycle.
//!
//! Owns when running tasks give their nodes back ([`Run::end_max`](crate::spec::Run)) and which
//! amounts of which nodes are reserved from when until when. A reservation names nodes, not only
//! amounts: what it needs must be free on those nodes for as long as it may run, and only tasks
//! that would be in its way there are kept off. With whole-node jobs this is the EASY of Batsim;
//! counting free nodes instead lets tasks in that delay the reservation later.
//!
//! Nothing is looked at before the first question, and nodes that the asked class cannot use are
//! never looked at. A node's tasks are listed once and listed again only after they changed, also from
//! one cycle to the next.
//! Amounts of devices are sums here; whether single devices fit is decided at placement.

mod lane;
mod promises;
#[cfg(test)]
mod tests;

use fixedbitset::FixedBitSet;

pub(crate) use self::lane::Lanes;
use self::lane::{Walk, least, stuck, windows};
pub(crate) use self::promises::Promises;
use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::filter;
use crate::intern::FxMap;
use crate::place::{Budget, Veto};
use crate::spec::{NEVER, Time};

/// One question may spend one part in this many of what is left of the budget on looking at nodes,
/// so that a large cluster cannot take everything from the demands that follow.
const BUDGET_PART: u64 = 4;

/// Which nodes a slot names, of those that serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Those with the lowest numbers: the textbook's choice.
    Lowest,
    /// Those that become free last, so that nodes which are free now stay open for others.
    Latest,
}

/// Tasks of one class that are to start at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Number in `cluster.classes`.
    pub class: u32,
    /// How many.
    pub count: u32,
    /// How long each may run.
    pub run_max: Time,
}

/// Where and when needs fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// [`NEVER`] for a hold: the moment is not known.
    pub start: Time,
    /// Node, position in the needs, tasks. By node, ascending.
    pub places: Vec<(u32, u32, u32)>,
}

/// Amounts of a node that are reserved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    from: Time,
    to: Time,
    shape: u32,
    count: u32,
    /// For whom, so that it can be taken back: see [`Ahead::reserve`].
    holder: u64,
}

/// What is known of the future within one cycle.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    now: Time,
    lanes: Lanes,
    held: FxMap<u32, Vec<Held>>,
}

impl Ahead {
    /// Knows nothing yet, and costs nothing until it is asked.
    pub fn new(now: Time) -> Self {
        Ahead::with(Lanes::default(), now)
    }

    /// The same with what an earlier cycle knew.
    pub fn with(mut lanes: Lanes, now: Time) -> Self {
        lanes.advance(now);
        Ahead {
            now,
            lanes,
            held: FxMap::default(),
        }
    }

    /// What a later cycle may need to know.
    pub fn into_lanes(self) -> Lanes {
        self.lanes
    }

    /// The same, where running tasks end when they are expected to
    /// ([`Run::end`](crate::spec::Run)): for forecasts, not for promises.
    pub fn expected(now: Time) -> Self {
        let mut ahead = Ahead::new(now);
        ahead.lanes.expected = true;
        ahead
    }

    /// Whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The earliest moment at which all needs fit at once, each for its `run_max`, beside running
    /// tasks and reservations, and nodes as `pick` says.
    ///
    /// Exact for one need; several are packed one after the other. A task whose
    /// end is unknown never gives back. Vetoes count as they stand now. When the part of the budget
    /// that one question may spend ends, only the nodes looked at so far count.
    ///
    /// None when there is no such moment.
    pub fn earliest(
        &mut self,
        cluster: &Cluster,
        needs: &[Need],
        pick: Pick,
        vetoes: &[&dyn Veto],
        budget: &mut Budget,
    ) -> Option<Slot> {
        let may_spend = budget.left / BUDGET_PART;
        let mut spent = 0;
        let candidates: Vec<Candidates> = needs
            .iter()
            .map(|need| {
                let part = (may_spend / needs.len() as u64).saturating_add(spent);
                self.candidates(cluster, *need, vetoes, &mut spent, part)
            })
            .collect();
        budget.spend(spent);
        // One list of changes of how many tasks of each need fit.
        let mut changes = Vec::with_capacity(candidates.iter().map(|c| c.changes.len()).sum());
        for (n, need) in candidates.iter().enumerate() {
            let mine = need.changes.iter();
            changes.extend(mine.map(|(at, by)| (*at, n as u32, *by)));
        }
        changes.sort_unstable_by_key(|(at, _, _)| *at);
        let mut fitting = vec![0i64; needs.len()];
        let mut rest = changes.as_slice();
        while let Some((at, _, _)) = rest.first() {
            let now = rest.partition_point(|(other, _, _)| other <= at);
            for (_, need, by) in &rest[..now] {
                fitting[*need as usize] += by;
            }
            rest = &rest[now..];
            let enough = |(fit, need): (&i64, &Need)| *fit >= i64::from(need.count);
            if fitting.iter().zip(needs).all(enough) {
                budget.spend(candidates.iter().map(|c| c.nodes.len() as u64).sum());
                if let Some(slot) = self.pack(cluster, (*at, pick), needs, &candidates) {
                    return Some(slot);
                }
                if budget.left == 0 {
                    return None;
                }
            }
        }
        None
    }

    /// Nodes to keep newcomers off while nobody knows when the needs will fit, because tasks
    /// without a known end hold what is needed. The start of the slot is [`NEVER`].
    ///
    /// Takes the nodes where tasks without a known end hold least, then those whose others end
    /// first. Asked again in later cycles it comes to its end: newcomers stay off the nodes taken,
    /// so what the best nodes still have occupied only shrinks. What does not end by itself is not
    /// waited for. None when what is left of the nodes beside it does not hold the needs.
    pub fn hold(&mut self, cluster: &Cluster, needs: &[Need]) -> Option<Slot> {
        let mut places = Vec::new();
        let mut taken: FxMap<u32, Vec<Held>> = FxMap::default();
        for (n, need) in needs.iter().enumerate() {
            let allowed = allowed_profiles(cluster, need.class);
            let shape_id = cluster.classes.all[need.class as usize].shape;
            let shape = cluster.tasks.shapes.get(shape_id);
            let mut ranked: Vec<(i128, Time, u32)> = Vec::new();
            for node in usable(cluster, &allowed) {
                self.lanes.look(cluster, node);
                let releases = self.lanes.of(node);
                ranked.push((
                    stuck(cluster, node, releases, shape),
                    releases.last().map_or(self.now, |r| r.at),
                    node,
                ));
            }
            ranked.sort_unstable();
            let mut left = need.count;
            let mut walk = Walk::new(shape);
            for (_, _, node) in ranked {
                if left == 0 {
                    break;
                }
                let profile = cluster.nodes[node as usize].profile as usize;
                walk.start(&cluster.profiles.all[profile].capacity, 0);
                let mut at = cluster.nodes[node as usize].first_task;
                while at != NONE {
                    let task = &cluster.tasks.slots[at as usize];
                    at = task.next;
                    if cluster.tasks.runs.get(task.run).stays && !task.leaving {
                        walk.change(cluster.tasks.shapes.get(task.shape), -1);
                    }
                }
                let others = self.held.get(&node).into_iter();
                for held in others.chain(taken.get(&node)).flatten() {
                    let other = cluster.tasks.shapes.get(held.shape);
                    walk.change(other, -i64::from(held.count));
                }
                let count = walk.fit().min(left);
                if count > 0 {
                    left -= count;
                    places.push((node, n as u32, count));
                    taken.entry(node).or_default().push(Held {
                        from: self.now,
                        to: NEVER,
                        shape: shape_id,
                        count,
                        holder: 0,
                    });
                }
            }
            if left > 0 {
                return None;
            }
        }
        places.sort_unstable();
        Some(Slot {
            start: NEVER,
            places,
        })
    }

    /// Holds the slot against later demands. [`Ahead::withdraw`] gives back what a holder has.
    pub fn reserve(&mut self, cluster: &Cluster, slot: &Slot, needs: &[Need], holder: u64) {
        for (node, need, count) in &slot.places {
            let Need { class, run_max, .. } = needs[*need as usize];
            let (from, to) = if slot.start == NEVER {
                (self.now, NEVER)
            } else {
                (slot.start, slot.start.saturating_add(run_max.max(1)))
            };
            self.held.entry(*node).or_default().push(Held {
                from,
                to,
                shape: cluster.classes.all[class as usize].shape,
                count: *count,
                holder,
            });
        }
    }

    /// Gives back what a holder has reserved in the slot.
    pub fn withdraw(&mut self, slot: &Slot, holder: u64) {
        for (node, _, _) in &slot.places {
            if let Some(held) = self.held.get_mut(node) {
                held.retain(|h| h.holder != holder);
                if held.is_empty() {
                    self.held.remove(node);
                }
            }
        }
    }

    /// Reserves a slot again that was found earlier; false, and nothing is reserved, when it lies
    /// in the past or is not free any more.
    pub fn renew(&mut self, cluster: &Cluster, slot: &Slot, needs: &[Need], holder: u64) -> bool {
        let mut renewed = Slot {
            start: slot.start,
            places: Vec::with_capacity(slot.places.len()),
        };
        let allowed: Vec<FixedBitSet> = needs
            .iter()
            .map(|need| allowed_profiles(cluster, need.class))
            .collect();
        let mut free = slot.start >= self.now && slot.start != NEVER;
        for (node, n, count) in &slot.places {
            let need = needs[*n as usize];
            let profile = cluster.nodes[*node as usize].profile;
            free &= profile != NONE && allowed[*n as usize].contains(profile as usize);
            if !free {
                break;
            }
            let shape = cluster.classes.all[need.class as usize].shape;
            let mut walk = Walk::new(cluster.tasks.shapes.get(shape));
            self.lanes.look(cluster, *node);
            let held = self.held.get(node).map_or(&[][..], Vec::as_slice);
            let span = (slot.start, slot.start.saturating_add(need.run_max.max(1)));
            let releases = self.lanes.of(*node);
            let fit = least(cluster, (*node, releases), span, held, &mut walk);
            free = fit >= *count;
            if free {
                let place = Slot {
                    start: slot.start,
                    places: vec![(*node, *n, *count)],
                };
                self.reserve(cluster, &place, needs, holder);
                renewed.places.push((*node, *n, *count));
            }
        }
        if !free {
            self.withdraw(&renewed, holder);
        }
        free
    }

    /// Nodes with reservations, ascending. What may overtake goes there first: what it would take
    /// elsewhere is open also to tasks that would be in a reservation's way.
    pub fn reserved_nodes(&self) -> Vec<u32> {
        let mut nodes: Vec<u32> = self.held.keys().copied().collect();
        nodes.sort_unstable();
        nodes
    }

    /// The rule that tasks which start now and have ended by `end_max` delay no reservation.
    pub fn veto(&self, end_max: Time) -> impl Veto {
        OutOfTheWay {
            ahead: self,
            end_max: end_max.max(self.now.saturating_add(1)),
        }
    }

    /// Nodes that the need may use, and how the number of its tasks that fit changes over the
    /// moments at which they could start.
    fn candidates(
        &mut self,
        cluster: &Cluster,
        need: Need,
        vetoes: &[&dyn Veto],
        spent: &mut u64,
        may_spend: u64,
    ) -> Candidates {
        let allowed = allowed_profiles(cluster, need.class);
        let shape = cluster
            .tasks
            .shapes
            .get(cluster.classes.all[need.class as usize].shape);
        let mut walk = Walk::new(shape);
        let mut out = Candidates::default();
        for node in usable(cluster, &allowed) {
            if *spent > may_spend {
                break;
            }
            let profile = cluster.nodes[node as usize].profile as usize;
            let mut cap = cluster.profiles.all[profile].how_many(&shape.requests);
            cap = cap.min(need.count);
            for veto in vetoes {
                if cap > 0 {
                    cap = cap.min(veto.room(cluster, node, need.class, cap));
                }
            }
            if cap == 0 {
                continue;
            }
            self.lanes.look(cluster, node);
            let releases = self.lanes.of(node);
            *spent += 1 + releases.len() as u64;
            let before = out.changes.len();
            let held = self.held.get(&node).map_or(&[][..], Vec::as_slice);
            windows(
                cluster,
                (node, releases),
                (self.now, need.run_max),
                held,
                &mut walk,
                cap,
                &mut out.changes,
            );
            if out.changes.len() > before {
                out.nodes.push((node, cap));
                out.upto.push(out.changes.len() as u32);
            }
        }
        out
    }

    /// Packs the needs onto their candidates at one moment.
    fn pack(
        &mut self,
        cluster: &Cluster,
        (start, pick): (Time, Pick),
        needs: &[Need],
        candidates: &[Candidates],
    ) -> Option<Slot> {
        let mut slot = Slot {
            start,
            places: Vec::new(),
        };
        // Held meanwhile, so that one need sees what another has got.
        let mut booked: Vec<u32> = Vec::new();
        let mut complete = true;
        for (n, (need, candidates)) in needs.iter().zip(candidates).enumerate() {
            let shape_id = cluster.classes.all[need.class as usize].shape;
            let mut walk = Walk::new(cluster.tasks.shapes.get(shape_id));
            let end = start.saturating_add(need.run_max.max(1));
            let mut left = need.count;
            for (node, cap) in candidates.picked(start, pick) {
                if left == 0 {
                    break;
                }
                let held = self.held.get(&node).map_or(&[][..], Vec::as_slice);
                let span = (start, end);
                let releases = self.lanes.of(node);
                let fit = least(cluster, (node, releases), span, held, &mut walk);
                let count = fit.min(cap).min(left);
                if count > 0 {
                    left -= count;
                    slot.places.push((node, n as u32, count));
                    if needs.len() > 1 {
                        booked.push(node);
                        self.held.entry(node).or_default().push(Held {
                            from: start,
                            to: end,
                            shape: shape_id,
                            count,
                            holder: 0,
                        });
                    }
                }
            }
            if left > 0 {
                complete = false;
                break;
            }
        }
        for node in booked {
            if let Some(held) = self.held.get_mut(&node) {
                held.pop();
                if held.is_empty() {
                    self.held.remove(&node);
                }
            }
        }
        slot.places.sort_unstable();
        complete.then_some(slot)
    }
}

/// Nodes for one need.
#[derive(Default)]
struct Candidates {
    /// Node, most tasks it may take; ascending.
    nodes: Vec<(u32, u32)>,
    /// From this moment on, so many more (or fewer) tasks fit if they start then. By node.
    changes: Vec<(Time, i64)>,
    /// Per node: where its changes end.
    upto: Vec<u32>,
}

impl Candidates {
    /// The nodes in the order in which a slot takes them.
    fn picked(&self, start: Time, pick: Pick) -> Vec<(u32, u32)> {
        let mut first = 0;
        let mut nodes: Vec<(Time, (u32, u32))> = Vec::with_capacity(self.nodes.len());
        for (node, upto) in self.nodes.iter().zip(&self.upto) {
            let changes = &self.changes[first..*upto as usize];
            first = *upto as usize;
            // Since when it has the room that it has at the start; the changes of a node ascend.
            let before = changes.iter().take_while(|(at, _)| *at <= start);
            let since = before.filter(|(_, by)| *by > 0).last().map(|(at, _)| *at);
            nodes.extend(since.map(|since| (since, *node)));
        }
        if pick == Pick::Latest {
            nodes.sort_by_key(|(since, (node, _))| (std::cmp::Reverse(*since), *node));
        }
        nodes.into_iter().map(|(_, node)| node).collect()
    }
}

struct OutOfTheWay<'a> {
    ahead: &'a Ahead,
    end_max: Time,
}

impl Veto for OutOfTheWay<'_> {
    fn room(&self, cluster: &Cluster, node: u32, class: u32, want: u32) -> u32 {
        let Some(held) = self.ahead.held.get(&node) else {
            return want;
        };
        let shape = cluster.classes.all[class as usize].shape;
        let mut walk = Walk::new(cluster.tasks.shapes.get(shape));
        // Tasks may have started on the node since it was listed.
        let now = self.ahead.now;
        let releases = self.ahead.lanes.fresh(cluster, node);
        let span = (now, self.end_max);
        let fit = least(cluster, (node, &releases), span, held, &mut walk);
        fit.min(want)
    }
}

/// Profiles whose nodes a class may use and that have room for one of its tasks when empty.
fn allowed_profiles(cluster: &Cluster, class: u32) -> FixedBitSet {
    let entry = &cluster.classes.all[class as usize];
    let requests = &cluster.tasks.shapes.get(entry.shape).requests;
    let tolerations = &entry.class.spec().tolerations;
    let mut allowed = FixedBitSet::with_capacity(cluster.profiles.all.len());
    for (p, profile) in cluster.profiles.all.iter().enumerate() {
        // Traits that are new since the class last learnt are judged here.
        let suits = entry.suits_if_learnt(profile.traits).unwrap_or_else(|| {
            let traits = &cluster.profiles.traits[profile.traits as usize];
            filter::suits(&entry.wants, tolerations, traits)
        });
        allowed.set(p, suits && profile.could_hold(requests));
    }
    allowed
}

/// Nodes with an allowed profile, ascending.
fn usable<'a>(cluster: &'a Cluster, allowed: &'a FixedBitSet) -> impl Iterator<Item = u32> + 'a {
    let nodes = cluster.nodes.iter().enumerate();
    nodes.filter_map(|(n, node)| {
        let usable = node.profile != NONE && allowed.contains(node.profile as usize);
        usable.then_some(n as u32)
    })
}
