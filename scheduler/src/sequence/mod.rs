//! Sequence: which order of what waits makes it wait least.
//!
//! Starting whatever fits, shortest first or oldest first, looks at one start at a time. Here the
//! first units of a queue are planned to their ends under several orders, each unit at the earliest
//! moment at which it fits beside those before it; the plan that costs least is followed for one
//! cycle: what it starts now starts, and the rest is held back, so that nothing starts that the plan
//! has a better use for. The next cycle plans anew. Choosing between whole plans goes back to
//! Streit's self-tuning dynP scheduler (JSSPP 2002); the orders are the classic ones.
//!
//! Cost of a plan, each part relative to the plan by arrival, which is always among the candidates:
//! the sum of the waits; twice the sum of the waits in units of the unit's own run time (the short
//! must not wait for the long); twice the sum of the waits of large units (they must not be made to
//! wait for the many small), of which no more than [`GAIN_MAX`] counts as a gain; and twice the sum of
//! what each large unit starts later, so that one does not pay for another. Large is what
//! asks for more size × run time than four of five that came lately. A unit that has waited for [`OVERDUE`] times the mean run time is
//! planned first in every order, so that nothing starves.
//!
//! A plan adds up the free amounts of all nodes and believes run times; nodes and rules are checked
//! at placement. When a unit that it would start now cannot start, nothing is held back.

mod profile;
mod sizes;
#[cfg(test)]
mod tests;

use self::profile::Profile;
pub(crate) use self::sizes::Sizes;
use crate::agenda::Unit;
use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::estimate::corrected;
use crate::intern::FxMap;
use crate::place::Budget;
use crate::spec::{Demand, NEVER, Time};

/// Units planned: more cost more and change little of what starts now.
const PLANNED: usize = 64;
/// Running tasks looked at in a cycle at most; in a cluster with more, one start changes little.
const RUNNING_MAX: usize = 4096;
/// See the module's description.
const OVERDUE: i128 = 2;
/// Most that what large units gain counts, in parts of [`ONE`]: they are protected, not favoured.
const GAIN_MAX: i128 = ONE / 4;
/// Costs are fractions of this.
const ONE: i128 = 1 << 20;

/// What a cycle does with the units of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Start now, in this order.
    pub now: Vec<u32>,
    /// Held back, in the order of their planned starts; then those behind.
    pub later: Vec<u32>,
    /// Neither: units behind that plans cannot judge.
    pub open: Vec<u32>,
}

/// A unit as plans see it.
struct Item {
    unit: u32,
    /// Per resource that any item asks for.
    amounts: Vec<i64>,
    run: Time,
    waited: Time,
}

impl Item {
    /// Dominant part of the cluster × run time.
    fn work(&self, total: &[i64]) -> i128 {
        let part =
            |(amount, total): (&i64, &i64)| i128::from(*amount) * ONE / i128::from((*total).max(1));
        let parts = self.amounts.iter().zip(total).map(part);
        parts.max().unwrap_or(0) * i128::from(self.run)
    }
}

