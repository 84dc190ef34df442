//! History: promises about what follows what. Fed with events as they are decided or observed, in
//! order; says at once what was broken.
//!
//! Small on purpose, so that it can run beside a scheduler that does real work: it holds one entry
//! per live task and per queue, and an edge per eviction until either side is done.

use std::collections::BTreeMap;

use crate::spec::Time;

/// One index of one demand: the same through all its incarnations.
pub type Work = (u64, u32);

/// Why a task had to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// For one of higher priority in its queue.
    Priority,
    /// For one in its queue that is done sooner.
    Shorter {
        /// What remained of the victim.
        victim: Time,
        /// What the other needs.
        by: Time,
    },
    /// For another queue, which had less than it is owed.
    Reclaim,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A task of this work got a node.
    Placed {
        /// Which.
        work: Work,
        /// Where.
        node: &'a str,
        /// Its priority.
        priority: i32,
        /// It must never run twice at once: a replacement waits until the node of a lost one is
        /// fenced.
        fenced: bool,
    },
    /// A task was told to leave for the sake of another, or gives up the room that was being made
    /// for it.
    Evicted {
        /// Who leaves.
        work: Work,
        /// For whom.
        by: Work,
        /// That one's priority.
        priority: i32,
        /// Why it may.
        reason: Reason,
    },
    /// A task runs no more: it is done, or it has left. False if it comes back.
    Ended {
        /// Which.
        work: Work,
        /// There will be no further incarnation.
        for_ever: bool,
    },
    /// Nobody knows whether a task still runs, since its node is silent.
    Lost {
        /// Which.
        work: Work,
    },
    /// Nothing that was started on this node before runs any more: its agent's lease and the
    /// largest clock error have passed, or it said so itself.
    Fenced {
        /// Which.
        node: &'a str,
    },
    /// How a queue stands.
    Queue {
        /// Which.
        name: &'a str,
        /// It has waiting work that would fit on some node that is there, within its limits.
        wants: bool,
        /// How many of its tasks run.
        running: u64,
    },
    /// Nothing has changed for long enough that shares should be what they ought to be. All three
    /// in the same unit.
    Settled {
        /// The queue.
        name: &'a str,
        /// What it has.
        share: i64,
        /// What an exact computation gives it.
        owed: i64,
        /// One task of it.
        task: i64,
    },
}

#[derive(Clone, Debug)]
struct Live {
    node: String,
    priority: i32,
    fenced: bool,
    lost: bool,
}

/// Remembers what later events are judged by.
#[derive(Clone, Debug)]
pub struct History {
    patience: Time,
    live: BTreeMap<Work, Live>,
    /// Works that evicted somebody and are not placed yet, with the time by which they must be.
    promised: BTreeMap<Work, Time>,
    /// Who was evicted by whom, when, and whether for what its queue is owed.
    evicted: BTreeMap<Work, (Work, Time, bool)>,
    /// Since when a queue wants and has nothing.
    starved: BTreeMap<String, Time>,
}

impl History {
    /// `patience`: how long a task may wait for the room that was made for it, a queue with work
    /// that fits may have nothing, and a pair of an eviction is remembered.
    pub fn new(patience: Time) -> Self {
        History {
            patience,
            live: BTreeMap::new(),
            promised: BTreeMap::new(),
            evicted: BTreeMap::new(),
            starved: BTreeMap::new(),
        }
    }

    /// Takes in what happened at `now`; says what is broken by it, one sentence each.
    pub fn see(&mut self, now: Time, event: &Event<'_>) -> Vec<String> {
        let mut wrong = Vec::new();
        match event {
            Event::Placed {
                work,
                node,
                priority,
                fenced,
            } => {
                if self.promised.remove(work).is_none() {
                    self.shares_moved();
                }
                let live = Live {
                    node: (*node).to_owned(),
                    priority: *priority,
                    fenced: *fenced,
                    lost: false,
                };
                match self.live.insert(*work, live) {
                    Some(old) if !old.lost => {
                        wrong.push(format!("{work:?} got {node} while it runs on {}", old.node))
                    }
                    Some(old) if old.fenced => wrong.push(format!(
                        "{work:?} got {node} before {} was fenced",
                        old.node
                    )),
                    _ => {}
                }
            }
            Event::Evicted {
                work,
                by,
                priority,
                reason,
            } => self.evict(now, (*work, *by), *priority, *reason, &mut wrong),
            Event::Ended { work, for_ever } => {
                self.live.remove(work);
                if *for_ever {
                    self.promised.remove(work);
                    self.evicted
                        .retain(|victim, (by, ..)| victim != work && by != work);
                    self.shares_moved();
                }
            }
            Event::Lost { work } => {
                if let Some(live) = self.live.get_mut(work) {
                    live.lost = true;
                }
            }
            Event::Fenced { node } => self.live.retain(|_, live| !live.lost || live.node != *node),
            Event::Queue {
                name,
                wants,
                running,
            } => {
                if *wants && *running == 0 {
                    self.starved.entry((*name).to_owned()).or_insert(now);
                } else {
                    self.starved.remove(*name);
                }
            }
            Event::Settled {
                name,
                share,
                owed,
                task,
            } => {
                if (share - owed).abs() > *task {
                    wrong.push(format!(
                        "queue {name} has {share}, it should have {owed} within {task}"
                    ));
                }
            }
        }
        wrong
    }

    /// What has been waited for in vain up to `now`, one sentence each.
    pub fn overdue(&mut self, now: Time) -> Vec<String> {
        let patience = self.patience;
        self.evicted
            .retain(|_, (_, at, _)| now.saturating_sub(*at) <= patience);
        let late = self.promised.iter().filter(|(_, until)| **until < now);
        let late = late.map(|(work, _)| format!("others left for {work:?}, which did not start"));
        let starved = self.starved.iter();
        let starved = starved.filter(|(_, since)| now.saturating_sub(**since) > patience);
        let starved =
            starved.map(|(name, since)| format!("queue {name} has nothing since {since}"));
        late.chain(starved).collect()
    }

    fn evict(
        &mut self,
        now: Time,
        (work, by): (Work, Work),
        priority: i32,
        reason: Reason,
        wrong: &mut Vec<String>,
    ) {
        match (self.live.get(&work), reason) {
            (Some(live), Reason::Priority) if live.priority >= priority => wrong.push(format!(
                "{work:?} of priority {} is evicted for {by:?} of {priority}",
                live.priority
            )),
            (Some(live), Reason::Shorter { victim, by: short })
                if live.priority > priority || short >= victim =>
            {
                wrong.push(format!(
                    "{work:?} with {victim} left is evicted for {by:?} that needs {short}"
                ));
            }
            _ => {}
        }
        self.promised.remove(&work);
        if !self.live.contains_key(&by) {
            self.promised
                .entry(by)
                .or_insert(now.saturating_add(self.patience));
        }
        let mut at = by;
        for _ in 0..=self.evicted.len() {
            if at == work {
                wrong.push(format!(
                    "{work:?} is evicted for {by:?}, which it displaced"
                ));
                break;
            }
            match self.evicted.get(&at) {
                Some((next, since, _)) if now.saturating_sub(*since) <= self.patience => at = *next,
                _ => break,
            }
        }
        self.evicted
            .insert(work, (by, now, reason == Reason::Reclaim));
    }

    /// A task started in free room or is done: what queues are owed is another matter now, so what was
    /// reclaimed may go the other way.
    fn shares_moved(&mut self) {
        self.evicted.retain(|_, (_, _, reclaimed)| !*reclaimed);
    }
}
