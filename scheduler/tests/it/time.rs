//! Time: what is promised for later holds, whatever ends early and whoever comes meanwhile.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rota_scheduler::check::check;
use rota_scheduler::*;

/// Nodes that it needs whole, when it comes, how long it runs, and its limit beyond that.
#[derive(Clone, Debug)]
struct Job {
    nodes: u32,
    submit: Time,
    run: Time,
    slack: Time,
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let job = (1u32..5, 0i64..60, 1i64..30, 0i64..30);
    let job = job.prop_map(|(nodes, submit, run, slack)| Job {
        nodes,
        submit,
        run,
        slack,
    });
    prop::collection::vec(job, 1..25)
}

/// When each job started, and every reservation made: (moment, job, start).
struct Played {
    starts: Vec<Time>,
    reservations: Vec<(Time, usize, Time)>,
}

/// Plays the jobs on four nodes, with a cycle whenever something comes or ends.
fn play(jobs: &[Job], order: Order, backfill: Backfill) -> Played {
    let mut cluster = Cluster::new();
    let spec = QueueSpec {
        order,
        backfill,
        ..QueueSpec::default()
    };
    let queue = cluster.set_queue("q", Some(spec));
    let amount = BTreeMap::from([("cpu".to_string(), 1)]);
    for n in 0..4 {
        let spec = NodeSpec {
            allocatable: amount.clone(),
            ready: true,
            ..NodeSpec::default()
        };
        cluster.upsert_node(&n.to_string(), spec);
    }
    let class = Class::new(ClassSpec {
        requests: amount,
        ..ClassSpec::default()
    });
    let mut starts = vec![NEVER; jobs.len()];
    let mut reservations = Vec::new();
    let mut running: Vec<(Time, TaskId)> = Vec::new();
    let mut next = jobs.iter().map(|j| j.submit).min();
    while let Some(now) = next {
        for (_, task) in running.extract_if(.., |(end, _)| *end <= now) {
            assert!(cluster.release(task));
        }
        let waiting = (0..jobs.len()).filter(|i| starts[*i] == NEVER && jobs[*i].submit <= now);
        let waiting: Vec<usize> = waiting.collect();
        let demands: Vec<Demand> = waiting
            .iter()
            .map(|i| {
                let job = &jobs[*i];
                Demand {
                    created: job.submit,
                    run: job.run + job.slack,
                    run_max: job.run + job.slack,
                    gang: *i as u64 + 1,
                    min: job.nodes,
                    ..Demand::new(*i as u64, class.clone(), queue, job.nodes)
                }
            })
            .collect();
        let outcome = cycle(&mut cluster, &demands, now, Options::default());
        assert_eq!(check(&cluster), Vec::<String>::new());
        for placement in outcome.placements {
            let job = waiting[placement.demand as usize];
            starts[job] = now;
            running.push((now + jobs[job].run, placement.task));
        }
        for reservation in outcome.reservations {
            let job = waiting[reservation.demand as usize];
            reservations.push((now, job, reservation.start));
        }
        let ends = running.iter().map(|(end, _)| *end);
        let comes = jobs.iter().map(|j| j.submit).filter(|t| *t > now);
        next = ends.chain(comes).min();
    }
    Played {
        starts,
        reservations,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_start_once_promised_is_kept_or_comes_earlier(jobs in jobs()) {
        let played = play(&jobs, Order::Fifo, Backfill::Conservative);
        let mut promised = vec![NEVER; jobs.len()];
        for (now, job, start) in played.reservations {
            prop_assert!(start <= promised[job], "at {now} job {job}: {start}, was {}", promised[job]);
            promised[job] = start;
        }
        for (job, start) in played.starts.iter().enumerate() {
            prop_assert!(*start <= promised[job], "job {job}");
            prop_assert_ne!(*start, NEVER);
        }
    }

    #[test]
    fn the_first_in_line_starts_when_it_was_told_at_the_latest(jobs in jobs()) {
        let played = play(&jobs, Order::Fifo, Backfill::Easy);
        for (now, job, start) in played.reservations {
            prop_assert!(played.starts[job] <= start, "told at {now}: job {job} at {start}");
        }
        prop_assert!(played.starts.iter().all(|s| *s != NEVER));
    }

    #[test]
    fn everything_starts_in_the_end_when_the_order_is_left_open(jobs in jobs()) {
        let played = play(&jobs, Order::Priority, Backfill::Easy);
        prop_assert!(played.starts.iter().all(|s| *s != NEVER));
    }
}

#[test]
fn a_long_wide_job_is_not_put_off_for_ever_by_short_ones() {
    // Every 5 a short one for one node, so that four nodes are never free at once by themselves.
    let short = |i: i64| Job {
        nodes: 1,
        submit: i * 5,
        run: 18,
        slack: 0,
    };
    let mut jobs: Vec<Job> = (0..200).map(short).collect();
    jobs.push(Job {
        nodes: 4,
        submit: 20,
        run: 200,
        slack: 0,
    });
    let played = play(&jobs, Order::Priority, Backfill::Easy);
    // Twice the mean run time, and what runs then.
    assert!(
        played.starts[200] < 20 + 2 * 200 + 18,
        "{}",
        played.starts[200]
    );
}