/// Plans a queue's units, given in their own order. None when there is nothing to choose, or when
/// plans would not mean much: units that need not start whole, of unknown run time, of other
/// priority than the first or for certain nodes only; running tasks that have no known end or that
/// may be evicted for others; too many of them.
pub(crate) fn sequence(
    cluster: &mut Cluster,
    demands: &[Demand],
    units: &[Unit],
    queue: &[u32],
    now: Time,
    budget: &mut Budget,
) -> Option<Sequence> {
    let planned = &queue[..queue.len().min(PLANNED)];
    let first = &demands[units[*planned.first()? as usize].demands[0] as usize];
    // Per class: whether all open nodes are its to use.
    let mut judged = FxMap::default();
    let mut asked: Vec<(u32, &Demand, u32)> = Vec::with_capacity(planned.len());
    let mut resources: Vec<u32> = Vec::new();
    for unit in planned {
        let (demand, class) = whole(cluster, demands, &units[*unit as usize], first, &mut judged)?;
        let shape = cluster.classes.all[class as usize].shape;
        for (r, _) in &cluster.tasks.shapes.get(shape).requests {
            if !resources.contains(r) {
                resources.push(*r);
            }
        }
        asked.push((*unit, demand, class));
    }
    let item = |cluster: &Cluster, (unit, demand, class): (u32, &Demand, u32)| {
        let shape = cluster.classes.all[class as usize].shape;
        let requests = &cluster.tasks.shapes.get(shape).requests;
        let amount = |r: &u32| {
            let found = requests.iter().find(|(q, _)| q == r);
            found.map_or(0, |(_, a)| a.saturating_mul(i64::from(demand.count)))
        };
        let known = requests.iter().all(|(r, _)| resources.contains(r));
        known.then(|| Item {
            unit,
            amounts: resources.iter().map(amount).collect(),
            run: demand.run_max.max(1),
            waited: now.saturating_sub(demand.created).max(0),
        })
    };
    let items: Vec<Item> = asked
        .into_iter()
        .filter_map(|asked| item(cluster, asked))
        .collect();
    let total: Vec<i64> = resources
        .iter()
        .map(|r| i64::try_from(cluster.total[*r as usize]).unwrap_or(i64::MAX))
        .collect();
    let work: Vec<i128> = items.iter().map(|i| i.work(&total)).collect();
    for (item, work) in items.iter().zip(&work) {
        let demand = &demands[units[item.unit as usize].demands[0] as usize];
        cluster.sizes.observe(demand.id, *work);
    }
    if queue.len() < 2 || cluster.task_count() > RUNNING_MAX {
        return None;
    }
    let large = cluster.sizes.large();
    let (profile, run_sum) = outlook(cluster, &resources, first, now, budget)?;
    let steps = (profile.len() * items.len()) as u64;
    let best = best(&items, &work, large, profile, run_sum, now);
    budget.spend(steps);
    let (starts, mut profile) = best?;
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|i| (starts[*i], *i));
    let (mut chosen, mut later) = (Vec::new(), Vec::new());
    for i in order {
        let list = if starts[i] <= now {
            &mut chosen
        } else {
            &mut later
        };
        list.push(items[i].unit);
    }
    if later.is_empty() {
        return None;
    }
    // Those behind start where the plan leaves room, the shortest first.
    let mut rest: Vec<(Option<Item>, u32)> = Vec::new();
    for unit in &queue[planned.len()..] {
        let asked = whole(cluster, demands, &units[*unit as usize], first, &mut judged);
        let item = asked.and_then(|(demand, class)| item(cluster, (*unit, demand, class)));
        rest.push((item, *unit));
    }
    budget.spend(rest.len() as u64);
    rest.sort_by_key(|(item, _)| item.as_ref().map_or(NEVER, |i| i.run));
    let mut open = Vec::new();
    for (item, unit) in rest {
        match item {
            Some(item) if profile.book_now(&item.amounts, item.run) => chosen.push(unit),
            Some(_) => later.push(unit),
            None => open.push(unit),
        }
    }
    Some(Sequence {
        now: chosen,
        later,
        open,
    })
}

/// The only demand of a unit that plans can judge, and its class.
fn whole<'a>(
    cluster: &mut Cluster,
    demands: &'a [Demand],
    unit: &Unit,
    first: &Demand,
    judged: &mut FxMap<u32, bool>,
) -> Option<(&'a Demand, u32)> {
    let [position] = unit.demands[..] else {
        return None;
    };
    let demand = &demands[position as usize];
    let whole = demand.count == 1 || (unit.gang != 0 && demand.min == demand.count);
    if !whole || demand.run_max == NEVER || demand.priority != first.priority {
        return None;
    }
    let class = cluster.class(&demand.class);
    let everywhere = *judged.entry(class).or_insert_with(|| {
        cluster.learn_profiles(class);
        let entry = &cluster.classes.all[class as usize];
        let mut profiles = cluster.profiles.nodes.iter().zip(&cluster.profiles.all);
        profiles.all(|(nodes, profile)| {
            let traits = &cluster.profiles.traits[profile.traits as usize];
            *nodes == 0 || !traits.ready || traits.unschedulable || entry.suits(profile.traits)
        })
    });
    everywhere.then_some((demand, class))
}

/// Free amounts of all open nodes over time; and the sum and number of the running tasks' run times.
fn outlook(
    cluster: &Cluster,
    resources: &[u32],
    first: &Demand,
    now: Time,
    budget: &mut Budget,
) -> Option<(Profile, (i128, i128))> {
    let mut free = vec![0i64; resources.len()];
    let mut releases: Vec<(Time, u32)> = Vec::new();
    let mut runs = (0, 0);
    budget.spend(cluster.task_count() as u64);
    for (n, node) in cluster.nodes.iter().enumerate() {
        if node.profile == NONE {
            continue;
        }
        let traits = cluster.profiles.traits_of(node.profile);
        if !traits.ready || traits.unschedulable {
            continue;
        }
        let state = cluster.states.of_node[n];
        for (sum, r) in free.iter_mut().zip(resources) {
            *sum = sum.saturating_add(cluster.states.free_of(state)[*r as usize].max(0));
        }
        let mut at = node.first_task;
        while at != NONE {
            let task = &cluster.tasks.slots[at as usize];
            at = task.next;
            let run = cluster.tasks.runs.get(task.run);
            let others = task.queue != first.queue.0 || run.priority < first.priority;
            if run.end_max == NEVER || (run.preemptible && others) {
                return None;
            }
            releases.push((corrected(run.start, now, run.end_max, NEVER), task.shape));
            runs.0 += i128::from(run.end_max.saturating_sub(run.start));
            runs.1 += 1;
        }
    }
    releases.sort_unstable();
    let mut profile = Profile::new(now, free);
    for (at, shape) in releases {
        let requests = &cluster.tasks.shapes.get(shape).requests;
        let amount = |r: &u32| requests.iter().find(|(q, _)| q == r).map_or(0, |(_, a)| *a);
        profile.release(at, resources.iter().map(amount));
    }
    Some((profile, runs))
}

