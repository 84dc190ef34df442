//! Readers of foreign formats on a few lines each.

use rota_scheduler::{NEVER, Operator};
use rota_simulate::load;
use rota_simulate::trace::{LoadRule, batsim, openb, philly, swf};
use rota_simulate::{GPU, GPU_MODEL, nodes};

#[test]
fn standard_workload_format() {
    let text = "; MaxNodes: 120\n; MaxProcs: 240 \n\
        7 5 3 10.5 2 -1 -1 4 60 -1 1 9 1 3 1 1 -1 -1\n\
        8 1 3 10 2 -1 -1 -1 -1 -1 1 -1 1 -1 1 1 -1 -1\n";
    let trace = swf::read(text).unwrap();
    let [first, second] = trace.jobs.as_slice() else {
        panic!("{trace:?}");
    };
    // By submission, not by line.
    assert_eq!(
        (first.id.as_str(), first.submit, first.count),
        ("8", 1000, 2)
    );
    assert_eq!((first.limit, first.owner.as_str()), (NEVER, ""));
    assert_eq!((second.id.as_str(), second.count, second.min), ("7", 4, 4));
    assert_eq!(
        (second.runs.as_slice(), second.limit),
        ([10_500].as_slice(), 60_000)
    );
    assert_eq!(
        (second.owner.as_str(), second.app.as_str()),
        ("user9", "app3")
    );
    assert_eq!(swf::node(120, trace.machine).allocatable["cpu"], 2000);
    assert_eq!(swf::node(1000, trace.machine).allocatable["cpu"], 1000);
    let error = swf::read("; x\n1 2 3\n").unwrap_err().to_string();
    assert_eq!(
        error,
        "line 2: 3 numbers; expected the 18 of the standard workload format"
    );
    let error = swf::read("1 x 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18").unwrap_err();
    assert_eq!((error.line, error.expected.as_str()), (1, "a number"));
}

#[test]
fn batsim_json() {
    let text = r#"{"nb_res": 4, "profiles": {"d": {"type": "delay", "delay": 20}, "p": {"type": "parallel"}},
        "jobs": [
            {"id": 2, "subtime": 1.0004, "res": 3, "profile": "d", "walltime": 15},
            {"id": "w!1", "subtime": 1.0001, "res": 1, "profile": "d", "walltime": -1},
            {"id": 3, "subtime": 0, "res": 1, "profile": "p", "walltime": 9},
            {"id": 4, "subtime": 0, "res": -1, "profile": "d", "walltime": 9}]}"#;
    let trace = batsim::read(text).unwrap();
    let ids: Vec<&str> = trace.jobs.iter().map(|j| j.id.as_str()).collect();
    assert_eq!(ids, ["w!1", "2"]);
    assert_eq!(
        (trace.jobs[0].runs[0], trace.jobs[0].limit),
        (20_000, NEVER)
    );
    // It is killed at its wall time.
    assert_eq!(
        (trace.jobs[1].runs[0], trace.jobs[1].limit),
        (15_000, 15_000)
    );
    assert_eq!(trace.rejected.values().sum::<u64>(), 2);
    assert_eq!(trace.machine.nodes, 4);
    assert!(
        batsim::read("{\"jobs\": 3}")
            .unwrap_err()
            .to_string()
            .contains("line 1")
    );
}

const TASKS: &str = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
a,1000,1024,1,460,,LS,Running,0,50,10
b,2000,1024,2,1000,T4|G2,BE,Running,5,9,
c,500,64,0,0,T4,LS,Running,3,4,3
d,-1,0,0,0,,LS,Running,3,4,3
";
const NODES: &str = "sn,cpu_milli,memory_mib,gpu,model\nn0,32000,262144,0,\nn1,96000,786432,8,G2\n";

#[test]
fn openb_tables() {
    let trace = openb::read(TASKS).unwrap();
    let ids: Vec<&str> = trace.jobs.iter().map(|j| j.id.as_str()).collect();
    assert_eq!(ids, ["a", "c", "b"]);
    let spec = |i: usize| trace.jobs[i].class.spec();
    assert_eq!(spec(0).requests[GPU], 460);
    assert_eq!(trace.jobs[0].runs[0], 40_000);
    assert_eq!(spec(1).node_selector[GPU_MODEL], "T4");
    assert!(!spec(1).requests.contains_key(GPU));
    assert_eq!(spec(2).requests[GPU], 2000);
    let term = &spec(2).required[0][0];
    assert_eq!(term.operator, Operator::In);
    assert_eq!(term.values, ["G2", "T4"]);
    let nodes = nodes::read(NODES).unwrap();
    assert_eq!(nodes[1].1.allocatable[GPU], 8000);
    assert!(nodes[1].1.devices.contains(GPU));
    assert!(nodes[0].1.labels.is_empty());
    let error = openb::read("name,cpu_milli\n").unwrap_err().to_string();
    assert!(error.contains("no column memory_mib"), "{error}");
    let error = openb::read(&TASKS.replace("460", "4x")).unwrap_err();
    assert_eq!((error.line, error.found.as_str()), (2, "gpu_milli \"4x\""));
}

#[test]
fn load_fills_with_what_the_trace_has() {
    let nodes = nodes::read(NODES).unwrap();
    let filled = |percent, seed| {
        let mut trace = openb::read(TASKS).unwrap();
        load::apply(&mut trace, LoadRule::Fill, &nodes, percent, seed);
        trace
    };
    let trace = filled(100, 1);
    let asked =
        |job: &rota_simulate::trace::Job| job.class.spec().requests.get(GPU).copied().unwrap_or(0);
    let all: i64 = trace.jobs.iter().map(asked).sum();
    let before: i64 = trace.jobs[..trace.jobs.len() - 1].iter().map(asked).sum();
    assert!(before < 8000 && all >= 8000, "{before} {all}");
    // Each task of the trace comes once before any comes twice.
    let mut first: Vec<&str> = trace.jobs[..3].iter().map(|j| j.id.as_str()).collect();
    first.sort_unstable();
    assert_eq!(first, ["a", "b", "c"]);
    assert_eq!(trace, filled(100, 1));
    assert_ne!(trace, filled(100, 2));
}

#[test]
fn load_stretches_arrivals() {
    // 40 CPU seconds in 10 s on 4 CPUs are 100 %.
    let mut trace = crate::tools::swf(&[(0, 10, 2, 9), (10, 10, 2, 9)]);
    load::apply(&mut trace, LoadRule::Stretch, &crate::tools::cpus(4), 50, 0);
    assert_eq!(trace.jobs[1].submit, 20_000);
}

#[test]
fn gavel_traces() {
    let text = "A3C\tcd x && run\t-n\t1\t5680\t7.5\t2\nUnknown\tc\t-n\t1\t9\t0\t1\nA3C\tc\t-n\t1\t9\t0\t0\n";
    let trace = philly::read(text).unwrap();
    let [job] = trace.jobs.as_slice() else {
        panic!("{trace:?}");
    };
    // 5680 steps at 5.68 per second and GPU.
    assert_eq!(
        (job.submit, job.run(0), job.count, job.min),
        (7500, 500_000, 2, 2)
    );
    assert_eq!(trace.rejected.values().sum::<u64>(), 2);
    let error = philly::read("A3C\tc\t-n\t1\tmany\t0\t1").unwrap_err();
    assert_eq!(error.expected, "a number of steps");
}
