use rota_supervisor::protocol::*;
use rota_supervisor::sys;

use crate::harness::*;

#[test]
fn reports_exit_codes_and_signals() {
    let mut rig = Rig::new();
    rig.sh("zero", "true");
    rig.sh("seven", "exit 7");
    rig.sh("killed", "kill -9 $$");
    let zero = rig.wait_exit("zero");
    assert_eq!(
        (zero.code, zero.signal, zero.cause),
        (Some(0), None, ExitCause::Ended)
    );
    assert_eq!(zero.tag, "tag-zero");
    assert!(zero.started_ms > 0 && zero.finished_ms >= zero.started_ms);
    assert_eq!(rig.wait_exit("seven").code, Some(7));
    let killed = rig.wait_exit("killed");
    assert_eq!((killed.code, killed.signal), (None, Some(9)));
    assert_eq!(rig.started.len(), 3);
}

#[test]
fn says_why_a_start_failed() {
    let mut rig = Rig::new();
    let plain = rig.root.path().join("plain");
    std::fs::write(&plain, "x").unwrap();
    let plain = plain.to_str().unwrap().to_string();
    let mut specs = vec![
        rig.spec("a", &["no-such-program"]),
        rig.spec("b", &["/no/such/program"]),
        rig.spec("c", &[&plain]),
        rig.spec("d", &["true"]),
        rig.spec("e", &["true", "nul\0"]),
    ];
    specs[3].cwd = Some("/no/such/dir".into());
    rig.client.send(&Request::Start(specs)).unwrap();
    for (id, reason, code) in [
        ("a", "CommandNotFound", 127),
        ("b", "CommandNotFound", 127),
        ("c", "PermissionDenied", 126),
        ("d", "WorkingDirMissing", 126),
        ("e", "InvalidArgument", 126),
    ] {
        let e = rig.wait_exit(id);
        assert_eq!(
            (e.cause, e.reason.as_deref(), e.code),
            (ExitCause::NotStarted, Some(reason), Some(code)),
            "{e:?}"
        );
        assert!(e.message.is_some_and(|m| !m.is_empty()));
    }
}

#[test]
fn gives_a_clean_environment_session_and_directory() {
    let mut rig = Rig::new();
    rig.sh("t", "env | sort; pwd; ps -o pid=,sid= -p $$; cat /proc/self/status | grep -E 'Sig(Blk|Ign)'; echo err >&2; printf tail");
    let e = rig.wait_exit("t");
    assert_eq!(e.code, Some(0));
    let log = rig.log("t");
    let out: Vec<&str> = log
        .lines()
        .filter_map(|l| l.split_once(" stdout F ").map(|p| p.1))
        .collect();
    assert!(out.contains(&"ROTA_TASK=t"), "{log}");
    assert!(!log.contains("CARGO"), "{log}");
    assert!(out.contains(&rig.attempt("t").join("work").to_str().unwrap()));
    let ids: Vec<&str> = out
        .iter()
        .find(|l| l.contains(&e.pid.to_string()))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(ids[0], ids[1], "leads its own session");
    assert!(
        out.iter()
            .any(|l| l.starts_with("SigBlk") && l.ends_with("0000000000000000")),
        "{log}"
    );
    // The two highest bits are signals that the C library keeps to itself.
    let ignored = out
        .iter()
        .find_map(|l| l.strip_prefix("SigIgn:\t"))
        .unwrap();
    assert_eq!(
        u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff,
        0,
        "{log}"
    );
    assert!(
        log.contains(" stderr F err\n") && log.contains(" stdout P tail\n"),
        "{log}"
    );
}

#[test]
fn a_task_inherits_its_three_streams_and_no_more() {
    let mut rig = Rig::new();
    rig.sh("t", "exec sleep 1000");
    let pid = rig.wait_started("t").pid;
    until("only three are open", || {
        let mut open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .ok()?
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        open.sort();
        let sleeps = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()? == "sleep\n";
        (sleeps && open == ["0", "1", "2"]).then_some(())
    });
}