/// The starts of all items in the plan that costs least, and what it leaves free; None when an item
/// never fits.
fn best(
    items: &[Item],
    work: &[i128],
    large: i128,
    profile: Profile,
    (running_sum, running): (i128, i128),
    now: Time,
) -> Option<(Vec<Time>, Profile)> {
    let plan = |order: &[usize]| -> Option<(Vec<Time>, Profile)> {
        let mut profile = profile.clone();
        let mut starts = vec![NEVER; items.len()];
        for i in order {
            starts[*i] = profile.book(&items[*i].amounts, items[*i].run)?;
        }
        Some((starts, profile))
    };
    let arrival: Vec<usize> = (0..items.len()).collect();
    let base = plan(&arrival)?;
    if base.0.iter().all(|start| *start <= now) {
        return Some(base);
    }
    let waiting_sum: i128 = items.iter().map(|i| i128::from(i.run)).sum();
    let mean_run = (waiting_sum + running_sum) / (items.len() as i128 + running);
    let arrived = base.0.clone();
    let waits =
        |starts: &[Time]| Waits::of(items, (starts, &arrived), (work, large), mean_run, now);
    let by_arrival = waits(&base.0);
    let mut cheapest = (by_arrival.cost(&by_arrival), base);
    for mut order in orders(items, work, large) {
        let overdue = |i: &usize| i128::from(items[*i].waited) > OVERDUE * mean_run;
        order.sort_by_key(|i| if overdue(i) { *i } else { usize::MAX });
        let Some(planned) = plan(&order) else {
            continue;
        };
        let cost = waits(&planned.0).cost(&by_arrival);
        if cost < cheapest.0 {
            cheapest = (cost, planned);
        }
    }
    Some(cheapest.1)
}

/// Orders worth planning, besides that of arrival.
fn orders(items: &[Item], work: &[i128], large: i128) -> [Vec<usize>; 6] {
    let all: Vec<usize> = (0..items.len()).collect();
    let by = |key: &dyn Fn(usize) -> i128| {
        let mut order = all.clone();
        order.sort_by_key(|i| key(*i));
        order
    };
    let run = |i: usize| i128::from(items[i].run);
    let size = |i: usize| work[i] / run(i);
    [
        by(&run),
        by(&|i| work[i]),
        // The large first, then the smallest first.
        by(&|i| if work[i] >= large { -1 } else { work[i] }),
        // By what the slowdown would be (Tang et al., WFP).
        by(&|i| -((i128::from(items[i].waited) + run(i)) * ONE / run(i))),
        by(&size),
        // The oldest, then the shortest first.
        by(&|i| if i == 0 { 0 } else { run(i) }),
    ]
}

/// What a plan costs.
struct Waits {
    sum: i128,
    slowdown: i128,
    large: i128,
    /// What each of these waits longer than in the plan by arrival.
    delayed: i128,
}

impl Waits {
    fn of(
        items: &[Item],
        (starts, base): (&[Time], &[Time]),
        (work, large): (&[i128], i128),
        mean_run: i128,
        now: Time,
    ) -> Waits {
        let mut waits = Waits {
            sum: 0,
            slowdown: 0,
            large: 0,
            delayed: 0,
        };
        // Below this a run time counts as so long: nobody minds a wait of a few seconds.
        let shortest = mean_run / 256 + 1;
        for (((item, start), by_arrival), work) in items.iter().zip(starts).zip(base).zip(work) {
            let wait = i128::from(item.waited) + i128::from(start.saturating_sub(now));
            waits.sum = waits.sum.saturating_add(wait);
            let run = i128::from(item.run).max(shortest);
            let ratio = wait.saturating_mul(ONE) / run;
            waits.slowdown = waits.slowdown.saturating_add(ratio);
            if *work >= large {
                waits.large = waits.large.saturating_add(wait);
                let later = start.saturating_sub(*by_arrival).max(0);
                waits.delayed = waits.delayed.saturating_add(i128::from(later));
            }
        }
        waits
    }

    /// Relative to another plan.
    fn cost(&self, other: &Waits) -> i128 {
        let part = |mine: i128, others: i128| mine.saturating_mul(ONE) / others.max(1);
        let large = part(self.large, other.large).max(ONE - GAIN_MAX);
        let short = part(self.slowdown, other.slowdown);
        part(self.sum, other.sum)
            .saturating_add(short.saturating_mul(2))
            .saturating_add(large.saturating_mul(2))
            .saturating_add(part(self.delayed, other.large).saturating_mul(2))
    }
}
