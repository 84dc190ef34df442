//! The typical workload: which shapes of tasks that use devices are asked for, and how often.
//!
//! [`crate::score::fragmentation`] places a task where least is lost for it. The table is learnt
//! from the demands that are met, so nothing has to be told and nothing is known ahead; a caller
//! may tell it instead ([`Cluster::set_typical_workload`]). Its weights change in steps, each a
//! doubling of what was seen, so that what was derived from them (indexes over states) is rarely
//! dropped.

use super::Cluster;
use super::profiles::Profile;
use crate::filter;
use crate::intern::FxMap;
use crate::score::fragmentation::{Kind, OfResource, Outlook, WEIGHT_BITS};
use crate::spec::{Class, Policy};

/// Shapes that count, most frequent first: more would change scores little and cost time each.
const KINDS_MAX: usize = 512;
/// Shapes remembered; the least frequent half is forgotten beyond that.
const SEEN_MAX: usize = 4096;
/// Tasks seen after which all counts are halved, so that what was asked long ago counts less.
const TASKS_MAX: u64 = 16_384;
/// Most tasks between two changes of weights.
const STEP_MAX: u64 = 2048;
/// Tasks seen before the first weights.
const STEP_FIRST: u64 = 16;
/// Waiting demands remembered, so that none is counted again in every cycle.
const WAITING_MAX: usize = 65_536;

#[derive(Clone, Debug, Default)]
pub(crate) struct Typical {
    seen: FxMap<Class, u64>,
    tasks: u64,
    /// When `tasks` reaches this, the outlook is derived anew.
    due: u64,
    /// Told by the caller: nothing is learnt.
    told: bool,
    /// Per waiting demand: how many of its tasks were counted before.
    waiting: FxMap<u64, u32>,
    /// Profiles that the outlook knows; 0 when it must be derived anew.
    profiles: usize,
    pub outlook: Outlook,
}

impl Typical {
    fn count(&mut self, class: &Class, tasks: u64) {
        *self.seen.entry(class.clone()).or_insert(0) += tasks;
        self.tasks += tasks;
        if self.tasks > TASKS_MAX || self.seen.len() > SEEN_MAX {
            let keep = if self.seen.len() > SEEN_MAX {
                let mut counts: Vec<u64> = self.seen.values().copied().collect();
                counts.sort_unstable();
                counts[counts.len() / 2] + 1
            } else {
                0
            };
            self.seen.retain(|_, n| {
                let kept = *n >= keep;
                *n /= 2;
                kept && *n > 0
            });
            self.tasks = self.seen.values().sum();
            self.due = self.tasks;
        }
    }

    /// The numbers of profiles are no longer what they were.
    pub fn forget_profiles(&mut self) {
        self.profiles = 0;
    }
}

impl Cluster {
    /// Tells which tasks the workload typically consists of, for [`Policy::Fragmentation`], instead
    /// of learning it from demands; an empty list goes back to learning.
    pub fn set_typical_workload(&mut self, tasks: &[(Class, u64)]) {
        self.typical = Typical {
            told: !tasks.is_empty(),
            ..Typical::default()
        };
        for (class, count) in tasks {
            *self.typical.seen.entry(class.clone()).or_insert(0) += count;
        }
        self.typical.tasks = self.typical.seen.values().sum();
        self.drop_fragmentation();
    }

    /// Counts what a demand asks for, and brings weights up to date when that is due.
    pub(crate) fn learn_typical(&mut self, class: u32, demand: u64, count: u32) {
        let entry = &self.classes.all[class as usize];
        let requests = &self.tasks.shapes.get(entry.shape).requests;
        let devices = &self.profiles.device_resources;
        if !self.typical.told && requests.iter().any(|(r, _)| devices.contains(r)) {
            let known = self.typical.waiting.get(&demand).copied().unwrap_or(0);
            if count > known {
                let class = entry.class.clone();
                self.typical.count(&class, u64::from(count - known));
            }
        }
        let typical = &self.typical;
        if typical.profiles != self.profiles.all.len() || typical.tasks >= typical.due {
            self.look_out();
        }
    }

