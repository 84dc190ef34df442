//! Published traces and their published answers. The files are large and not part of this
//! repository: ROTA_TRACES names their folder; without it these tests say so and pass.

use std::collections::HashMap;
use std::path::PathBuf;

use rota_scheduler::{DEVICE, NodeSpec, Policy};
use rota_simulate::nodes::Nodes;
use rota_simulate::trace::{LoadRule, Trace, openb};
use rota_simulate::{Estimates, GPU, GPU_MODEL, Measures, Record, Settings, load, nodes, run};

use crate::reference;
use crate::tools::{read, settings};

/// A file of the folder with published traces.
fn data(path: &str) -> Option<String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var_os("ROTA_TRACES").map_or(PathBuf::from(beside), PathBuf::from);
    let text = std::fs::read_to_string(folder.join(path)).ok();
    if text.is_none() {
        eprintln!(
            "skipped: no {path} in {}; set ROTA_TRACES",
            folder.display()
        );
    }
    text
}

/// Published starts in seconds, by job: the eighth column by the first.
fn column(table: &str) -> HashMap<&str, f64> {
    let lines = table.lines().skip(1);
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            (fields[0], fields[7].parse().unwrap())
        })
        .collect()
}

fn easy_like(order: &str, published: &str, starts_min: usize, mean_wait_s: f64) {
    let (Some(workload), Some(answer)) = (
        data("backfill-reference/medium_late.json"),
        data(&format!("backfill-reference/{published}.out_jobs.csv")),
    ) else {
        return;
    };
    let (trace, nodes) = read("batsim", &workload, 32);
    if order == "easy" {
        // What else is held against the naive program may lean on it.
        let starts = reference::easy(&trace, 32);
        let told = trace.jobs.iter().zip(starts);
        let answer = column(&answer);
        for (job, start) in told {
            let published = answer[job.id.as_str()];
            assert!(
                (start as f64 / 1000.0 - published).abs() < 0.01,
                "{}",
                job.id
            );
        }
    }
    let run = run(&trace, &nodes, &settings(order));
    let answer = column(&answer);
    let same = run
        .records
        .iter()
        .filter(|r| {
            let start = r.start.map_or(f64::NAN, |s| s as f64 / 1000.0);
            (start - answer[r.id.as_str()]).abs() < 0.01
        })
        .count();
    let wait = run.measures.mean_wait_s.unwrap();
    eprintln!("{order}: {same} of 801 published starts, mean wait {wait} s");
    assert_eq!(run.measures.completed, 801);
    assert!(same >= starts_min, "{same} starts");
    assert!((wait - mean_wait_s).abs() <= 0.1, "{wait}");
}

#[test]
fn easy_starts_jobs_when_batsim_published_that_it_does() {
    easy_like("easy", "easy", 795, 9.516);
}

#[test]
fn conservative_starts_jobs_when_batsim_published_that_it_does() {
    easy_like("conservative", "conservative", 795, 9.852);
}

/// Mean wait, mean bounded slowdown, and the mean wait of the tenth of the jobs that are largest by
/// tasks × run time.
fn waits(run: &rota_simulate::Run) -> [f64; 3] {
    let ended = run.records.iter().filter(|r| r.end.is_some());
    let mut jobs: Vec<(i64, i64)> = ended
        .map(|r| (i64::from(r.tasks) * r.run, r.waited))
        .collect();
    jobs.sort_by_key(|(work, _)| std::cmp::Reverse(*work));
    let largest = &jobs[..jobs.len() / 10];
    let sum: i64 = largest.iter().map(|(_, waited)| waited).sum();
    [
        run.measures.mean_wait_s.unwrap(),
        run.measures.mean_bounded_slowdown.unwrap(),
        sum as f64 / largest.len() as f64 / 1000.0,
    ]
}

#[test]
fn the_default_order_beats_easy_also_for_large_jobs() {
    for (kind, file, n) in [
        ("batsim", "backfill-reference/medium_late.json", 32),
        ("swf", "swf/hpc2n.swf", 120),
    ] {
        let Some(text) = data(file) else {
            return;
        };
        let (trace, nodes) = read(kind, &text, n);
        let [easy, ours] =
            ["easy", "default"].map(|order| waits(&run(&trace, &nodes, &settings(order))));
        eprintln!("{file}: easy {easy:?}, default {ours:?}");
        assert!(ours[0] < easy[0] && ours[1] < easy[1] && ours[2] <= easy[2]);
    }
}

