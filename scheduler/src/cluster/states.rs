//! Node states: nodes that are alike for placement, kept together.
//!
//! A state is (profile, free amounts). States are found through a hash table, store their amounts
//! side by side in flat arrays, and keep their nodes in intrusive lists, so moving a node costs a
//! few writes. A state dies with its last node; its number is used again under a new generation.
//! Every birth is logged, so that per-class indexes catch up with what is new instead of looking
//! at everything again. The order of live states by what is left over ([`Leftovers`]) is kept for
//! all classes together.

use std::borrow::Cow;

use super::devices::{self, Free};
use super::leftovers::{Key, Leftovers, Measure};
use super::profiles::Profile;
use super::tasks::Counted;
use crate::filter;

/// No state, no node: the end of a list.
pub(crate) const NONE: u32 = u32::MAX;

/// A state in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateRef {
    pub id: u32,
    pub generation: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct States {
    /// Amounts per state in the flat arrays.
    stride: usize,
    pub free: Vec<i64>,
    pub profile: Vec<u32>,
    pub head: Vec<u32>,
    pub count: Vec<u32>,
    pub generation: Vec<u32>,
    pub leftover: Vec<i64>,
    /// See [`Measure`].
    pub digest: Vec<u64>,
    pub leftovers: Leftovers,
    /// What is free of each device: a number in `device_sets`, 0 for none.
    devices: Vec<u32>,
    device_sets: Counted<Free>,
    /// States that have nodes, in no particular order, and where each stands in it.
    pub live: Vec<u32>,
    live_at: Vec<u32>,
    /// Numbers of dead states.
    dead: Vec<u32>,
    /// Open addressing with linear probing over live states; length is a power of two.
    table: Vec<u32>,
    /// Births since `births_start`, oldest first.
    births: Vec<StateRef>,
    births_start: u64,
    /// Lists: per node.
    next: Vec<u32>,
    prev: Vec<u32>,
    pub of_node: Vec<u32>,
}

/// Births kept for indexes to catch up, beyond what is proportional to the live states.
const BIRTHS_SLACK: usize = 1 << 16;

impl States {
    pub fn new(stride: usize) -> Self {
        let mut device_sets = Counted::default();
        let (none, _) = device_sets.intern(Free::default());
        device_sets.keep(none, 1);
        States {
            stride,
            free: Vec::new(),
            profile: Vec::new(),
            head: Vec::new(),
            count: Vec::new(),
            generation: Vec::new(),
            leftover: Vec::new(),
            digest: Vec::new(),
            leftovers: Leftovers::default(),
            devices: Vec::new(),
            device_sets,
            live: Vec::new(),
            live_at: Vec::new(),
            dead: Vec::new(),
            table: vec![NONE; 64],
            births: Vec::new(),
            births_start: 0,
            next: Vec::new(),
            prev: Vec::new(),
            of_node: Vec::new(),
        }
    }

    #[inline]
    pub fn free_of(&self, state: u32) -> &[i64] {
        let at = state as usize * self.stride;
        &self.free[at..at + self.stride]
    }

    /// What is free of each device, sorted per resource; empty without devices.
    pub fn devices_of(&self, state: u32) -> &Free {
        self.device_sets.get(self.devices[state as usize])
    }

    /// Whether a node of the state holds one task, by amounts and devices.
    #[inline]
    pub fn fits(&self, profiles: &[Profile], state: u32, requests: &[(u32, i64)]) -> bool {
        filter::fits(self.free_of(state), requests)
            && (self.devices[state as usize] == 0
                || self.device_room(profiles, state, requests) > 0)
    }

    /// How many tasks a node of the state holds, by amounts and devices.
    pub fn room(&self, profiles: &[Profile], state: u32, requests: &[(u32, i64)]) -> u32 {
        let room = filter::how_many(self.free_of(state), requests);
        if self.devices[state as usize] == 0 {
            return room;
        }
        room.min(self.device_room(profiles, state, requests))
    }

