//! Parked: states all of whose nodes the rules keep a class from. They stay out of its index until
//! a rule loosens or a node comes to one of them, so that what repels a class does not cost it
//! again with every demand.

use super::Side;
use super::rules::{Room, Rules};
use crate::cluster::states::States;
use crate::index::Entry;
use crate::intern::FxMap;

/// Entries of dead states that are kept beyond the number of live ones.
const DEAD_SLACK: usize = 64;

#[derive(Clone, Debug, Default)]
pub(crate) struct Parked {
    entries: FxMap<u32, Entry>,
    /// On the clock of [`Side`]: what holds of the nodes was seen then.
    since: u64,
    /// Position in the log of joins up to which it has caught up.
    joins: u64,
}

impl Parked {
    /// Entries that must go back to the index, since a node of theirs may be open.
    pub fn catch_up(&mut self, side: &Side, states: &States, rules: &Rules) -> Vec<Entry> {
        let joins = side.joins_since(self.joins);
        self.joins = side.joins_end();
        let Some(joins) = joins.filter(|_| rules.loosened(side) <= self.since) else {
            return self.all();
        };
        if self.entries.len() > 2 * states.live.len() + DEAD_SLACK {
            self.entries.retain(|_, entry| states.is_live(entry.state));
        }
        let mut back = Vec::new();
        for node in joins {
            let state = states.of_node[*node as usize];
            if self.entries.contains_key(&state)
                && !matches!(rules.room(side, *node, 1), Room::Never(_))
            {
                back.extend(self.entries.remove(&state));
            }
        }
        back
    }

    /// Everything, in a fixed order.
    pub fn all(&mut self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.entries.drain().map(|(_, entry)| entry).collect();
        all.sort_unstable();
        all
    }

    /// Parks what was found shut; `joins` is the end of that log before it was looked at.
    pub fn park(&mut self, entries: impl Iterator<Item = Entry>, now: u64, joins: u64) {
        self.entries.extend(entries.map(|e| (e.state.id, e)));
        self.since = now;
        self.joins = joins;
    }
}
