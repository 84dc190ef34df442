//! Devices: resources of which a node has whole pieces (GPUs), each of [`DEVICE`] base units.
//!
//! A task that asks for less than one device has its part of one; a task that asks for more has
//! whole ones alone, so its amount must be a multiple of [`DEVICE`]. Free amounts per resource are
//! therefore not enough to say what fits: a node state also knows how much of each device is free,
//! sorted, since equal devices are alike. A node knows it device by device, and a task which
//! devices it holds. Nodes without devices pay nothing for any of this.

use super::Cluster;
use super::states::NONE;
use crate::spec::{DEVICE, NodeSpec};

/// Most devices of one node that are used, over all its resources: what a task holds is one mask.
pub(crate) const DEVICES_MAX: u32 = u64::BITS;

/// Resource number and how many devices, sorted by resource. Devices are numbered through.
pub(crate) type Layout = [(u32, u32)];

/// What is free on the devices of one node, or of one state (there sorted per resource, and within
/// 0 to [`DEVICE`]).
pub(crate) type Free = Box<[i64]>;

/// A node's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeDevices {
    layout: Box<Layout>,
    /// Below 0 where the caller bound more than there is.
    free: Free,
}

/// Which resources come as how many devices; brings their capacity to what can be used.
pub(crate) fn layout(
    spec: &NodeSpec,
    number: impl Fn(&str) -> Option<u32>,
    capacity: &mut [i64],
) -> Box<Layout> {
    let mut resources: Vec<u32> = spec.devices.iter().filter_map(|r| number(r)).collect();
    resources.sort_unstable();
    let mut left = i64::from(DEVICES_MAX);
    let mut layout = Vec::new();
    for r in resources {
        let count = (capacity[r as usize] / DEVICE).min(left);
        left -= count;
        capacity[r as usize] = count * DEVICE;
        if count > 0 {
            layout.push((r, count as u32));
        }
    }
    layout.into()
}

/// How many devices an amount lies on.
fn pieces(amount: i64) -> i64 {
    amount / DEVICE + i64::from(amount % DEVICE > 0)
}

fn asked(requests: &[(u32, i64)], resource: u32) -> Option<i64> {
    let found = requests.iter().find(|(r, _)| *r == resource);
    found.map(|(_, amount)| *amount)
}