#[test]
fn hpc2n_slowdown_and_forecasts_by_order() {
    let Some(text) = data("swf/hpc2n.swf") else {
        return;
    };
    let (trace, nodes) = read("swf", &text, 120);
    // Nine of ten jobs start by the time that says so of nine in ten.
    let honest = |order: &str, m: &Measures| {
        let covered = m.forecast_p90_coverage.unwrap();
        assert!((0.85..=0.95).contains(&covered), "{order}: {covered}");
    };
    let mut slowdown = HashMap::new();
    for order in ["fifo", "easy", "sjf", "default"] {
        let m = run(&trace, &nodes, &settings(order)).measures;
        eprintln!("{order}: {m:?}");
        if order != "fifo" {
            honest(order, &m);
        }
        slowdown.insert(order, m.mean_bounded_slowdown.unwrap());
    }
    let learnt = Settings {
        estimates: Estimates::Learnt,
        ..settings("easy")
    };
    let m = run(&trace, &nodes, &learnt).measures;
    eprintln!("easy, learnt estimates: {m:?}");
    honest("learnt", &m);
    let learnt = m.mean_bounded_slowdown.unwrap();
    assert!(learnt < slowdown["easy"], "{learnt} {slowdown:?}");
    assert!(slowdown["default"] < slowdown["easy"], "{slowdown:?}");
    assert!(slowdown["easy"] < slowdown["fifo"] / 2.0, "{slowdown:?}");
    assert!(slowdown["sjf"] < slowdown["easy"], "{slowdown:?}");
}

/// Mean over seeds of the GPUs allocated in the end, by the protocol of the FGD paper.
fn fgd(file: &str, seeds: std::ops::Range<u64>) -> Option<f64> {
    let (tasks, table) = (
        data(&format!("openb/openb_pod_list_{file}.csv"))?,
        data("openb/openb_node_list_all_node.csv")?,
    );
    let nodes = nodes::read(&table).unwrap();
    let n = (seeds.end - seeds.start) as f64;
    let percent: Vec<f64> = seeds
        .map(|seed| {
            let mut trace = openb::read(&tasks).unwrap();
            load::apply(&mut trace, LoadRule::Fill, &nodes, 100, seed);
            let settings = Settings {
                policy: Policy::Fragmentation,
                ..settings("default")
            };
            let run = run(&trace, &nodes, &settings);
            check(&trace, &nodes, &run.records);
            run.measures.gpu_allocated_percent.unwrap()
        })
        .collect();
    eprintln!("{file}: {percent:?}");
    Some(percent.iter().sum::<f64>() / n)
}

#[test]
fn fragmentation_allocates_as_much_as_fgd_published() {
    for (file, least) in [("default", 95.2), ("gpuspec33", 87.8)] {
        if let Some(percent) = fgd(file, 42..43) {
            assert!(percent >= least, "{file}: {percent}");
        }
    }
}

/// What is held on every node, counted plainly: within what the node has, on the right model.
fn check(trace: &Trace, nodes: &Nodes, records: &[Record]) {
    let specs: HashMap<&str, &NodeSpec> = nodes.iter().map(|(n, s)| (n.as_str(), s)).collect();
    let mut held: HashMap<(&str, &str), i64> = HashMap::new();
    for (job, record) in trace.jobs.iter().zip(records) {
        for node in &record.nodes {
            let (spec, class) = (specs[node.as_str()], job.class.spec());
            for (resource, amount) in &class.requests {
                *held.entry((node, resource)).or_default() += amount;
                if resource == GPU && *amount >= DEVICE {
                    *held.entry((node, "whole")).or_default() += amount / DEVICE;
                } else if resource == GPU {
                    *held.entry((node, "part")).or_default() += amount;
                }
            }
            let model = spec.labels.get(GPU_MODEL);
            let one = class.node_selector.get(GPU_MODEL);
            assert!(one.is_none() || one == model, "{} on {node}", record.id);
            for e in class.required.iter().flatten() {
                assert!(e.values.contains(model.unwrap()), "{} on {node}", record.id);
            }
        }
    }
    for ((node, resource), amount) in &held {
        let spec = specs[node];
        let gpus = spec.allocatable.get(GPU).map_or(0, |g| g / DEVICE);
        let whole = held.get(&(*node, "whole")).copied().unwrap_or(0);
        match *resource {
            "whole" => assert!(*amount <= gpus, "{node}"),
            "part" => assert!(*amount <= (gpus - whole) * DEVICE, "{node}"),
            other => assert!(*amount <= spec.allocatable[other], "{node} {other}"),
        }
    }
}
