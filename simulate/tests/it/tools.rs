//! What tests share.

use rota_scheduler::Policy;
use rota_simulate::nodes::{Nodes, uniform};
use rota_simulate::trace::{Machine, Trace, format};
use rota_simulate::{Estimates, Run, Settings, preset, run};

/// The settings of `--order NAME` with nothing else said.
pub fn settings(order: &str) -> Settings {
    Settings {
        preset: *preset(order).unwrap(),
        policy: Policy::BinPack,
        estimates: Estimates::User,
        checkpoint: 0,
        keep_queues: false,
        log: false,
    }
}

/// Reads a trace and makes `n` nodes as that format has them.
pub fn read(kind: &str, text: &str, n: u32) -> (Trace, Nodes) {
    let format = format(kind).unwrap();
    let trace = (format.read)(text).unwrap();
    let nodes = uniform(n, &(format.node)(u64::from(n), trace.machine));
    (trace, nodes)
}

/// Lines of a standard workload: (submit, run, processors, requested time). Jobs with the same
/// requested time run the same program.
pub fn swf(jobs: &[(i64, i64, u32, i64)]) -> Trace {
    let line = |(i, (submit, run, size, limit)): (usize, &(i64, i64, u32, i64))| {
        format!(
            "{} {submit} -1 {run} {size} -1 -1 {size} {limit} -1 1 1 1 {limit} 1 1 -1 -1\n",
            i + 1
        )
    };
    let text: String = jobs.iter().enumerate().map(line).collect();
    (format("swf").unwrap().read)(&text).unwrap()
}

/// `n` nodes of one CPU.
pub fn cpus(n: u32) -> Nodes {
    let machine = Machine::default();
    uniform(n, &(format("swf").unwrap().node)(u64::from(n), machine))
}

/// Starts in seconds, by job.
pub fn starts(trace: &Trace, n: u32, settings: &Settings) -> Vec<Option<i64>> {
    let run: Run = run(trace, &cpus(n), settings);
    let start = |r: &rota_simulate::Record| r.start.map(|s| s / 1000);
    run.records.iter().map(start).collect()
}