    /// The most that one task with these requests could get of each resource now.
    pub fn usable(
        &self,
        profiles: &[Profile],
        state: u32,
        requests: &[(u32, i64)],
    ) -> Cow<'_, [i64]> {
        let free = self.free_of(state);
        if self.devices[state as usize] == 0 {
            return Cow::Borrowed(free);
        }
        let layout = &profiles[self.profile[state as usize] as usize].devices;
        let mut amounts = free.to_vec();
        devices::usable(layout, self.devices_of(state), &mut amounts, requests);
        Cow::Owned(amounts)
    }

    fn device_room(&self, profiles: &[Profile], state: u32, requests: &[(u32, i64)]) -> u32 {
        let layout = &profiles[self.profile[state as usize] as usize].devices;
        devices::room(layout, self.devices_of(state), requests)
    }

    /// Where a state stands by what is left over.
    #[inline]
    pub fn key_of(&self, state: u32) -> Key {
        Key {
            leftover: self.leftover[state as usize],
            state,
        }
    }

    /// From now on the order by what is left over is kept.
    pub fn order_by_leftover(&mut self, profiles: &[Profile]) {
        if self.leftovers.is_on() {
            return;
        }
        let measured = self.live.iter().map(|state| {
            let s = *state as usize;
            let measure = Measure {
                leftover: self.leftover[s],
                digest: self.digest[s],
                traits: profiles[self.profile[s] as usize].traits,
            };
            (*state, measure)
        });
        let measured = measured.collect();
        self.leftovers.start(measured);
    }

    pub fn is_live(&self, state: StateRef) -> bool {
        self.generation[state.id as usize] == state.generation && self.count[state.id as usize] > 0
    }

    pub fn next_node(&self, node: u32) -> u32 {
        self.next[node as usize]
    }

    /// Position in the birth log after its newest entry.
    pub fn births_end(&self) -> u64 {
        self.births_start + self.births.len() as u64
    }

    /// Births since a position, or `None` when the log no longer goes back that far.
    pub fn births_since(&self, position: u64) -> Option<&[StateRef]> {
        let skip = position.checked_sub(self.births_start)?;
        self.births.get(usize::try_from(skip).ok()?..)
    }

    pub fn grow_nodes(&mut self, nodes: usize) {
        self.next.resize(nodes, NONE);
        self.prev.resize(nodes, NONE);
        self.of_node.resize(nodes, NONE);
    }

    /// Takes a node out of its state, if it has one.
    pub fn detach(&mut self, node: u32) {
        let n = node as usize;
        let state = self.of_node[n];
        if state == NONE {
            return;
        }
        let (before, after) = (self.prev[n], self.next[n]);
        if before == NONE {
            self.head[state as usize] = after;
        } else {
            self.next[before as usize] = after;
        }
        if after != NONE {
            self.prev[after as usize] = before;
        }
        self.of_node[n] = NONE;
        self.count[state as usize] -= 1;
        if self.count[state as usize] == 0 {
            self.bury(state);
        }
    }

    /// Puts a detached node into the state with this profile and these free amounts.
    pub fn attach(
        &mut self,
        node: u32,
        profile: u32,
        free: &[i64],
        devices: Free,
        measure: impl Fn() -> Measure,
    ) {
        debug_assert_eq!(self.of_node[node as usize], NONE);
        let set = if devices.is_empty() {
            0
        } else {
            self.device_sets.intern(devices).0
        };
        let state = self.find_or_bear(profile, free, set, measure);
        let (s, n) = (state as usize, node as usize);
        let head = self.head[s];
        self.prev[n] = NONE;
        self.next[n] = head;
        if head != NONE {
            self.prev[head as usize] = node;
        }
        self.head[s] = node;
        self.of_node[n] = state;
        self.count[s] += 1;
    }

    fn hash(profile: u32, free: &[i64], devices: u32) -> usize {
        let mut h: u64 =
            (u64::from(devices) << 32 | u64::from(profile)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for amount in free {
            h = (h.rotate_left(5) ^ *amount as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        (h ^ (h >> 32)) as usize
    }

    fn find_or_bear(
        &mut self,
        profile: u32,
        free: &[i64],
        devices: u32,
        measure: impl Fn() -> Measure,
    ) -> u32 {
        let mut mask = self.table.len() - 1;
        let hash = Self::hash(profile, free, devices);
        let mut at = hash & mask;
        while self.table[at] != NONE {
            let state = self.table[at];
            if self.profile[state as usize] == profile
                && self.devices[state as usize] == devices
                && self.free_of(state) == free
            {
                return state;
            }
            at = (at + 1) & mask;
        }
        if devices != 0 {
            self.device_sets.keep(devices, 1);
        }
        let measure = measure();
        let state = match self.dead.pop() {
            Some(state) => {
                let s = state as usize;
                let start = s * self.stride;
                self.free[start..start + self.stride].copy_from_slice(free);
                self.profile[s] = profile;
                self.devices[s] = devices;
                self.head[s] = NONE;
                self.leftover[s] = measure.leftover;
                self.digest[s] = measure.digest;
                self.live_at[s] = self.live.len() as u32;
                state
            }
            None => {
                let state = self.profile.len() as u32;
                self.free.extend_from_slice(free);
                self.profile.push(profile);
                self.devices.push(devices);
                self.head.push(NONE);
                self.count.push(0);
                self.generation.push(0);
                self.leftover.push(measure.leftover);
                self.digest.push(measure.digest);
                self.live_at.push(self.live.len() as u32);
                state
            }
        };
        self.live.push(state);
        self.leftovers.insert(state, measure);
        if self.births.len() > 4 * self.live.len() + BIRTHS_SLACK {
            self.births_start += self.births.len() as u64;
            self.births.clear();
        }
        self.births.push(StateRef {
            id: state,
            generation: self.generation[state as usize],
        });
        if self.live.len() * 2 > self.table.len() {
            let grown = self.table.len() * 2;
            self.rehash(grown);
            mask = grown - 1;
            debug_assert!(self.live.len() <= mask);
        } else {
            self.table[at] = state;
        }
        state
    }

    fn hash_of(&self, state: u32) -> usize {
        let s = state as usize;
        Self::hash(self.profile[s], self.free_of(state), self.devices[s])
    }

    fn rehash(&mut self, size: usize) {
        self.table = vec![NONE; size];
        for i in 0..self.live.len() {
            let state = self.live[i];
            let mut at = self.hash_of(state) & (size - 1);
            while self.table[at] != NONE {
                at = (at + 1) & (size - 1);
            }
            self.table[at] = state;
        }
    }

    fn bury(&mut self, state: u32) {
        let s = state as usize;
        let mask = self.table.len() - 1;
        let mut hole = self.hash_of(state) & mask;
        while self.table[hole] != state {
            hole = (hole + 1) & mask;
        }
        // Backward shift keeps every later entry reachable from its own slot.
        let mut at = (hole + 1) & mask;
        while self.table[at] != NONE {
            let other = self.table[at];
            let home = self.hash_of(other) & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.table[hole] = other;
                hole = at;
            }
            at = (at + 1) & mask;
        }
        self.table[hole] = NONE;
        self.leftovers.remove(self.key_of(state));
        if self.devices[s] != 0 {
            self.device_sets.drop_one(self.devices[s]);
        }
        let position = self.live_at[s];
        self.live.swap_remove(position as usize);
        if let Some(moved) = self.live.get(position as usize) {
            self.live_at[*moved as usize] = position;
        }
        self.generation[s] = self.generation[s].wrapping_add(1);
        self.dead.push(state);
    }
}