/// How many tasks devices with these free amounts hold; no limit for tasks that ask for none.
pub(crate) fn room(layout: &Layout, free: &[i64], requests: &[(u32, i64)]) -> u32 {
    let mut most = i64::MAX;
    let mut first = 0;
    for (resource, count) in layout {
        let of = &free[first..first + *count as usize];
        first += *count as usize;
        let Some(amount) = asked(requests, *resource) else {
            continue;
        };
        most = most.min(if amount < DEVICE {
            of.iter().map(|free| (free / amount).max(0)).sum()
        } else if amount % DEVICE == 0 {
            of.iter().filter(|free| **free == DEVICE).count() as i64 / (amount / DEVICE)
        } else {
            0
        });
    }
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// Brings amounts of resources that come as devices down to what one task of these requests could
/// have of them: the freest device for a part of one, whole free devices for more. So a task fits
/// the devices if and only if its requests are within these amounts.
pub(crate) fn usable(layout: &Layout, free: &[i64], amounts: &mut [i64], requests: &[(u32, i64)]) {
    let mut first = 0;
    for (resource, count) in layout {
        let of = &free[first..first + *count as usize];
        first += *count as usize;
        let Some(amount) = asked(requests, *resource) else {
            continue;
        };
        let most = if amount < DEVICE {
            of.iter().copied().max().unwrap_or(0)
        } else {
            // Nothing between two whole numbers of devices can be had.
            let whole = of.iter().filter(|free| **free == DEVICE).count() as i64 * DEVICE;
            if amount % DEVICE == 0 {
                whole
            } else {
                whole.min(amount - amount % DEVICE)
            }
        };
        let usable = &mut amounts[*resource as usize];
        *usable = most.min(*usable);
    }
}

/// Takes one task's part of the devices, best fit: of devices with enough free the one with least,
/// whole ones in order; where there is not enough, those with most free. Answers the mask.
pub(crate) fn assign(layout: &Layout, free: &mut [i64], requests: &[(u32, i64)]) -> u64 {
    let mut mask = 0;
    let mut first = 0;
    for (resource, count) in layout {
        let range = first..first + *count as usize;
        first += *count as usize;
        let Some(amount) = asked(requests, *resource) else {
            continue;
        };
        let part = amount.min(DEVICE);
        for _ in 0..pieces(amount).min(i64::from(*count)) {
            let open = range.clone().filter(|d| mask & (1u64 << d) == 0);
            let enough = open.clone().filter(|d| free[*d] >= part);
            let best = enough.min_by_key(|d| (free[*d], *d));
            let Some(device) = best.or_else(|| open.min_by_key(|d| (-free[*d], *d))) else {
                break;
            };
            free[device] -= part;
            mask |= 1 << device;
        }
    }
    mask
}

/// Gives back (`sign` 1) or takes (-1) what a task with this mask holds.
fn shift(layout: &Layout, free: &mut [i64], requests: &[(u32, i64)], mask: u64, sign: i64) {
    let mut first = 0;
    for (resource, count) in layout {
        let range = first..first + *count as usize;
        first += *count as usize;
        if let Some(amount) = asked(requests, *resource) {
            for device in range.filter(|d| mask & (1u64 << d) != 0) {
                free[device] += sign * amount.min(DEVICE);
            }
        }
    }
}

/// Free amounts of a node as its state knows them.
pub(crate) fn sorted(layout: &Layout, free: &[i64]) -> Free {
    let mut out: Free = free.iter().map(|free| (*free).clamp(0, DEVICE)).collect();
    let mut first = 0;
    for (_, count) in layout {
        out[first..first + *count as usize].sort_unstable();
        first += *count as usize;
    }
    out
}

impl NodeDevices {
    /// How many devices a task with these requests has a part of.
    fn held(&self, requests: &[(u32, i64)]) -> u32 {
        let of = |(resource, count): &(u32, u32)| {
            let amount = asked(requests, *resource).unwrap_or(0);
            pieces(amount).min(i64::from(*count)) as u32
        };
        self.layout.iter().map(of).sum()
    }

    /// Whether some device is promised more than it has.
    pub fn over(&self) -> bool {
        self.free.iter().any(|free| *free < 0)
    }

    pub fn sorted(&self) -> Free {
        sorted(&self.layout, &self.free)
    }

    /// Gives one task's part back.
    pub fn give_back(&mut self, requests: &[(u32, i64)], mask: u64) {
        shift(&self.layout, &mut self.free, requests, mask, 1);
    }
}

impl Cluster {
    /// Brings a node's devices in line with its profile. Tasks keep the devices that they hold
    /// where these are still what they were; the others get some in the order in which they came.
    pub(super) fn lay_out(&mut self, node: u32) {
        let profile = self.nodes[node as usize].profile;
        let layout = &self.profiles.all[profile as usize].devices;
        let old = self.devices.get(&node);
        if old.map_or(layout.is_empty(), |old| old.layout == *layout) {
            return;
        }
        let count: u32 = layout.iter().map(|(_, count)| count).sum();
        let mut devices = NodeDevices {
            layout: layout.clone(),
            free: vec![DEVICE; count as usize].into(),
        };
        // Numbers stay true while devices only come behind the last one.
        let grown = old.is_some_and(|old| {
            let last = old.layout.len().saturating_sub(1);
            let mut pairs = old.layout.iter().zip(layout).enumerate();
            old.layout.len() <= layout.len()
                && pairs.all(|(i, (old, new))| {
                    old == new || i == last && old.0 == new.0 && old.1 < new.1
                })
        });
        let mut slots: Vec<u32> = self.slots_on(node).collect();
        slots.reverse();
        let mut open = Vec::new();
        for slot in slots {
            let task = &self.tasks.slots[slot as usize];
            let requests = &self.tasks.shapes.get(task.shape).requests;
            if grown && task.devices.count_ones() == devices.held(requests) {
                shift(
                    &devices.layout,
                    &mut devices.free,
                    requests,
                    task.devices,
                    -1,
                );
            } else {
                open.push(slot);
            }
        }
        for slot in open {
            let task = &self.tasks.slots[slot as usize];
            let requests = &self.tasks.shapes.get(task.shape).requests;
            let mask = assign(&devices.layout, &mut devices.free, requests);
            self.tasks.slots[slot as usize].devices = mask;
        }
        if devices.layout.is_empty() {
            self.devices.remove(&node);
        } else {
            self.devices.insert(node, devices);
        }
    }

    /// Takes one task's part of a node's devices. Where they do not hold it now, it gets what those
    /// that leave give back, so that it can start when they are gone.
    pub(super) fn take_devices(&mut self, node: u32, shape: u32) -> u64 {
        let Some(mut devices) = self.devices.remove(&node) else {
            return 0;
        };
        let requests = &self.tasks.shapes.get(shape).requests;
        let mask = if room(&devices.layout, &devices.free, requests) > 0 {
            assign(&devices.layout, &mut devices.free, requests)
        } else {
            let mut later = devices.free.clone();
            for slot in self.slots_on(node) {
                let task = &self.tasks.slots[slot as usize];
                if task.leaving {
                    let held = &self.tasks.shapes.get(task.shape).requests;
                    shift(&devices.layout, &mut later, held, task.devices, 1);
                }
            }
            let mask = assign(&devices.layout, &mut later, requests);
            shift(&devices.layout, &mut devices.free, requests, mask, -1);
            mask
        };
        self.devices.insert(node, devices);
        mask
    }

    /// How many tasks with these requests the devices of a node hold once the tasks in some slots
    /// are gone.
    pub(crate) fn device_room(
        &self,
        node: u32,
        requests: &[(u32, i64)],
        gone: impl Fn(u32) -> bool,
    ) -> u32 {
        let Some(devices) = self.devices.get(&node) else {
            return u32::MAX;
        };
        let mut free = devices.free.clone();
        for slot in self.slots_on(node).filter(|slot| gone(*slot)) {
            let task = &self.tasks.slots[slot as usize];
            let held = &self.tasks.shapes.get(task.shape).requests;
            shift(&devices.layout, &mut free, held, task.devices, 1);
        }
        room(&devices.layout, &free, requests)
    }

    /// Which devices a task holds on its node, by resource: bit `i` is device `i` of the resource.
    pub fn devices_of(&self, task: super::TaskId) -> Vec<(&str, u64)> {
        let mut out = Vec::new();
        let Some(task) = self.task(task) else {
            return out;
        };
        let Some(devices) = self.devices.get(&task.node) else {
            return out;
        };
        let mut first = 0;
        for (resource, count) in &devices.layout {
            let all = u64::MAX.checked_shr(DEVICES_MAX - count).unwrap_or(0);
            let held = task.devices.checked_shr(first).unwrap_or(0) & all;
            if held != 0 {
                out.push((self.resources.name(*resource).as_ref(), held));
            }
            first += count;
        }
        out
    }

    /// Moves a task to these devices of one resource, for a caller that knows which it runs on.
    /// False, and nothing done, when the task or that many devices are not there.
    pub fn set_devices(&mut self, id: super::TaskId, resource: &str, mask: u64) -> bool {
        let Some(task) = self.task(id) else {
            return false;
        };
        let (node, held, shape) = (task.node, task.devices, task.shape);
        let (Some(r), Some(devices)) = (self.resources.get(resource), self.devices.get_mut(&node))
        else {
            return false;
        };
        let at = devices.layout.iter().position(|(of, _)| *of == r);
        let Some(at) = at else {
            return false;
        };
        let first: u32 = devices.layout[..at].iter().map(|(_, count)| count).sum();
        let all = u64::MAX
            .checked_shr(DEVICES_MAX - devices.layout[at].1)
            .unwrap_or(0);
        let old = held & (all << first);
        if mask & !all != 0 || mask.count_ones() != old.count_ones() {
            return false;
        }
        let new = held & !old | mask << first;
        let requests = &self.tasks.shapes.get(shape).requests;
        shift(&devices.layout, &mut devices.free, requests, held, 1);
        shift(&devices.layout, &mut devices.free, requests, new, -1);
        self.tasks.slots[id.slot() as usize].devices = new;
        self.states.detach(node);
        self.attach(node);
        true
    }

    /// What the tasks on a node hold of its devices, recomputed; for checks.
    pub(crate) fn check_devices(&self, node: u32) -> bool {
        let profile = self.nodes[node as usize].profile;
        let Some(devices) = self.devices.get(&node) else {
            return profile == NONE || self.profiles.all[profile as usize].devices.is_empty();
        };
        let mut free: Free = vec![DEVICE; devices.free.len()].into();
        for slot in self.slots_on(node) {
            let task = &self.tasks.slots[slot as usize];
            let requests = &self.tasks.shapes.get(task.shape).requests;
            shift(&devices.layout, &mut free, requests, task.devices, -1);
        }
        let state = self.states.of_node[node as usize];
        free == devices.free
            && (state == NONE || *self.states.devices_of(state) == sorted(&devices.layout, &free))
            && (profile == NONE || self.profiles.all[profile as usize].devices == devices.layout)
    }

    /// Whether the tasks that stay hold more of some device of the node than it has.
    pub(crate) fn devices_over(&self, node: u32) -> bool {
        let Some(devices) = self.devices.get(&node) else {
            return false;
        };
        let mut free = devices.free.clone();
        for slot in self.slots_on(node) {
            let task = &self.tasks.slots[slot as usize];
            if task.leaving {
                let requests = &self.tasks.shapes.get(task.shape).requests;
                shift(&devices.layout, &mut free, requests, task.devices, 1);
            }
        }
        free.iter().any(|free| *free < 0)
    }
}
