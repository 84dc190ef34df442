//! Small workloads whose schedule can be computed by hand.

use rota_simulate::{Estimates, Settings, run};

use crate::reference;
use crate::tools::{cpus, settings, starts, swf};

#[test]
fn strict_order_blocks_and_first_fit_does_not() {
    // Four processors: job 2 needs all of them, so in strict order the small job 3 waits behind it.
    let trace = swf(&[(0, 100, 3, 100), (1, 10, 4, 10), (2, 10, 1, 10)]);
    assert_eq!(
        starts(&trace, 4, &settings("fifo")),
        [Some(0), Some(100), Some(110)]
    );
    assert_eq!(
        starts(&trace, 4, &settings("first-fit")),
        [Some(0), Some(100), Some(2)]
    );
}

#[test]
fn a_job_waits_until_all_its_processors_are_free() {
    let trace = swf(&[(0, 50, 2, 60), (0, 80, 2, 90), (5, 10, 3, 10)]);
    let run = run(&trace, &cpus(4), &settings("fifo"));
    let third = &run.records[2];
    assert_eq!((third.start, third.end), (Some(80_000), Some(90_000)));
    assert_eq!(third.waited, 75_000);
    assert_eq!(third.nodes.len(), 3);
    // (2 × 50 + 2 × 80 + 3 × 10) / (4 × 90)
    assert_eq!(run.measures.utilization, Some(0.8056));
    assert_eq!(run.measures.makespan_s, Some(90.0));
    assert_eq!(run.measures.mean_wait_s, Some(25.0));
    // (1 + 1 + 85 / 10) / 3
    assert_eq!(run.measures.mean_bounded_slowdown, Some(3.5));
}

#[test]
fn shortest_first_runs_9_1_4_in_the_order_1_4_9() {
    let trace = swf(&[(0, 2, 1, 2), (1, 9, 1, 9), (1, 1, 1, 1), (1, 4, 1, 4)]);
    assert_eq!(
        starts(&trace, 1, &settings("sjf")),
        [Some(0), Some(7), Some(2), Some(3)]
    );
}

#[test]
fn what_can_never_run_is_rejected_and_counted() {
    let trace = swf(&[
        (0, 10, 5, 10),
        (0, -1, 1, 10),
        (0, 10, 0, 10),
        (0, 0, 1, 10),
        (0, 10, 4_000_000_000, 10),
        (-5, 10, 1, 10),
        (3, 10, 4, -1),
    ]);
    let run = run(&trace, &cpus(4), &settings("fifo"));
    let m = &run.measures;
    assert_eq!((m.jobs, m.rejected, m.completed), (7, 5, 2));
    assert_eq!(trace.rejected["it never ran"], 1);
}

#[test]
fn the_same_run_twice_is_the_same_to_the_byte() {
    let jobs: Vec<_> = (0..80)
        .map(|i| (i * 7 % 130, 1 + i * 31 % 97, 1 + (i % 9) as u32, 200))
        .collect();
    let trace = swf(&jobs);
    let log = |order: &str| {
        let settings = Settings {
            log: true,
            estimates: Estimates::Exact,
            ..settings(order)
        };
        let run = run(&trace, &cpus(16), &settings);
        assert_eq!(run.measures.completed, 80, "{order}");
        serde_json::to_string(&(&run.measures, &run.log)).unwrap()
    };
    for order in rota_simulate::ORDERS {
        assert_eq!(log(order.name), log(order.name));
    }
}

#[test]
fn easy_lets_through_what_delays_nobody_first() {
    // Four processors. Job 2 needs all, from 100 on. Job 3 is over by then and may overtake it;
    // job 4 is not, though it would fit now. Job 5 ends before its user said, which nobody knew.
    let trace = swf(&[
        (0, 100, 3, 100),
        (1, 50, 4, 50),
        (2, 30, 1, 98),
        (2, 60, 1, 99),
        (40, 1, 1, 200),
    ]);
    assert_eq!(
        starts(&trace, 4, &settings("easy")),
        [Some(0), Some(100), Some(2), Some(150), Some(150)]
    );
    let exact = Settings {
        estimates: Estimates::Exact,
        ..settings("easy")
    };
    // With the truth known, job 4 fits behind job 3, and job 5 behind that.
    assert_eq!(
        starts(&trace, 4, &exact),
        [Some(0), Some(100), Some(2), Some(32), Some(92)]
    );
}

#[test]
fn run_times_are_learnt_from_what_ended() {
    // The user says 1000 s and runs 10 s, so that after a while his jobs overtake.
    let mut jobs: Vec<_> = (0..20).map(|i| (i * 10, 10, 1, 1000)).collect();
    jobs.extend([(300, 100, 1, 100), (301, 10, 2, 1000), (302, 10, 1, 1000)]);
    let trace = swf(&jobs);
    let last = |estimates| {
        let settings = Settings {
            estimates,
            ..settings("easy")
        };
        starts(&trace, 2, &settings)[22]
    };
    assert_eq!(last(Estimates::User), Some(410));
    assert_eq!(last(Estimates::Learnt), Some(302));
}

#[test]
fn easy_does_what_a_naive_program_does() {
    for seed in 1..=40 {
        // Any odd multipliers give workloads that are crowded and varied enough.
        let jobs: Vec<_> = (0..60)
            .map(|i| {
                let x = (i * 7919 + seed * 104_729) % 9973;
                let run = 1 + x % 61;
                (i * 6 + x % 13, run, 1 + (x % 7) as u32, run + x % 29)
            })
            .collect();
        let trace = swf(&jobs);
        let naive: Vec<_> = reference::easy(&trace, 8)
            .into_iter()
            .map(|start| Some(start / 1000))
            .collect();
        assert!(starts(&trace, 8, &settings("easy")) == naive, "seed {seed}");
    }
}
