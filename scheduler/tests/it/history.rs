//! The checkers say what is broken, and nothing when all is well.

use std::collections::BTreeMap;

use rota_scheduler::check::{Event, History, Reason, Work, snapshot};
use rota_scheduler::*;

const A: Work = (1, 0);
const B: Work = (2, 0);

fn placed(work: Work, node: &str, priority: i32) -> Event<'_> {
    Event::Placed {
        work,
        node,
        priority,
        fenced: true,
    }
}

fn evicted(work: Work, by: Work, priority: i32) -> Event<'static> {
    Event::Evicted {
        work,
        by,
        priority,
        reason: Reason::Priority,
    }
}

fn ended(work: Work) -> Event<'static> {
    Event::Ended {
        work,
        for_ever: false,
    }
}

/// Plays events, a second apart; answers how many of them broke something, and what is overdue.
fn play(events: &[Event<'_>]) -> (usize, usize) {
    let mut history = History::new(60);
    let mut broken = 0;
    for (at, event) in events.iter().enumerate() {
        broken += history.see(at as Time, event).len();
    }
    (broken, history.overdue(100).len())
}

#[test]
fn a_replacement_waits_for_the_fence() {
    let lost = Event::Lost { work: A };
    let fence = Event::Fenced { node: "n1" };
    let again = placed(A, "n2", 0);
    let early = [
        placed(A, "n1", 0),
        lost.clone(),
        again.clone(),
        fence.clone(),
    ];
    assert_eq!(play(&early), (1, 0));
    assert_eq!(play(&[placed(A, "n1", 0), lost, fence, again]), (0, 0));
    assert_eq!(play(&[placed(A, "n1", 0), placed(A, "n2", 0)]), (1, 0));
}

#[test]
fn victims_are_lower_and_the_room_is_used() {
    let start = placed(A, "n1", 0);
    let out = evicted(A, B, 5);
    assert_eq!(
        play(&[start.clone(), out.clone(), ended(A), placed(B, "n1", 5)]),
        (0, 0)
    );
    assert_eq!(
        play(&[start.clone(), out, ended(A)]),
        (0, 1),
        "B never came"
    );
    assert_eq!(play(&[start, evicted(A, B, 0), placed(B, "n1", 0)]), (1, 0));
}

#[test]
fn nobody_comes_back_over_the_one_that_displaced_it() {
    let there = [
        placed(A, "n1", 0),
        evicted(A, B, 1),
        ended(A),
        placed(B, "n1", 1),
    ];
    let back = [evicted(B, A, 2), ended(B), placed(A, "n1", 2)];
    assert_eq!(play(&[&there[..], &back[..]].concat()), (1, 0));
}

#[test]
fn a_queue_with_work_that_fits_gets_some() {
    let queue = |wants, running| Event::Queue {
        name: "q",
        wants,
        running,
    };
    assert_eq!(play(&[queue(true, 0)]), (0, 1));
    assert_eq!(play(&[queue(true, 0), queue(true, 1)]), (0, 0));
    assert_eq!(play(&[queue(true, 0), queue(false, 0)]), (0, 0));
    let settled = |share| Event::Settled {
        name: "q",
        share,
        owed: 10,
        task: 2,
    };
    assert_eq!(play(&[settled(12), settled(13)]), (1, 0));
}

#[test]
fn a_snapshot_names_what_is_over() {
    let mut c = Cluster::new();
    let cpu = |n| BTreeMap::from([("cpu".to_string(), n)]);
    c.upsert_node(
        "a",
        NodeSpec {
            allocatable: cpu(4),
            ready: true,
            ..NodeSpec::default()
        },
    );
    let top = QueueSpec {
        limit: cpu(4),
        ..QueueSpec::default()
    };
    c.set_queue("top", Some(top));
    let below = QueueSpec {
        parent: Some("top".to_string()),
        ..QueueSpec::default()
    };
    let queue = c.set_queue("q", Some(below));
    let class = Class::new(ClassSpec {
        requests: cpu(3),
        ports: vec![80],
        ..ClassSpec::default()
    });
    let run = Run {
        gang: 9,
        ..Run::since(0)
    };
    c.bind("a", queue, &class, run);
    let second = c.bind("a", queue, &class, run);
    let min = BTreeMap::from([(9, 3)]);
    let wrong = snapshot(&c, &min);
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    // What leaves counts no more; the gang is then further from whole.
    c.leave(second);
    let wrong = snapshot(&c, &min);
    assert_eq!(wrong, ["gang 9: 1 run, it needs 3 or none"]);
}
