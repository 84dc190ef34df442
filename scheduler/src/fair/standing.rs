//! Standing: what each queue has against what it is owed, for people to see.

use std::collections::BTreeMap;

use super::share::{MOST, ONE, share};
use crate::cluster::states::NONE;
use crate::cluster::{Cluster, QueueId, clamp};
use crate::intern::FxMap;
use crate::spec::{Class, Demand};

/// Where a queue stands, with all that is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub queue: QueueId,
    /// Its guarantee or what those below it have been guaranteed, if that is more; at most its limit.
    pub guaranteed: BTreeMap<String, i64>,
    /// What it holds above that.
    pub borrowed: BTreeMap<String, i64>,
    /// What it does not hold of its guarantee and could not have at once either, as others hold it.
    pub lent: BTreeMap<String, i64>,
    /// Tasks that wait.
    pub waiting: u64,
    /// The resource of which it holds the largest part, if it holds anything.
    pub dominant: Option<String>,
    /// That part, in millionths of the cluster.
    pub dominant_share: u64,
    /// What it is owed of the resource that it holds and asks for most, in millionths of the
    /// cluster: what its parent is owed, poured over the children by weight, none getting less than
    /// its guarantee nor more than it holds, asks for and may have. This is as if all
    /// wanted the same resource; where they do not, it gets more.
    pub fair_share: u64,
}

/// Bisections that find the level to which what there is can be poured out.
const STEPS: u32 = 64;

/// The standing of all queues that are there, in order of their numbers.
pub fn standings(cluster: &Cluster, demands: &[Demand]) -> Vec<Standing> {
    let wants = Wants::new(cluster, demands);
    let fair = wants.fair(cluster);
    let names = || (0..cluster.resources.len()).map(|r| (r, cluster.resources.name(r as u32)));
    let there = cluster.queues.iter().enumerate();
    let there = there.filter(|(_, queue)| queue.spec.is_some());
    there
        .map(|(q, queue)| {
            let amounts = |of: &dyn Fn(usize) -> i128| {
                names()
                    .map(|(r, name)| (name.to_string(), clamp(of(r))))
                    .filter(|(_, amount)| *amount > 0)
                    .collect::<BTreeMap<_, _>>()
            };
            let owed = &wants.guaranteed[q];
            let parts = names().map(|(r, name)| (share(queue.used[r], cluster.total[r]), name));
            let most = parts.clone().map(|(part, _)| part).max().unwrap_or(0);
            let dominant = parts.clone().find(|(part, _)| *part == most && most > 0);
            Standing {
                queue: QueueId(q as u32),
                guaranteed: amounts(&|r| owed[r]),
                borrowed: amounts(&|r| queue.used[r] - owed[r]),
                lent: amounts(&|r| {
                    let free = (cluster.total[r] - cluster.charged[r]).max(0);
                    owed[r] - queue.used[r] - free
                }),
                waiting: wants.waiting[q],
                dominant: dominant.map(|(_, name)| name.to_string()),
                dominant_share: millionths(most),
                fair_share: millionths(fair[q]),
            }
        })
        .collect()
}

fn millionths(share: u64) -> u64 {
    let rounded = (u128::from(share) * 1_000_000 + u128::from(ONE / 2)) / u128::from(ONE);
    u64::try_from(rounded).unwrap_or(u64::MAX)
}

/// What each queue would hold if it got all it asks for.
struct Wants {
    /// Per queue and resource, limits applied.
    own: Vec<Vec<i128>>,
    all: Vec<Vec<i128>>,
    guaranteed: Vec<Vec<i128>>,
    waiting: Vec<u64>,
    /// Queues, parents before children; none that is on no tree.
    order: Vec<u32>,
}

