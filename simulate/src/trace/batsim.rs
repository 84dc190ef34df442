//! JSON workloads of Batsim (<https://batsim.readthedocs.io/en/latest/input-workload.html>) whose
//! profiles are delays: a job takes `res` whole nodes for `delay` seconds, and is killed at its
//! `walltime`. Jobs of other profiles are counted as rejected.

use std::collections::{BTreeMap, HashMap};

use rota_scheduler::{Class, ClassSpec, NEVER, NodeSpec};
use serde::Deserialize;

use super::{Job, Machine, ReadError, TASKS_MAX, Trace, millis};

/// A whole node, as these workloads know them.
const CPU: i64 = 1000;

#[derive(Deserialize)]
struct Workload {
    #[serde(default)]
    nb_res: u64,
    jobs: Vec<Submission>,
    profiles: HashMap<String, Profile>,
}

#[derive(Deserialize)]
struct Submission {
    id: serde_json::Value,
    subtime: f64,
    res: i64,
    profile: String,
    #[serde(default)]
    walltime: Option<f64>,
}

#[derive(Deserialize)]
struct Profile {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    delay: Option<f64>,
}

/// Reads a workload.
pub fn read(text: &str) -> Result<Trace, ReadError> {
    let workload: Workload = serde_json::from_str(text).map_err(|e| {
        ReadError::new(
            e.line(),
            e.to_string(),
            "a Batsim workload: {nb_res, jobs: [{id, subtime, res, walltime, profile}], profiles}",
        )
    })?;
    let mut trace = Trace {
        machine: Machine {
            nodes: workload.nb_res,
            processors: workload.nb_res,
        },
        ..Trace::default()
    };
    let class = Class::new(ClassSpec {
        requests: BTreeMap::from([("cpu".into(), CPU)]),
        ..ClassSpec::default()
    });
    let mut jobs = workload.jobs;
    // By exact time: what falls into one millisecond keeps the order in which it came.
    jobs.sort_by(|a, b| a.subtime.total_cmp(&b.subtime));
    for job in jobs {
        let id = match &job.id {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let delay = workload
            .profiles
            .get(&job.profile)
            .filter(|p| p.kind == "delay")
            .and_then(|p| p.delay);
        let Some(delay) = delay else {
            trace.reject("its profile is no delay");
            continue;
        };
        // A wall time of -1 is none.
        let limit = job.walltime.filter(|w| *w > 0.0);
        let times = (
            millis(job.subtime).filter(|t| *t >= 0),
            millis(delay).filter(|t| *t >= 0),
            limit.map_or(Some(NEVER), millis),
        );
        let (Some(submit), Some(run), Some(limit)) = times else {
            trace.reject("a time is out of range");
            continue;
        };
        let count = u32::try_from(job.res).unwrap_or(0);
        if count == 0 || count > TASKS_MAX {
            trace.reject("its number of nodes is out of range");
            continue;
        }
        trace.jobs.push(Job {
            limit,
            app: job.profile,
            ..Job::gang(id, submit, run.min(limit), class.clone(), count)
        });
    }
    trace.sort();
    Ok(trace)
}

/// A node that takes one task of a job.
pub fn node(_: u64, _: Machine) -> NodeSpec {
    NodeSpec {
        allocatable: BTreeMap::from([("cpu".into(), CPU)]),
        ready: true,
        ..NodeSpec::default()
    }
}