#[test]
fn stops_gently_then_by_force_with_all_children() {
    let mut rig = Rig::new();
    rig.sh(
        "gentle",
        "trap 'exit 3' TERM; echo x > ready; while :; do sleep 0.01; done",
    );
    rig.sh(
        "stubborn",
        "trap '' TERM; sleep 1000 & echo $! > child; wait; while :; do sleep 1; done",
    );
    rig.wait_file("gentle", "ready");
    let child: i32 = rig.wait_file("stubborn", "child").trim().parse().unwrap();
    rig.stop("gentle", 20_000);
    rig.stop("stubborn", 100);
    let gentle = rig.wait_exit("gentle");
    assert_eq!((gentle.code, gentle.cause), (Some(3), ExitCause::Stopped));
    let stubborn = rig.wait_exit("stubborn");
    assert_eq!(
        (stubborn.signal, stubborn.cause),
        (Some(9), ExitCause::Stopped)
    );
    until("the child is gone", || (!alive(child)).then_some(()));
}

#[test]
fn children_go_with_the_main_process_even_from_another_session() {
    let mut rig = Rig::new();
    rig.sh("t", "setsid sh -c 'echo $$ > stray; exec sleep 1000' & while ! [ -s stray ]; do sleep 0.01; done; sleep 1000 & echo $! > child; exit 0");
    assert_eq!(rig.wait_exit("t").code, Some(0));
    let stray: i32 = rig.wait_file("t", "stray").trim().parse().unwrap();
    let child: i32 = rig.wait_file("t", "child").trim().parse().unwrap();
    until("both are gone", || {
        (!alive(stray) && !alive(child)).then_some(())
    });
}

#[test]
fn a_start_is_done_once_and_a_stop_before_it_wins() {
    let mut rig = Rig::new();
    let spec = rig.spec(
        "once",
        &["sh", "-c", "echo x >> /proc/self/cwd/../count; sleep 1000"],
    );
    rig.client
        .send(&Request::Start(vec![spec.clone(), spec.clone()]))
        .unwrap();
    rig.wait_started("once");
    rig.start(spec);
    let never = rig.spec("never", &["sleep", "1000"]);
    let mut bytes = Vec::new();
    encode(&Request::Start(vec![never]), &mut bytes).unwrap();
    encode(
        &Request::Stop(vec![StopSpec {
            id: "never".into(),
            signal: 15,
            grace_ms: 0,
        }]),
        &mut bytes,
    )
    .unwrap();
    rig.client.send(&Request::Stop(vec![])).unwrap();
    rig.stop("once", 0);
    rig.wait_exit("once");
    assert_eq!(rig.started.iter().filter(|s| s.id == "once").count(), 1);
}

#[test]
fn fenced_tasks_end_when_the_deadline_passes_and_others_stay() {
    let mut rig = Rig::new();
    rig.client
        .send(&Request::Fence {
            until_boot_ms: sys::boot_ms() + 600_000,
        })
        .unwrap();
    let mut fenced = rig.spec("fenced", &["sleep", "1000"]);
    fenced.fenced = true;
    rig.start(fenced.clone());
    rig.sh("free", "exec sleep 1000");
    rig.wait_started("fenced");
    let free = rig.wait_started("free");
    rig.client
        .send(&Request::Fence {
            until_boot_ms: sys::boot_ms() + 200,
        })
        .unwrap();
    let e = rig.wait_exit("fenced");
    assert_eq!((e.cause, e.signal), (ExitCause::Fenced, Some(9)));
    assert!(alive(free.pid));
    fenced.id = "late".into();
    rig.start(fenced);
    let e = rig.wait_exit("late");
    assert_eq!(
        (e.cause, e.pid),
        (ExitCause::Fenced, 0),
        "nothing fenced starts after the deadline"
    );
}

