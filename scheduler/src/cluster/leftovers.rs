//! Leftovers: live states in the order of what is left over, which all classes share.
//!
//! A class that takes the state with least left over walks the order upwards and stops at the first
//! that fits. Most of what it passes is too full for it; that is seen from a *digest* of the free
//! amounts, one word per state, in one subtraction for all resources together. The order is kept in
//! blocks, so that a state that comes or goes moves few others. It is only kept once somebody has
//! asked for it.

use crate::score::UNIT;

/// States in a block at most: a state that comes or goes moves half as many on average.
const BLOCK_MAX: usize = 128;
/// States in a block when the order is laid out anew, so that there is room for more.
const BLOCK_FIRST: usize = 96;
/// A block with fewer is joined to the next if that leaves room.
const BLOCK_FEW: usize = BLOCK_MAX / 4;

/// Resources in a digest, a byte each: the first that were named.
const DIGEST_RESOURCES: usize = 8;
/// The top bit of each byte, set in states' digests: what is subtracted never borrows beyond it.
const GUARDS: u64 = 0x8080_8080_8080_8080;
/// The highest level that a byte holds beside its guard.
const LEVEL_MAX: u32 = 127;
/// Levels per doubling, as bits.
const STEP_BITS: u32 = 3;
/// Doublings below a resource's magnitude that have levels; what is less is level 0.
const DOUBLINGS: u32 = (LEVEL_MAX + 1) >> STEP_BITS;

/// Where a state stands: less left over first, then by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub leftover: i64,
    pub state: u32,
}

impl Key {
    pub const FIRST: Key = Key {
        leftover: i64::MIN,
        state: 0,
    };

    pub const LAST: Key = Key {
        leftover: i64::MAX,
        state: u32::MAX,
    };

    /// What comes right behind it.
    pub fn behind(self) -> Key {
        match self.state.checked_add(1) {
            Some(state) => Key { state, ..self },
            None => Key {
                leftover: self.leftover.saturating_add(1),
                state: 0,
            },
        }
    }
}

/// What the order needs to know of a state. `magnitude` is log2 of a resource's largest capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measure {
    pub leftover: i64,
    pub digest: u64,
    /// Number of the traits of its nodes' profile.
    pub traits: u32,
}

impl Measure {
    pub fn of(magnitude: &[u32], free: &[i64], traits: u32) -> Self {
        let of_resources = free.iter().enumerate().map(|(r, free)| (r as u32, *free));
        Measure {
            leftover: leftover(magnitude, free),
            digest: digest(magnitude, of_resources) | GUARDS,
            traits,
        }
    }
}

/// Sum of the free amounts, each in [`UNIT`]s of the resource's magnitude.
fn leftover(magnitude: &[u32], free: &[i64]) -> i64 {
    let unit_bits = UNIT.trailing_zeros();
    magnitude
        .iter()
        .zip(free)
        .map(|(bits, amount)| {
            let amount = (*amount).max(0);
            if *bits >= unit_bits {
                amount >> (bits - unit_bits)
            } else {
                amount << (unit_bits - bits)
            }
        })
        .fold(0, i64::saturating_add)
}

/// The levels of some amounts, a byte each; those of requests as they are subtracted.
pub(crate) fn digest(magnitude: &[u32], amounts: impl Iterator<Item = (u32, i64)>) -> u64 {
    let digested = amounts.filter(|(r, _)| (*r as usize) < DIGEST_RESOURCES.min(magnitude.len()));
    digested.fold(0, |digest, (r, amount)| {
        digest | u64::from(level(amount, magnitude[r as usize])) << (8 * r)
    })
}

/// A coarse logarithm that never falls when the amount rises: with each of a request's levels at
/// most the state's, it may fit; else it does not.
fn level(amount: i64, magnitude: u32) -> u32 {
    if amount <= 0 {
        return 0;
    }
    let exponent = amount.ilog2();
    let Some(doubling) = (exponent + DOUBLINGS).checked_sub(magnitude) else {
        return 0;
    };
    let step = if exponent >= STEP_BITS {
        amount >> (exponent - STEP_BITS)
    } else {
        amount << (STEP_BITS - exponent)
    } as u32;
    let within = step - (1 << STEP_BITS);
    ((doubling << STEP_BITS) | within).min(LEVEL_MAX)
}

