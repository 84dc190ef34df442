//! Index of a class over node states: the best state first.
//!
//! A lazy heap. Entries are pushed when a state is born (the index catches up with the birth log
//! when it is asked) and dropped when they come up and their state has died since. A state that
//! changes is another state, so entries never need to change.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::cluster::states::{StateRef, States};

#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    heap: BinaryHeap<Entry>,
    /// Position in the birth log up to which it has caught up; `None` before the first build.
    caught_up: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub score: i64,
    pub state: StateRef,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .cmp(&other.score)
            .then_with(|| other.state.id.cmp(&self.state.id))
    }
}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Index {
    /// Catches up. `score` answers `None` for states that the class cannot use. Returns the number of states scored.
    pub fn catch_up(&mut self, states: &States, score: impl Fn(u32) -> Option<i64>) -> u64 {
        let end = states.births_end();
        let news = self
            .caught_up
            .and_then(|position| states.births_since(position))
            .filter(|news| news.len() <= states.live.len());
        let scored = match news {
            Some(news) if self.heap.len() <= 2 * states.live.len() + 64 => {
                for state in news {
                    if states.is_live(*state)
                        && let Some(score) = score(state.id)
                    {
                        self.heap.push(Entry {
                            score,
                            state: *state,
                        });
                    }
                }
                news.len()
            }
            _ => {
                let mut entries = std::mem::take(&mut self.heap).into_vec();
                entries.clear();
                entries.extend(states.live.iter().filter_map(|id| {
                    Some(Entry {
                        score: score(*id)?,
                        state: StateRef {
                            id: *id,
                            generation: states.generation[*id as usize],
                        },
                    })
                }));
                self.heap = BinaryHeap::from(entries);
                states.live.len()
            }
        };
        self.caught_up = Some(end);
        scored as u64
    }

    /// The best state that is alive.
    pub fn best(&mut self, states: &States) -> Option<Entry> {
        while let Some(entry) = self.heap.peek() {
            if states.is_live(entry.state) {
                return Some(*entry);
            }
            self.heap.pop();
        }
        None
    }

    /// Takes the best entry out, to look behind it; give it back with [`Index::put_back`].
    pub fn set_aside(&mut self) -> Option<Entry> {
        self.heap.pop()
    }

    pub fn put_back(&mut self, entry: Entry) {
        self.heap.push(entry);
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }
}
