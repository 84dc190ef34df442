//! Who holds what a class waits for.

use std::cmp::Reverse;

use crate::cluster::Cluster;
use crate::cluster::states::NONE;
use crate::intern::FxMap;
use crate::score::UNIT;
use crate::spec::Time;

/// Most holders that are named.
pub const HOLDERS_MAX: usize = 3;
/// Tasks looked at; with more on the nodes that would do, those looked at speak for the rest.
const TASKS_MAX: usize = 20_000;

/// Tasks of one demand on nodes that would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// [`crate::Demand::id`].
    pub demand: u64,
    /// How many tasks.
    pub tasks: u32,
    /// When the first of them is expected to end; [`crate::NEVER`] when nobody knows.
    pub end: Time,
}

/// Those that hold most of what the class asks for, on nodes where it may run and does not fit.
pub(super) fn holders(cluster: &Cluster, class: u32) -> Vec<Holder> {
    let entry = &cluster.classes.all[class as usize];
    let requests = &cluster.tasks.shapes.get(entry.shape).requests;
    let states = &cluster.states;
    // By demand: how much it holds of what is asked, in parts of one task's request.
    let mut all: FxMap<u64, (i128, Holder)> = FxMap::default();
    let mut looked = 0;
    for state in &states.live {
        let profile = states.profile[*state as usize] as usize;
        let traits = cluster.profiles.all[profile].traits;
        if !entry.suits(traits) || states.fits(&cluster.profiles.all, *state, requests) {
            continue;
        }
        let mut node = states.head[*state as usize];
        while node != NONE && looked < TASKS_MAX {
            let mut at = cluster.nodes[node as usize].first_task;
            while at != NONE && looked < TASKS_MAX {
                looked += 1;
                let task = &cluster.tasks.slots[at as usize];
                at = task.next;
                let run = cluster.tasks.runs.get(task.run);
                let shape = cluster.tasks.shapes.get(task.shape);
                let parts = shape.requests.iter().filter_map(|(r, held)| {
                    let (_, asked) = requests.iter().find(|(asked, _)| asked == r)?;
                    Some(i128::from(*held) * i128::from(UNIT) / i128::from(*asked))
                });
                let part = parts.max().unwrap_or(0);
                let (sum, holder) = all.entry(run.demand).or_insert((
                    0,
                    Holder {
                        demand: run.demand,
                        tasks: 0,
                        end: run.end,
                    },
                ));
                *sum += part;
                holder.tasks += 1;
                holder.end = holder.end.min(run.end);
            }
            node = states.next_node(node);
        }
    }
    let mut all: Vec<(i128, Holder)> = all.into_values().filter(|(sum, _)| *sum > 0).collect();
    all.sort_unstable_by_key(|(sum, holder)| (Reverse(*sum), holder.demand));
    all.truncate(HOLDERS_MAX);
    all.into_iter().map(|(_, holder)| holder).collect()
}