    /// Notes how many tasks of a demand go on waiting.
    pub(crate) fn typical_waits(&mut self, demand: u64, left: u32) {
        let waiting = &mut self.typical.waiting;
        if left == 0 {
            waiting.remove(&demand);
            return;
        }
        if waiting.len() >= WAITING_MAX {
            waiting.clear();
        }
        waiting.insert(demand, left);
    }

    /// Derives the outlook from what was seen.
    fn look_out(&mut self) {
        let typical = &mut self.typical;
        let step = typical.tasks.clamp(STEP_FIRST, STEP_MAX);
        typical.due = if typical.told {
            u64::MAX
        } else {
            typical.tasks + step
        };
        let mut seen: Vec<(Class, u64)> =
            typical.seen.iter().map(|(c, n)| (c.clone(), *n)).collect();
        // By count, and by spec among equals, so that hashing order decides nothing.
        seen.sort_by(|(a, n), (b, m)| {
            let key = |class: &Class| {
                let spec = class.spec();
                (
                    spec.requests.clone(),
                    spec.node_selector.clone(),
                    spec.required.clone(),
                )
            };
            m.cmp(n).then_with(|| key(a).cmp(&key(b)))
        });
        seen.truncate(KINDS_MAX);
        let seen: Vec<(u32, u64)> = seen.iter().map(|(c, n)| (self.class(c), *n)).collect();
        for (class, _) in &seen {
            self.learn_profiles(*class);
        }
        let resources: Vec<u32> = self.profiles.device_resources.iter().copied().collect();
        let mut outlook = Outlook::default();
        for resource in resources {
            let mut kinds = Vec::new();
            for (class, count) in &seen {
                let entry = &self.classes.all[*class as usize];
                let requests = &self.tasks.shapes.get(entry.shape).requests;
                let Some((_, amount)) = requests.iter().find(|(r, _)| *r == resource) else {
                    continue;
                };
                let is_device = |r: &u32| self.profiles.device_resources.contains(r);
                let rest = requests.iter().filter(|(r, _)| !is_device(r)).copied();
                let rest: Box<[(u32, i64)]> = rest.collect();
                for (r, _) in &rest {
                    if !outlook.companions.contains(r) {
                        outlook.companions.push(*r);
                    }
                }
                let tolerations = &entry.class.spec().tolerations;
                let suits = |(p, profile): &(usize, &Profile)| {
                    let traits = &self.profiles.traits[profile.traits as usize];
                    self.profiles.nodes[*p] > 0
                        && entry.wants.hold(traits)
                        && filter::blocking_taint(tolerations, traits).is_none()
                        && profile.could_hold(requests)
                };
                let all = self.profiles.all.iter().enumerate();
                let suits = all.filter(suits).map(|(p, _)| p).collect();
                kinds.push(Kind {
                    amount: *amount,
                    rest,
                    weight: *count as i64,
                    suits,
                });
            }
            let total: i64 = kinds.iter().map(|k| k.weight).sum();
            for kind in &mut kinds {
                let scaled = (i128::from(kind.weight) << WEIGHT_BITS) / i128::from(total.max(1));
                kind.weight = super::clamp(scaled);
            }
            let capacity: Vec<i64> = self
                .profiles
                .all
                .iter()
                .zip(&self.profiles.nodes)
                .map(|(p, nodes)| p.capacity[resource as usize].saturating_mul(i64::from(*nodes)))
                .collect();
            outlook.of.push(OfResource::new(resource, kinds, &capacity));
        }
        self.typical.outlook = outlook;
        self.typical.profiles = self.profiles.all.len();
        self.drop_fragmentation();
    }

    fn drop_fragmentation(&mut self) {
        for class in &mut self.classes.all {
            class.indexes.retain(|(p, _)| *p != Policy::Fragmentation);
            class.parked.retain(|(p, _)| *p != Policy::Fragmentation);
        }
    }
}
