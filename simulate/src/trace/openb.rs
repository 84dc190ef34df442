//! The CSV tables of Alibaba's GPU cluster trace of 2023, "openb"
//! (<https://github.com/alibaba/clusterdata/tree/master/cluster-trace-gpu-v2023>): nodes, and tasks
//! that ask for CPU, memory, and whole GPUs or a part of one.
//!
//! Replayed in time, a task runs from when it was scheduled (else created) to when it was deleted.

use std::collections::{BTreeMap, BTreeSet};

use rota_scheduler::{Class, ClassSpec, DEVICE, Expression, NodeSpec, Operator};

use super::csv::Table;
use super::{Job, Machine, ReadError, Trace, millis};
use crate::{GPU, GPU_MODEL};

const MIB: i64 = 1 << 20;
/// Most GPUs that one task can sensibly ask for.
const GPUS_MAX: i64 = 1 << 20;

/// Reads the table of tasks.
pub fn read(text: &str) -> Result<Trace, ReadError> {
    let needed = ["name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"];
    let table = Table::read(text, &needed)?;
    let mut trace = Trace::default();
    for row in table.rows() {
        let cpu = row.number("cpu_milli")?.unwrap_or(0);
        let memory = row.number("memory_mib")?.unwrap_or(0);
        let gpus = row.number("num_gpu")?.unwrap_or(0);
        let share = row.number("gpu_milli")?.unwrap_or(0);
        let created = row.number("creation_time")?.unwrap_or(0);
        let deleted = row.number("deletion_time")?.unwrap_or(created);
        let started = row.number("scheduled_time")?.unwrap_or(created);
        if cpu < 0
            || memory < 0
            || !(0..=GPUS_MAX).contains(&gpus)
            || !(0..=DEVICE).contains(&share)
        {
            trace.reject("an amount is out of range");
            continue;
        }
        let times = (
            millis(created as f64).filter(|t| *t >= 0),
            millis(deleted.saturating_sub(started) as f64).filter(|t| *t >= 0),
        );
        let (Some(submit), Some(run)) = times else {
            trace.reject("a time is out of range");
            continue;
        };
        let mut spec = ClassSpec {
            requests: BTreeMap::from([
                ("cpu".into(), cpu),
                ("memory".into(), memory.saturating_mul(MIB)),
                // A part of one GPU, or whole ones.
                (GPU.into(), if gpus == 1 { share } else { gpus * DEVICE }),
            ]),
            ..ClassSpec::default()
        };
        let models: BTreeSet<&str> = row.text("gpu_spec").split('|').collect();
        let models: Vec<String> = models
            .into_iter()
            .filter(|m| !m.is_empty())
            .map(String::from)
            .collect();
        match models.as_slice() {
            [] => {}
            [one] => {
                spec.node_selector.insert(GPU_MODEL.into(), one.clone());
            }
            _ => {
                spec.required = vec![vec![Expression {
                    key: GPU_MODEL.into(),
                    operator: Operator::In,
                    values: models,
                }]]
            }
        }
        trace.jobs.push(Job {
            min: 0,
            app: row.text("qos").into(),
            ..Job::gang(row.text("name").into(), submit, run, Class::new(spec), 1)
        });
    }
    trace.sort();
    Ok(trace)
}

/// Reads the table of nodes.
pub fn read_nodes(text: &str) -> Result<Vec<(String, NodeSpec)>, ReadError> {
    let table = Table::read(text, &["sn", "cpu_milli", "memory_mib", "gpu", "model"])?;
    let mut nodes = Vec::new();
    for row in table.rows() {
        let cpu = row.number("cpu_milli")?.unwrap_or(0);
        let memory = row.number("memory_mib")?.unwrap_or(0);
        let gpus = row.number("gpu")?.unwrap_or(0);
        if cpu < 0 || memory < 0 || !(0..=GPUS_MAX).contains(&gpus) {
            return Err(ReadError::new(
                row.line,
                "an amount out of range",
                "amounts of at least 0",
            ));
        }
        nodes.push((
            row.text("sn").to_string(),
            spec(cpu, memory.saturating_mul(MIB), gpus, row.text("model")),
        ));
    }
    Ok(nodes)
}

/// The trace's most common GPU node.
pub fn node(_: u64, _: Machine) -> NodeSpec {
    spec(96_000, 768 * 1024 * MIB, 8, "")
}

fn spec(cpu: i64, memory: i64, gpus: i64, model: &str) -> NodeSpec {
    let mut spec = NodeSpec {
        allocatable: BTreeMap::from([("cpu".into(), cpu), ("memory".into(), memory)]),
        ready: true,
        ..NodeSpec::default()
    };
    if gpus > 0 {
        spec.allocatable.insert(GPU.into(), gpus * DEVICE);
        spec.devices.insert(GPU.into());
    }
    if !model.is_empty() {
        spec.labels.insert(GPU_MODEL.into(), model.into());
    }
    spec
}
