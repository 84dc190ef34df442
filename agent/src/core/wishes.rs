//! What the API wants: takes in the list and the watch of this node's Tasks.
//!
//! Promise: a Task that a list no longer holds, or that the watch saw go, is wanted no more; only
//! the first list makes the absence of a known task mean anything.

use std::collections::{BTreeMap, BTreeSet};

use rota_api::kinds::TaskPhase;

use super::Core;
use super::tracked::{Tag, Tracked};
use crate::api::TaskObject;
use crate::plan::{Desired, Observed, Run};
use crate::watch::Change;

impl Core {
    pub(super) fn on_change(&mut self, change: Change) {
        match change {
            Change::All(items) => {
                let there: BTreeSet<String> =
                    items.iter().map(|t| t.metadata.uid.clone()).collect();
                for (uid, t) in &mut self.tracked {
                    if !there.contains(uid) && (t.desired.take().is_some() || !self.listed) {
                        self.dirty.insert(uid.clone());
                    }
                }
                if !self.listed {
                    self.dirty.extend(self.tracked.keys().cloned());
                }
                self.listed = true;
                items.into_iter().for_each(|t| self.set(t));
            }
            Change::Set(items) => items.into_iter().for_each(|t| self.set(t)),
            Change::Gone(uid) => {
                if let Some(t) = self.tracked.get_mut(&uid) {
                    t.desired = None;
                    self.dirty.insert(uid);
                }
            }
        }
    }

    fn set(&mut self, task: TaskObject) {
        let m = task.metadata;
        let desired = Desired {
            namespace: m.namespace,
            name: m.name,
            deleting: m.deletion_timestamp.is_some(),
            terminal: task.status.phase.is_some_and(TaskPhase::is_terminal),
            spec: task.spec,
        };
        let t = self
            .tracked
            .entry(m.uid.clone())
            .or_insert_with(|| Tracked {
                desired: None,
                generation: 0,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                observed: Observed {
                    run: Run::None,
                    restarts: 0,
                    policy: None,
                },
                tag: Tag::default(),
                supervisor: None,
                started: None,
                acks: Vec::new(),
                charged: false,
                last_exit: None,
                tidied: false,
            });
        if t.tag.u.is_empty() {
            t.tag = Tag {
                ns: desired.namespace.clone(),
                n: desired.name.clone(),
                u: m.uid.clone(),
                ju: desired.spec.job_uid.clone(),
                i: desired.spec.index,
                a: desired.spec.attempt,
                p: Vec::new(),
                rq: desired
                    .spec
                    .requests
                    .iter()
                    .map(|(k, v)| (k.clone(), v.base_ceil(k)))
                    .collect(),
            };
        }
        t.labels = m.labels;
        t.annotations = m.annotations;
        t.generation = m.generation;
        t.desired = Some(desired);
        self.dirty.insert(m.uid);
    }
}
