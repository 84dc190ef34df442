//! Standard workload format, version 2.2: 18 numbers per line, comments after `;`
//! (<https://www.cs.huji.ac.il/labs/parallel/workload/swf.html>).
//!
//! A job of P processors is a gang of P tasks of one CPU each. Its size is what was requested,
//! else what it got. Jobs that never ran (run time below 0) or have no size are counted as rejected.
//! A job that ran beyond its requested time is replayed as it ran.

use std::collections::BTreeMap;

use rota_scheduler::{Class, ClassSpec, NEVER, NodeSpec};

use super::{Job, Machine, ReadError, TASKS_MAX, Trace, millis};

/// Numbers on a line.
const FIELDS: usize = 18;
/// One CPU in base units.
const CPU: i64 = 1000;

/// Reads a trace.
pub fn read(text: &str) -> Result<Trace, ReadError> {
    let mut trace = Trace::default();
    let class = Class::new(ClassSpec {
        requests: BTreeMap::from([("cpu".into(), CPU)]),
        ..ClassSpec::default()
    });
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix(';') {
            header(comment, &mut trace.machine);
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let mut fields = [-1.0; FIELDS];
        let mut n = 0;
        for word in line.split_whitespace() {
            let number = word.parse::<f64>().ok().filter(|x| x.is_finite());
            let number = number.ok_or_else(|| {
                ReadError::new(at + 1, format!("\"{}\"", short(word)), "a number")
            })?;
            if let Some(field) = fields.get_mut(n) {
                *field = number;
            }
            n += 1;
        }
        if n != FIELDS {
            return Err(ReadError::new(
                at + 1,
                format!("{n} numbers"),
                "the 18 of the standard workload format",
            ));
        }
        let [id, submit, _, run, got, _, _, asked, limit, ..] = fields;
        let size = if asked > 0.0 { asked } else { got };
        let (Some(submit), Some(run)) = (millis(submit), millis(run)) else {
            trace.reject("a time is out of range");
            continue;
        };
        if run < 0 {
            trace.reject("it never ran");
            continue;
        }
        if submit < 0 {
            trace.reject("it was submitted before the trace begins");
            continue;
        }
        if size < 1.0 {
            trace.reject("it has no processors");
            continue;
        }
        if size > f64::from(TASKS_MAX) {
            trace.reject("it has too many processors");
            continue;
        }
        let count = size as u32;
        trace.jobs.push(Job {
            limit: millis(limit).filter(|l| *l > 0).unwrap_or(NEVER),
            owner: name("user", fields[11]),
            app: name("app", fields[13]),
            ..Job::gang(format!("{id}"), submit, run, class.clone(), count)
        });
    }
    trace.sort();
    Ok(trace)
}

/// A node so large that `nodes` of them have the processors that the trace was recorded on.
pub fn node(nodes: u64, machine: Machine) -> NodeSpec {
    let cpus = machine.processors.div_ceil(nodes.max(1)).max(1);
    let cpus = i64::try_from(cpus).unwrap_or(i64::MAX);
    NodeSpec {
        allocatable: BTreeMap::from([("cpu".into(), cpus.saturating_mul(CPU))]),
        ready: true,
        ..NodeSpec::default()
    }
}

fn header(comment: &str, machine: &mut Machine) {
    let Some((key, value)) = comment.split_once(':') else {
        return;
    };
    let Some(value) = value.split_whitespace().next().and_then(|v| v.parse().ok()) else {
        return;
    };
    match key.trim() {
        "MaxNodes" => machine.nodes = value,
        "MaxProcs" => machine.processors = value,
        _ => {}
    }
}

fn name(what: &str, number: f64) -> String {
    if number < 0.0 {
        String::new()
    } else {
        format!("{what}{number}")
    }
}

/// So that an error stays one line.
fn short(word: &str) -> String {
    word.chars().take(40).collect()
}