#[test]
fn refuses_another_protocol() {
    let mut rig = Rig::new();
    rig.client.send(&Request::Hello { version: 999 }).unwrap();
    match rig.client.next(PATIENCE).unwrap() {
        Some(Event::Refused { message }) => assert!(message.contains("999"), "{message}"),
        other => panic!("{other:?}"),
    }
    rig.reconnect();
}

#[test]
fn drain_ends_it_with_the_last_task() {
    let mut rig = Rig::new();
    rig.sh(
        "t",
        "echo x > ready; while ! [ -e go ]; do sleep 0.01; done; exit 5",
    );
    rig.wait_file("t", "ready");
    rig.client.send(&Request::Drain).unwrap();
    rig.sh("late", "true");
    assert_eq!(
        rig.wait_exit("late").reason.as_deref(),
        Some("SupervisorDraining")
    );
    assert!(rig.child.try_wait().unwrap().is_none());
    std::fs::write(rig.attempt("t").join("work/go"), "").unwrap();
    assert_eq!(rig.wait_exit("t").code, Some(5));
    assert!(
        rig.child.try_wait().unwrap().is_none(),
        "exits are not acknowledged yet"
    );
    rig.client
        .send(&Request::Ack(vec!["t".into(), "late".into()]))
        .unwrap();
    let status = until("the end", || rig.child.try_wait().unwrap());
    assert!(status.success());
}

#[test]
fn loud_output_is_rotated_and_bounded() {
    let mut rig = Rig::new();
    rig.sh(
        "loud",
        "yes 0123456789012345678901234567890123456789 | head -c 90000000",
    );
    assert_eq!(rig.wait_exit("loud").code, Some(0));
    let mut total = 0;
    for name in ["log", "log.1", "log.2", "log.3", "log.4"] {
        let size = std::fs::metadata(rig.attempt("loud").join(name))
            .unwrap()
            .len();
        assert!(size <= 10 << 20, "{name} {size}");
        total += size;
    }
    assert!(total > 40 << 20, "{total}");
    assert!(!rig.attempt("loud").join("log.5").exists());
}

#[test]
fn a_shortened_grace_leaves_no_deadline_behind() {
    let mut rig = Rig::new();
    rig.sh(
        "first",
        "trap '' TERM; echo up > up; while :; do sleep 0.02; done",
    );
    rig.wait_file("first", "up");
    rig.stop("first", 1_000);
    rig.stop("first", 0);
    let first = rig.wait_exit("first");
    assert_eq!((first.signal, first.cause), (Some(9), ExitCause::Stopped));
    // Takes the place of the first one in the supervisor's table.
    rig.sh("second", "sleep 1.6; exit 4");
    let second = rig.wait_exit("second");
    assert_eq!((second.code, second.signal), (Some(4), None));
}

#[test]
fn output_that_a_task_closed_costs_no_time() {
    let mut rig = Rig::new();
    rig.sh(
        "quiet",
        "echo before; exec >/dev/null 2>&1; echo up > up; sleep 1; exit 0",
    );
    rig.wait_file("quiet", "up");
    let before = cpu_ticks(rig.child.id());
    assert_eq!(rig.wait_exit("quiet").code, Some(0));
    let spent = cpu_ticks(rig.child.id()) - before;
    assert!(spent < 20, "{spent} ticks of 10 ms in one second");
    assert!(rig.log("quiet").contains("before"));
}

/// User and system time of a process, in clock ticks.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_supervisor_that_drains_says_so_and_takes_no_starts() {
    let mut rig = Rig::new();
    assert!(!rig.welcome.draining);
    rig.sh("unacknowledged", "exit 3");
    rig.wait_exit("unacknowledged");
    rig.client.send(&Request::Drain).unwrap();
    rig.reconnect();
    assert!(rig.welcome.draining);
    rig.sh("late", "exit 0");
    let late = rig.wait_exit("late");
    assert_eq!(
        (late.cause, late.reason.as_deref()),
        (ExitCause::Lost, Some("SupervisorDraining"))
    );
}
