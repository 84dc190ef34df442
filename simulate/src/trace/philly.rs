//! Traces of Gavel, drawn from Microsoft's Philly trace
//! (<https://github.com/stanford-futuredata/gavel>, scheduler/traces): per line job type, command,
//! name of the steps flag, whether data is needed, total steps, arrival in seconds, GPUs; between tabs.
//!
//! A job of k GPUs is a gang of k tasks of one GPU. The trace counts steps, not time: run times are
//! steps over the rate that Gavel published for one P100, times the GPUs as if k were k times as
//! fast. All that is compared between orders is the same work.

use std::collections::BTreeMap;

use rota_scheduler::{Class, ClassSpec, DEVICE, NodeSpec};

use super::{Job, Machine, ReadError, TASKS_MAX, Trace, millis};
use crate::GPU;

/// Fields of a line.
const FIELDS: usize = 7;
/// GPUs of a node of `--nodes N`, as most nodes of the Philly trace have.
const GPUS: i64 = 8;

/// Steps per second on one P100, by job type (Gavel, scheduler/oracle_throughputs, `p100_unconsolidated`).
const RATES: &[(&str, f64)] = &[
    ("A3C", 5.68),
    ("CycleGAN", 2.40),
    ("LM (batch size 5)", 90.8),
    ("LM (batch size 10)", 77.1),
    ("LM (batch size 20)", 58.2),
    ("LM (batch size 40)", 35.8),
    ("LM (batch size 80)", 21.2),
    ("Recommendation (batch size 512)", 48.9),
    ("Recommendation (batch size 1024)", 30.7),
    ("Recommendation (batch size 2048)", 16.6),
    ("Recommendation (batch size 4096)", 8.90),
    ("Recommendation (batch size 8192)", 5.55),
    ("ResNet-18 (batch size 16)", 35.9),
    ("ResNet-18 (batch size 32)", 35.8),
    ("ResNet-18 (batch size 64)", 22.3),
    ("ResNet-18 (batch size 128)", 11.7),
    ("ResNet-18 (batch size 256)", 7.72),
    ("ResNet-50 (batch size 16)", 9.05),
    ("ResNet-50 (batch size 32)", 4.89),
    ("ResNet-50 (batch size 64)", 2.62),
    ("ResNet-50 (batch size 128)", 1.58),
    ("Transformer (batch size 16)", 9.54),
    ("Transformer (batch size 32)", 7.87),
    ("Transformer (batch size 64)", 5.09),
    ("Transformer (batch size 128)", 3.07),
    ("Transformer (batch size 256)", 1.68),
];

/// Reads a trace.
pub fn read(text: &str) -> Result<Trace, ReadError> {
    let mut trace = Trace::default();
    let class = Class::new(ClassSpec {
        requests: BTreeMap::from([(GPU.into(), DEVICE)]),
        ..ClassSpec::default()
    });
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let number = |field: usize, what: &str| {
            let text = fields.get(field).map_or("", |f| f.trim());
            text.parse::<f64>()
                .ok()
                .filter(|x| x.is_finite())
                .ok_or_else(|| {
                    let text: String = text.chars().take(40).collect();
                    ReadError::new(at + 1, format!("\"{text}\""), what)
                })
        };
        if fields.len() != FIELDS {
            return Err(ReadError::new(
                at + 1,
                format!("{} fields", fields.len()),
                "7 between tabs: type, command, steps flag, needs data, steps, arrival, GPUs",
            ));
        }
        let steps = number(4, "a number of steps")?;
        let arrival = number(5, "an arrival in seconds")?;
        let gpus = number(6, "a number of GPUs")?;
        let kind = fields[0].trim();
        let Some((_, rate)) = RATES.iter().find(|(name, _)| *name == kind) else {
            trace.reject("the speed of its type is not known");
            continue;
        };
        if !(1.0..=f64::from(TASKS_MAX)).contains(&gpus) {
            trace.reject("its number of GPUs is out of range");
            continue;
        }
        let times = (
            millis(arrival).filter(|t| *t >= 0),
            millis(steps / (rate * gpus)).filter(|t| *t >= 0),
        );
        let (Some(submit), Some(run)) = times else {
            trace.reject("a time is out of range");
            continue;
        };
        trace.jobs.push(Job {
            app: kind.into(),
            ..Job::gang(
                format!("{}", at + 1),
                submit,
                run,
                class.clone(),
                gpus as u32,
            )
        });
    }
    trace.sort();
    Ok(trace)
}

/// A node of 8 GPUs.
pub fn node(_: u64, _: Machine) -> NodeSpec {
    NodeSpec {
        allocatable: BTreeMap::from([(GPU.into(), GPUS * DEVICE)]),
        devices: [GPU.into()].into(),
        ready: true,
        ..NodeSpec::default()
    }
}
