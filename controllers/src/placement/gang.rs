//! Gangs: which Jobs they have, whether all of these can start, and what becomes of those that have
//! nodes and do not run in full: after a while they give their nodes back.

use jiff::{SignedDuration, Timestamp};
use rota_api::{Job, TaskPhase};

use super::ask::Terms;
use super::decide::TasksOf;
use super::memory::Memory;
use crate::lifecycle::{self, Hold};
use crate::runtime::{Key, Note, Regarding};

/// How long such a gang may stay short of members, if it says so.
pub(super) fn timeout(job: &Job) -> Option<SignedDuration> {
    let seconds = job.spec.gang.as_ref()?.timeout_seconds?;
    Some(SignedDuration::from_secs(seconds))
}

impl Memory {
    /// Sets the terms of a Job, and lists it under its gang.
    pub(super) fn set_terms(&mut self, serial: u64, terms: Option<Terms>) {
        let Some(job) = self.jobs.get_mut(&serial) else {
            return;
        };
        let (old, new) = (
            job.terms.as_ref().and_then(Terms::gang),
            terms.as_ref().and_then(Terms::gang),
        );
        job.terms = terms;
        // Whatever changed about a member, the others of its gang deserve a look.
        self.freed |= old.or(new).is_some();
        if old == new {
            return;
        }
        if let Some(members) = old.and_then(|gang| self.gang_jobs.get_mut(&gang)) {
            members.remove(&serial);
        }
        if let Some(gang) = new {
            self.gang_jobs.entry(gang).or_default().insert(serial);
        }
    }

    /// Why a gang of which nothing runs yet cannot start whatever room there is, in words: some of
    /// its Jobs are not there yet, or are held.
    pub(super) fn gang_is_short(&self, serial: u64) -> Option<String> {
        let job = self.jobs.get(&serial)?;
        let members = self.gang_jobs.get(&job.terms.as_ref()?.gang()?)?;
        let wanted = job
            .job
            .as_ref()?
            .spec
            .gang
            .as_ref()?
            .jobs
            .unwrap_or(1)
            .max(1) as usize;
        let there = members.iter().filter_map(|member| self.jobs.get(member));
        let there: Vec<_> = there.filter(|j| j.wanted.hold != Hold::Deleted).collect();
        if there.len() < wanted {
            return Some(format!(
                "{} of the {wanted} Jobs of its gang exist",
                there.len()
            ));
        }
        let held = there.iter().find(|j| {
            matches!(
                j.wanted.hold,
                Hold::Suspended | Hold::NotStarted | Hold::LedgerUnreadable
            )
        })?;
        Some(format!(
            "Job {}/{} of the same gang is suspended, or waits for another Job",
            held.owner.namespace, held.owner.name
        ))
    }

    /// Stops all Tasks of a gang that has been short of running members for too long. It waits as
    /// long again before it asks for nodes, so that others have a chance.
    pub(super) fn give_up_gang(&mut self, serial: u64, tasks_of: TasksOf<'_>, now: Timestamp) {
        let Some(job) = self.jobs.get_mut(&serial) else {
            return;
        };
        let Some(object) = job.job.clone() else {
            return;
        };
        let needed = job.terms.as_ref().map_or(0, |t| t.together(0));
        let Some(timeout) = timeout(&object).filter(|_| job.wanted.runnable()) else {
            job.short_since = None;
            return;
        };
        let tasks = tasks_of(&job.owner.uid);
        let live: Vec<_> = tasks.iter().filter(|t| lifecycle::is_live(t)).collect();
        let runs = |t: &&&std::sync::Arc<rota_api::Task>| lifecycle::phase(t) == TaskPhase::Running;
        let running = live.iter().filter(runs).count();
        if live.is_empty() || running >= needed as usize {
            job.short_since = None;
            return;
        }
        let since = *job.short_since.get_or_insert(now);
        let end = since.saturating_add(timeout).unwrap_or(now);
        if now < end {
            self.wakes.insert((end, serial));
            return;
        }
        job.short_since = None;
        let until = now.saturating_add(timeout).unwrap_or(now);
        job.paused_until = Some(until);
        self.wakes.insert((until, serial));
        for task in live {
            self.stops.insert(Key::of(&task.metadata));
        }
        let text = format!(
            "{running} of {needed} tasks ran after {} s: the nodes are given back, and asked for again after as long",
            timeout.as_secs()
        );
        let regarding = Regarding::of::<Job>(&object.metadata);
        self.notes
            .push(Note::warning(regarding, "GangTimeout", text));
    }
}
