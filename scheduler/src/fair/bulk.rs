//! How many tasks one turn may place, so that a million tasks cost some ten thousand turns and
//! still end up as if they had been placed one by one.
//!
//! Two bounds allow more than one task:
//! - *Up to the next:* until its share passes that of the second among its sisters, in closed form,
//!   where there is only one level of the tree at which anybody competes.
//! - *What is its own anyway:* who is at the lowest level gets at least its weight's part of what
//!   is still free, as everybody who takes from it rises at the rate of its weight. A quarter of
//!   that can be given at once: whatever the others hold, they catch up from the rest. Each round
//!   hands out a quarter of what is left, so rounds are as many as the logarithm of the tasks.
//!
//! What is free is what the cluster has and what the limits of queues on the way up leave, the
//! latter for those only who compete below that queue. In the cluster it is counted in tasks of the class that fit on nodes it may use, at most as often as
//! is worth it for the tasks that wait.

use super::share::amount_at;
use super::tree::{Source, Tree};
use crate::classes::ClassEntry;
use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::spec::Class;

/// The part of what is its own that one turn gives, as a divisor.
const PART: u64 = 4;
/// Node states looked at per waiting task, over the cycle, to count what is free.
const LOOKS_PER_TASK: u64 = 4;
/// Units with fewer tasks go one by one: counting what is free would cost more.
const TASKS_MIN: u64 = 8;
/// One, in the fixed-point part of what is free that a node of the tree owns.
const WHOLE: u128 = 1 << 32;

/// Counts of what is free, by class.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    /// By number of the ask.
    of: Vec<Option<Count>>,
    /// Node states that may still be looked at.
    looks: u64,
}

#[derive(Clone, Debug)]
struct Count {
    tasks: u64,
    /// What all tasks of the cluster held then, per request.
    charged: Vec<i128>,
}

impl Slots {
    pub fn new(asks: usize, waiting: u64) -> Self {
        Slots {
            of: vec![None; asks],
            looks: waiting.saturating_mul(LOOKS_PER_TASK),
        }
    }

    /// A number of tasks of the class that surely fit, nodes being full to the brim aside.
    fn count(
        &mut self,
        cluster: &Cluster,
        ask: u32,
        class: &Class,
        requests: &[(u32, i64)],
    ) -> u64 {
        let left = self.of[ask as usize].as_ref().map(|count| {
            // Whatever was taken since may have been taken from these.
            let taken = requests
                .iter()
                .zip(&count.charged)
                .map(|((r, amount), then)| {
                    let more = (cluster.charged[*r as usize] - then).max(0) as u128;
                    u64::try_from(more.div_ceil(*amount as u128)).unwrap_or(u64::MAX)
                });
            let left = count.tasks.saturating_sub(taken.max().unwrap_or(0));
            (left, left > count.tasks / 2)
        });
        match left {
            Some((left, true)) => return left,
            Some((left, false)) if self.looks < cluster.states.live.len() as u64 => return left,
            _ => {}
        }
        let entry = cluster.classes.ids.get(class);
        let Some(entry) = entry.map(|id| &cluster.classes.all[*id as usize]) else {
            return 0;
        };
        if self.looks < cluster.states.live.len() as u64 || !only_amounts(entry) {
            return 0;
        }
        self.looks -= cluster.states.live.len() as u64;
        let states = &cluster.states;
        let fit = states.live.iter().map(|state| {
            let profile = states.profile[*state as usize] as usize;
            if entry.suits(cluster.profiles.all[profile].traits) {
                let each = states.room(&cluster.profiles.all, *state, requests);
                u64::from(each) * u64::from(states.count[*state as usize])
            } else {
                0
            }
        });
        let tasks = fit.fold(0, u64::saturating_add);
        self.of[ask as usize] = Some(Count {
            tasks,
            charged: requests
                .iter()
                .map(|(r, _)| cluster.charged[*r as usize])
                .collect(),
        });
        tasks
    }
}