impl Wants {
    fn new(cluster: &Cluster, demands: &[Demand]) -> Self {
        let queues = &cluster.queues;
        let width = cluster.resources.len();
        let mut own: Vec<Vec<i128>> = queues.iter().map(|q| q.own[..width].to_vec()).collect();
        let mut waiting = vec![0u64; queues.len()];
        let mut requests: FxMap<&Class, Vec<(u32, i64)>> = FxMap::default();
        for demand in demands {
            let q = demand.queue.0 as usize;
            waiting[q] = waiting[q].saturating_add(u64::from(demand.count));
            let requests = requests.entry(&demand.class).or_insert_with(|| {
                let named = demand.class.spec().requests.iter();
                named
                    .filter_map(|(name, amount)| Some((cluster.resources.get(name)?, *amount)))
                    .collect()
            });
            for (r, amount) in requests {
                own[q][*r as usize] += i128::from(*amount) * i128::from(demand.count);
            }
        }
        let mut order: Vec<u32> = (0..queues.len() as u32)
            .filter(|q| {
                let queue = &queues[*q as usize];
                queue.parent == NONE && queue.spec.is_some() && queue.detached.is_none()
            })
            .collect();
        let mut at = 0;
        while let Some(q) = order.get(at) {
            order.extend(&queues[*q as usize].children);
            at += 1;
        }
        let mut wants = Wants {
            all: own.clone(),
            guaranteed: vec![vec![0; width]; queues.len()],
            own,
            waiting,
            order,
        };
        for q in wants.order.iter().rev().map(|q| *q as usize) {
            let queue = &queues[q];
            for r in 0..width {
                let limit = match queue.limit[r] {
                    i64::MAX => i128::MAX,
                    limit => i128::from(limit.max(0)),
                };
                let below: i128 = queue
                    .children
                    .iter()
                    .map(|c| wants.guaranteed[*c as usize][r])
                    .sum();
                let owed = below.max(i128::from(queue.guarantee[r])).min(limit);
                wants.guaranteed[q][r] = owed;
                let below: i128 = queue
                    .children
                    .iter()
                    .map(|c| wants.all[*c as usize][r])
                    .sum();
                wants.all[q][r] = (wants.own[q][r] + below).min(limit);
            }
            let below = queue.children.iter().map(|c| wants.waiting[*c as usize]);
            wants.waiting[q] = below.fold(wants.waiting[q], u64::saturating_add);
        }
        wants
    }

    /// What each queue is owed, as a share.
    fn fair(&self, cluster: &Cluster) -> Vec<u64> {
        let mut fair = vec![0; cluster.queues.len()];
        let tops: Vec<u32> = self
            .order
            .iter()
            .filter(|q| cluster.queues[**q as usize].parent == NONE)
            .copied()
            .collect();
        self.pour(cluster, ONE, &tops, None, &mut fair);
        for q in &self.order {
            let queue = &cluster.queues[*q as usize];
            let all = fair[*q as usize];
            self.pour(cluster, all, &queue.children, Some(*q), &mut fair);
        }
        fair
    }

    /// Pours an amount over sisters and, if there is some, the own work of the queue above.
    fn pour(
        &self,
        cluster: &Cluster,
        all: u64,
        sisters: &[u32],
        own: Option<u32>,
        out: &mut [u64],
    ) {
        if sisters.is_empty() {
            return;
        }
        let most = |wants: &[i128]| -> (u64, usize) {
            let parts = wants.iter().zip(&cluster.total).enumerate();
            let parts = parts.map(|(r, (want, total))| (share(*want, *total), r));
            parts
                .max_by_key(|(part, r)| (*part, usize::MAX - r))
                .unwrap_or((0, 0))
        };
        // Least, most and weight of each.
        let mut cups: Vec<(u64, u64, u64)> = sisters
            .iter()
            .map(|q| {
                let (high, d) = most(&self.all[*q as usize]);
                let owed = self.guaranteed[*q as usize].get(d).copied().unwrap_or(0);
                let total = cluster.total.get(d).copied().unwrap_or(0);
                let weight = cluster.queues[*q as usize].spec.as_ref();
                let weight = weight.map_or(1, |s| s.weight.max(1));
                (share(owed, total).min(high), high, u64::from(weight))
            })
            .collect();
        if let Some(own) = own {
            cups.push((0, most(&self.own[own as usize]).0, 1));
        }
        let filled = pour(all, &cups);
        for (q, amount) in sisters.iter().zip(filled) {
            out[*q as usize] = amount;
        }
    }
}

/// Raises all cups of (least, most, weight) to one level for their weights, as far as `all` goes.
fn pour(all: u64, cups: &[(u64, u64, u64)]) -> Vec<u64> {
    let sum = |of: &dyn Fn(&(u64, u64, u64)) -> u64| -> u128 {
        cups.iter().map(|cup| u128::from(of(cup))).sum()
    };
    let least = sum(&|cup| cup.0);
    if least > u128::from(all) {
        // More is guaranteed than there is: weights decide about it, as they do in the order.
        let owed: Vec<_> = cups.iter().map(|cup| (0, cup.0, cup.2)).collect();
        return pour(all, &owed);
    }
    // Levels are per weight in 2^-32 of the unit of shares, so that large weights lose nothing.
    let at = |level: u128| {
        move |cup: &(u64, u64, u64)| {
            let reach = (level.saturating_mul(u128::from(cup.2)) >> 32).min(u128::from(MOST));
            (reach as u64).clamp(cup.0, cup.1)
        }
    };
    let (mut low, mut high) = (0u128, u128::from(MOST) << 32);
    for _ in 0..STEPS + MOST.trailing_zeros() {
        let middle = low.midpoint(high);
        if sum(&at(middle)) <= u128::from(all) {
            low = middle;
        } else {
            high = middle;
        }
    }
    cups.iter().map(at(low)).collect()
}