/// Whether what has this digest may hold what is asked for.
#[inline]
pub(crate) fn may_hold(digest: u64, asked: u64) -> bool {
    digest.wrapping_sub(asked) & GUARDS == GUARDS
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Leftovers {
    /// Whether it is kept.
    on: bool,
    /// Of each block, its first key.
    firsts: Vec<Key>,
    blocks: Vec<Block>,
}

/// Side by side, by key.
#[derive(Clone, Debug, Default)]
struct Block {
    keys: Vec<Key>,
    digests: Vec<u64>,
    traits: Vec<u32>,
}

impl Block {
    fn split_off(&mut self, at: usize) -> Block {
        Block {
            keys: self.keys.split_off(at),
            digests: self.digests.split_off(at),
            traits: self.traits.split_off(at),
        }
    }

    fn append(&mut self, mut other: Block) {
        self.keys.append(&mut other.keys);
        self.digests.append(&mut other.digests);
        self.traits.append(&mut other.traits);
    }
}

impl Leftovers {
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// All that is in the order, in order.
    pub fn all(&self) -> impl Iterator<Item = (Key, Measure)> {
        self.blocks.iter().flat_map(|block| {
            let sides = block.keys.iter().zip(&block.digests).zip(&block.traits);
            sides.map(|((key, digest), traits)| {
                let measure = Measure {
                    leftover: key.leftover,
                    digest: *digest,
                    traits: *traits,
                };
                (*key, measure)
            })
        })
    }

    /// Lays the order out for these states.
    pub fn start(&mut self, mut states: Vec<(u32, Measure)>) {
        let key = |(state, measure): &(u32, Measure)| Key {
            leftover: measure.leftover,
            state: *state,
        };
        states.sort_unstable_by_key(key);
        self.stop();
        self.on = true;
        for chunk in states.chunks(BLOCK_FIRST) {
            let block = Block {
                keys: chunk.iter().map(key).collect(),
                digests: chunk.iter().map(|(_, m)| m.digest).collect(),
                traits: chunk.iter().map(|(_, m)| m.traits).collect(),
            };
            self.firsts.push(block.keys[0]);
            self.blocks.push(block);
        }
    }

    /// Forgets the order, because what it knows of states is no longer so.
    pub fn stop(&mut self) {
        *self = Leftovers::default();
    }

    /// The block where a key is or belongs.
    fn block_of(&self, key: Key) -> usize {
        let behind = self.firsts.partition_point(|first| *first <= key);
        behind.saturating_sub(1)
    }

    pub fn insert(&mut self, state: u32, measure: Measure) {
        if !self.on {
            return;
        }
        let key = Key {
            leftover: measure.leftover,
            state,
        };
        let b = self.block_of(key);
        if self.blocks.is_empty() {
            self.blocks.push(Block::default());
            self.firsts.push(key);
        }
        let block = &mut self.blocks[b];
        let at = block.keys.partition_point(|k| *k < key);
        block.keys.insert(at, key);
        block.digests.insert(at, measure.digest);
        block.traits.insert(at, measure.traits);
        self.firsts[b] = block.keys[0];
        if block.keys.len() > BLOCK_MAX {
            let upper = block.split_off(BLOCK_MAX / 2);
            self.firsts.insert(b + 1, upper.keys[0]);
            self.blocks.insert(b + 1, upper);
        }
    }

    pub fn remove(&mut self, key: Key) {
        if !self.on {
            return;
        }
        let b = self.block_of(key);
        let found = self.blocks[b].keys.binary_search(&key);
        debug_assert!(found.is_ok(), "a live state is in the order");
        let Ok(at) = found else {
            return;
        };
        let block = &mut self.blocks[b];
        block.keys.remove(at);
        block.digests.remove(at);
        block.traits.remove(at);
        match block.keys.first() {
            Some(first) => self.firsts[b] = *first,
            None => {
                self.blocks.remove(b);
                self.firsts.remove(b);
                return;
            }
        }
        let len = block.keys.len();
        if len < BLOCK_FEW
            && let Some(next) = self.blocks.get(b + 1)
            && len + next.keys.len() <= BLOCK_FIRST
        {
            let next = self.blocks.remove(b + 1);
            self.firsts.remove(b + 1);
            self.blocks[b].append(next);
        }
    }

    /// The first state from a key on that may hold what is asked for by its digest and takes it,
    /// told its traits and number. Second is what that cost, in work units: one per block, and one
    /// per state that `takes` was asked about.
    pub fn first(
        &self,
        from: Key,
        asked: u64,
        takes: impl Fn(u32, u32) -> bool,
    ) -> (Option<Key>, u64) {
        let mut cost = 0;
        let start = self.block_of(from);
        for (b, block) in self.blocks.iter().enumerate().skip(start) {
            cost += 1;
            let skip = if b == start {
                block.keys.partition_point(|k| *k < from)
            } else {
                0
            };
            for (i, digest) in block.digests.iter().enumerate().skip(skip) {
                if may_hold(*digest, asked) {
                    cost += 1;
                    if takes(block.traits[i], block.keys[i].state) {
                        return (Some(block.keys[i]), cost);
                    }
                }
            }
        }
        (None, cost)
    }
}