/// How many tasks the limits of this one queue leave.
fn room(cluster: &Cluster, queue: u32, requests: &[(u32, i64)]) -> u64 {
    let queue = &cluster.queues[queue as usize];
    let limited = requests
        .iter()
        .filter(|(r, _)| queue.limit[*r as usize] != i64::MAX);
    let rooms = limited.map(|(r, amount)| {
        let left = i128::from(queue.limit[*r as usize]) - queue.used[*r as usize];
        u64::try_from(left.max(0) / i128::from(*amount)).unwrap_or(u64::MAX)
    });
    rooms.min().unwrap_or(u64::MAX)
}

/// Nothing but amounts and node properties decides where it fits.
fn only_amounts(entry: &ClassEntry) -> bool {
    let spec = entry.class.spec();
    spec.ports.is_empty()
        && spec.affinity.is_empty()
        && spec.anti_affinity.is_empty()
        && spec.spread.is_empty()
}

impl Tree {
    /// How many tasks the next unit of a leaf, whose turn it is, may place; at least 1.
    pub fn most(&self, cluster: &Cluster, leaf: u32, class: &Class, slots: &mut Slots) -> u32 {
        let head = self.heads[self.nodes[leaf as usize].head as usize];
        let ask = &self.asks[head.ask as usize];
        let mut levels = 0;
        let mut until_next = u64::MAX;
        let mut until_guarantee = u64::MAX;
        let mut part = WHOLE;
        let owned = |tasks: u64, part: u128| u128::from(tasks / PART) * part / WHOLE;
        let mut own = u128::MAX;
        let mut n = leaf;
        while n != 0 {
            let node = &self.nodes[n as usize];
            if part < WHOLE {
                let room = room(cluster, node.queue, &ask.requests);
                own = own.min(owned(room, part));
            }
            let above = &self.nodes[node.parent as usize];
            // Whoever is below its guarantee puts all above it first, until it has it.
            if let Some((d, amount)) = ask.dominant
                && matches!(node.source, Source::Below | Source::Queue)
            {
                let queue = &cluster.queues[node.queue as usize];
                let owed = i128::from(queue.guarantee[d as usize]) - queue.used[d as usize];
                if owed > 0 {
                    let tasks = (owed as u128).div_ceil(amount as u128);
                    until_guarantee = until_guarantee.min(u64::try_from(tasks).unwrap_or(u64::MAX));
                }
            }
            if let Some((second, _)) = above.open.iter().nth(1) {
                levels += 1;
                part = part * u128::from(node.weight) / u128::from(above.open_weight.max(1));
                until_next = match node.source {
                    Source::Below => 1,
                    _ if second.late && !node.key.late => u64::MAX,
                    _ => {
                        // At the same level the older goes first.
                        let older = second.age < node.key.age;
                        self.reaches(cluster, n, second.level + u64::from(!older))
                    }
                };
            }
            n = node.parent;
            if n == NONE {
                break;
            }
        }
        let mut most = match levels {
            0 => u64::MAX,
            1 => until_next,
            _ => 1,
        };
        if most < head.count && head.count >= TASKS_MIN {
            let free = slots.count(cluster, head.ask, class, &ask.requests);
            own = own.min(owned(free, part));
            most = most.max(u64::try_from(own).unwrap_or(u64::MAX));
        }
        if levels > 0 {
            most = most.min(until_guarantee);
        }
        u32::try_from(most.max(1)).unwrap_or(u32::MAX)
    }

    /// The least number of tasks after which the node has a level. In closed form, as the node's
    /// use is what it holds.
    fn reaches(&self, cluster: &Cluster, n: u32, to: u64) -> u64 {
        let node = &self.nodes[n as usize];
        let head = self.heads[node.head as usize];
        let held = self.held(cluster, node.queue, node.source);
        let each = self.asks[head.ask as usize].requests.iter();
        let counted = each.filter(|(r, _)| cluster.total[*r as usize] > 0);
        let tasks = counted.map(|(r, amount)| {
            let r = *r as usize;
            let bound = amount_at(to, cluster.total[r], node.weight);
            let missing = bound.saturating_sub(held[r].max(0).unsigned_abs());
            u64::try_from(missing.div_ceil(*amount as u128)).unwrap_or(u64::MAX)
        });
        tasks.min().unwrap_or(u64::MAX)
    }
}
