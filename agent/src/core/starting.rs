//! From a bound Task to a start for the supervisor: reads the template and the values that it
//! names, assigns ports, puts the command together.
//!
//! Promise: a task waits for what cannot be read yet and fails with a reason for what is not there;
//! it never starts with half of its values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rota_api::kinds::{OnLost, RestartPolicy};
use rota_supervisor::protocol::{Limits, StartSpec};

use super::Core;
use crate::environment::{self, Facts, Failure, Lookup, Values};
use crate::logs;
use crate::plan::{GRACE_DEFAULT_MS, Policy, Run, signal_number};
use crate::ports::is_free;
use crate::sources::{self, Key, Kind, Loaded, Template};

impl Core {
    pub(super) fn on_loaded(&mut self, key: Key, value: Option<Loaded>) {
        if let Some(pause) = self.sources.put(&key, value) {
            self.load(key.clone(), pause);
        }
        for uid in self.parked.remove(&key).unwrap_or_default() {
            if let Some(t) = self.tracked.get_mut(&uid) {
                if t.observed.run == Run::Preparing {
                    t.observed.run = Run::None;
                }
                self.dirty.insert(uid);
            }
        }
    }

    fn load(&self, key: Key, pause: Duration) {
        let (api, tx) = (self.w.api.clone(), self.loaded_tx.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let value = sources::load(&api, &key).await;
            let _ = tx.send((key, value)); // the core may have ended
        });
    }

    fn source(&mut self, uid: &str, key: Key) -> Option<Loaded> {
        match self.sources.get(&key) {
            Ok(value) => Some(value),
            Err(load) => {
                self.parked
                    .entry(key.clone())
                    .or_default()
                    .insert(uid.to_string());
                if load {
                    self.load(key, Duration::ZERO);
                }
                None
            }
        }
    }

    /// The task's template; `None` while it is read, or after it turned out not to exist. That
    /// fails a task that was to start; a run that is there or over goes by the defaults instead.
    pub(super) fn template(&mut self, uid: &str) -> Option<Arc<Template>> {
        let t = self.tracked.get(uid)?;
        let d = t.desired.as_ref()?;
        let key = (d.namespace.clone(), Kind::Revision, d.spec.revision.clone());
        match self.source(uid, key)? {
            Loaded::Revision(template) => {
                let spec = &template.spec;
                let policy = Policy {
                    restart: spec.restart_policy.unwrap_or(RestartPolicy::Never),
                    signal: signal_number(spec.kill_signal),
                    grace_ms: spec
                        .termination_grace_period_seconds
                        .map_or(GRACE_DEFAULT_MS, |s| s.max(0) as u64 * 1000),
                };
                if let Some(t) = self.tracked.get_mut(uid) {
                    t.observed.policy = Some(policy);
                }
                Some(template)
            }
            Loaded::Refused(why) => self.without_template(uid, "RevisionForbidden", &why),
            _ => self.without_template(
                uid,
                "RevisionNotFound",
                "the JobRevision that the task refers to does not exist",
            ),
        }
    }

    fn without_template(
        &mut self,
        uid: &str,
        reason: &str,
        message: &str,
    ) -> Option<Arc<Template>> {
        match self.tracked.get_mut(uid) {
            Some(t) if t.observed.run != Run::Preparing => {
                t.observed.policy = Some(Policy {
                    restart: RestartPolicy::Never,
                    signal: signal_number(None),
                    grace_ms: GRACE_DEFAULT_MS,
                });
            }
            _ => self.fail(uid, reason, message),
        }
        None
    }

    pub(super) fn start(&mut self, uid: &str, restarts: u32) -> bool {
        if !self.charge(uid) {
            self.w.metrics.refused.inc();
            return false;
        }
        if let Some(t) = self.tracked.get_mut(uid) {
            t.observed.restarts = restarts;
            t.observed.run = Run::Preparing;
            self.w.attempts.begin(t.attempt());
        }
        let Some(template) = self.template(uid) else {
            self.say_starting(uid);
            return false;
        };
        let Some(t) = self.tracked.get(uid) else {
            return false;
        };
        let Some(namespace) = t.desired.as_ref().map(|d| d.namespace.clone()) else {
            return false;
        };
        let (secrets, maps) = environment::references(&template.spec);
        let mut values = Found::default();
        for (kind, names) in [(Kind::Secret, secrets), (Kind::ConfigMap, maps)] {
            for name in names {
                match self.source(uid, (namespace.clone(), kind, name.clone())) {
                    None => {
                        self.say_starting(uid);
                        return false;
                    }
                    Some(Loaded::Refused(why)) => {
                        self.fail(uid, "ReferenceForbidden", &why);
                        return false;
                    }
                    Some(Loaded::Values(v)) => {
                        values.0.insert((kind == Kind::Secret, name), v);
                    }
                    Some(_) => {}
                }
            }
        }
        match self.specify(uid, &template, &values) {
            Ok(spec) => {
                self.w.metrics.starts.inc();
                if restarts > 0 {
                    self.w.metrics.restarts.inc();
                }
                let generation = self.links.last().map_or(0, |l| l.generation);
                if let Some(t) = self.tracked.get_mut(uid) {
                    t.observed.run = Run::Live;
                    t.supervisor = Some(generation);
                    t.started = None;
                }
                self.starts.entry(generation).or_default().push(spec);
            }
            Err(f) => self.fail(uid, f.reason, &f.message),
        }
        false
    }

    fn specify(
        &mut self,
        uid: &str,
        template: &Template,
        values: &Found,
    ) -> Result<StartSpec, Failure> {
        let failed = |reason, message: &str| Failure {
            reason,
            message: message.into(),
        };
        let Some(t) = self.tracked.get_mut(uid) else {
            return Err(failed("Internal", "the task is not known any more"));
        };
        let Some(d) = &t.desired else {
            return Err(failed("Internal", "the task is not wanted any more"));
        };
        let wanted = d
            .spec
            .ports
            .clone()
            .or_else(|| template.spec.ports.clone())
            .unwrap_or_default();
        if t.tag.p.is_empty() && !wanted.is_empty() {
            t.tag.p = self.ports.assign(&wanted, is_free).ok_or_else(|| {
                failed("NoFreePort", "no port of the node's dynamic range is free")
            })?;
        }
        let dir = logs::attempt_dir(&self.tasks_dir, &t.attempt())
            .ok_or_else(|| failed("InvalidTask", "the Job's uid is no plain name"))?;
        let attempt_dir = dir.to_string_lossy().into_owned();
        let facts = Facts {
            uid,
            labels: &t.labels,
            annotations: &t.annotations,
            ports: &t.tag.p,
            attempt_dir: &attempt_dir,
        };
        let prepared = environment::prepare(d, &template.spec, &facts, values)?;
        let limits = template
            .spec
            .resources
            .as_ref()
            .and_then(|r| r.limits.as_ref());
        let limit = |name: &str| {
            limits
                .and_then(|l| l.get(name))
                .map(|q| q.base_ceil(name).max(0) as u64)
        };
        Ok(StartSpec {
            id: t.run_id(),
            tag: serde_json::to_string(&t.tag).unwrap_or_default(),
            argv: prepared.argv,
            env: prepared.env,
            mark: format!("ROTA_TASK={}", d.name),
            attempt_dir,
            cwd: prepared.cwd,
            limits: Limits {
                cpu_milli: limit("cpu"),
                memory_bytes: limit("memory"),
            },
            fenced: template.on_lost == OnLost::WaitForFence,
        })
    }
}

#[derive(Default)]
struct Found(BTreeMap<(bool, String), Arc<BTreeMap<String, String>>>);

impl Lookup for Found {
    fn secret(&self, name: &str) -> Values<'_> {
        self.0.get(&(true, name.to_string())).map(Arc::as_ref)
    }
    fn config_map(&self, name: &str) -> Values<'_> {
        self.0.get(&(false, name.to_string())).map(Arc::as_ref)
    }
}
