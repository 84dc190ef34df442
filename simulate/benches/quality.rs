//! Quality of the scheduler on published traces, as tables: `make quality`.
//!
//! ROTA_TRACES names the folder of the traces; what is not there is skipped. Exits with failure when
//! a published answer is not reached.

use std::path::PathBuf;
use std::process::ExitCode;

use rota_scheduler::Policy;
use rota_simulate::nodes::{self, Nodes};
use rota_simulate::trace::{LoadRule, Trace, format};
use rota_simulate::{Estimates, Measures, ORDERS, Settings, load, preset, run};

/// Seeds of the published answers for openb.
const SEEDS: std::ops::Range<u64> = 42..52;

fn main() -> ExitCode {
    let mut sound = true;
    openb(&mut sound);
    orders("batsim", "backfill-reference/medium_late.json", 32);
    orders("swf", "swf/hpc2n.swf", 120);
    orders("philly", "philly-gavel/ee9e8c.seed0.trace", 8);
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn data(path: &str) -> Option<String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var_os("ROTA_TRACES").map_or(PathBuf::from(beside), PathBuf::from);
    let text = std::fs::read_to_string(folder.join(path)).ok();
    if text.is_none() {
        println!(
            "skipped: no {path} in {}; set ROTA_TRACES\n",
            folder.display()
        );
    }
    text
}

fn settings(order: &str, policy: Policy) -> Option<Settings> {
    Some(Settings {
        preset: *preset(order)?,
        policy,
        estimates: Estimates::User,
        checkpoint: 0,
        keep_queues: false,
        log: false,
    })
}

/// GPUs allocated in percent when as many were asked for as there are: mean, least and most over seeds.
fn openb(sound: &mut bool) {
    let Some(table) = data("openb/openb_node_list_all_node.csv") else {
        return;
    };
    let Ok(nodes) = nodes::read(&table) else {
        return;
    };
    println!(
        "| openb, 100 % load | policy | mean | least | most | fragmentation | FGD published |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (file, published) in [("default", 95.2), ("gpuspec33", 87.8)] {
        let Some(text) = data(&format!("openb/openb_pod_list_{file}.csv")) else {
            continue;
        };
        for policy in [Policy::BinPack, Policy::Fragmentation] {
            let mut percent = Vec::new();
            let mut lost = 0.0;
            for seed in SEEDS {
                if let Some(m) = filled(&text, &nodes, policy, seed) {
                    percent.extend(m.gpu_allocated_percent);
                    lost += m.fragmentation.unwrap_or(0.0) / SEEDS.count() as f64;
                }
            }
            let mean = percent.iter().sum::<f64>() / percent.len() as f64;
            let least = percent.iter().copied().fold(f64::MAX, f64::min);
            let most = percent.iter().copied().fold(0.0, f64::max);
            println!(
                "| {file} | {policy:?} | {mean:.2} | {least:.2} | {most:.2} | {lost:.2} | {published} |"
            );
            *sound &= policy != Policy::Fragmentation || mean >= published;
        }
    }
    println!();
}

fn filled(text: &str, nodes: &Nodes, policy: Policy, seed: u64) -> Option<Measures> {
    let mut trace = (format("openb")?.read)(text).ok()?;
    load::apply(&mut trace, LoadRule::Fill, nodes, 100, seed);
    Some(run(&trace, nodes, &settings("default", policy)?).measures)
}

/// All orders on one trace.
fn orders(kind: &str, path: &str, n: u32) {
    let Some((trace, nodes)) = data(path).and_then(|text| read(kind, &text, n)) else {
        return;
    };
    println!(
        "| {kind}, {n} nodes | mean wait s | p99 wait s | bounded slowdown | p99 finish-time ratio | Jain | evictions |"
    );
    println!("|---|---|---|---|---|---|---|");
    for order in ORDERS {
        let Some(settings) = settings(order.name, Policy::BinPack) else {
            continue;
        };
        let m = run(&trace, &nodes, &settings).measures;
        let show = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.3}"));
        println!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            order.name,
            show(m.mean_wait_s),
            show(m.p99_wait_s),
            show(m.mean_bounded_slowdown),
            show(m.finish_time_ratio_p99),
            show(m.jain),
            m.preemptions
        );
    }
    println!();
}

fn read(kind: &str, text: &str, n: u32) -> Option<(Trace, Nodes)> {
    let format = format(kind)?;
    let trace = (format.read)(text).ok()?;
    let node = (format.node)(u64::from(n), trace.machine);
    Some((trace, nodes::uniform(n, &node)))
}
