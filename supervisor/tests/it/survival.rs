use rota_supervisor::protocol::*;

use crate::harness::*;

#[test]
fn exits_while_the_agent_is_away_are_reported_once() {
    let mut rig = Rig::new();
    rig.sh(
        "short",
        "while ! [ -e ../../../go ]; do sleep 0.01; done; exit 4",
    );
    rig.sh("long", "exec sleep 1000");
    let long = rig.wait_started("long");
    let short = rig.wait_started("short");
    rig.client = {
        // The old connection is gone before the exit.
        let (c, w) = rota_supervisor::client::Client::open(&rig.dir()).unwrap();
        assert_eq!(w.running.len(), 2);
        c
    };
    let dir = rig.dir();
    let away = std::mem::replace(
        &mut rig.client,
        rota_supervisor::client::Client::open(&dir).unwrap().0,
    );
    drop(away);
    std::fs::write(rig.root.path().join("tasks/go"), "").unwrap();
    until("the task ended", || (!alive(short.pid)).then_some(()));
    until("it is in the Welcome", || {
        rig.reconnect();
        (rig.welcome.exits.len() == 1).then_some(())
    });
    assert_eq!(rig.welcome.exits[0].code, Some(4));
    assert_eq!(
        rig.welcome.running,
        std::slice::from_ref(&long),
        "same pid and start time"
    );
    rig.reconnect();
    assert_eq!(
        rig.welcome.exits.len(),
        1,
        "not forgotten before the acknowledgement"
    );
    rig.client
        .send(&Request::Ack(vec!["short".into()]))
        .unwrap();
    rig.reconnect();
    assert!(rig.welcome.exits.is_empty());
    assert!(alive(long.pid));
}

#[test]
fn tasks_survive_the_supervisor_and_end_as_lost() {
    let mut rig = Rig::new();
    rig.sh("done", "exit 9");
    rig.wait_exit("done");
    rig.sh(
        "runs",
        "echo one; while ! [ -e go ]; do sleep 0.01; done; echo two; exit 6",
    );
    rig.sh("gone", "exec sleep 1000");
    let runs = rig.wait_started("runs");
    let gone = rig.wait_started("gone");
    until("first output", || {
        rig.log("runs").contains("one").then_some(())
    });
    rig.kill_supervisor();
    assert!(alive(runs.pid));
    rota_supervisor::sys::kill(gone.pid, 9);
    until("gone", || (!alive(gone.pid)).then_some(()));
    let old = rig.dir();
    rig.succeed();
    assert!(!old.exists(), "the predecessor's state was taken over");
    let by_id = |id: &str| rig.welcome.exits.iter().find(|e| e.id == id).cloned();
    assert_eq!(
        by_id("done").unwrap().code,
        Some(9),
        "an exit that was not acknowledged is kept"
    );
    let lost = by_id("gone").unwrap();
    assert_eq!(
        (lost.cause, lost.code, lost.reason.as_deref()),
        (ExitCause::Lost, None, Some("SupervisorLost"))
    );
    assert_eq!(rig.welcome.running.len(), 1);
    assert!(alive(runs.pid));
    std::fs::write(rig.attempt("runs").join("work/go"), "").unwrap();
    let e = rig.wait_exit("runs");
    assert_eq!((e.cause, e.code), (ExitCause::Lost, None));
    assert!(
        rig.log("runs").contains("two"),
        "output goes on: {}",
        rig.log("runs")
    );
}

#[test]
fn a_stop_reaches_tasks_of_a_dead_supervisor() {
    let mut rig = Rig::new();
    rig.sh(
        "t",
        "trap '' TERM; echo x > ready; while :; do sleep 0.05; done",
    );
    let t = rig.wait_started("t");
    rig.wait_file("t", "ready");
    rig.kill_supervisor();
    rig.succeed();
    rig.stop("t", 50);
    assert_eq!(rig.wait_exit("t").cause, ExitCause::Stopped);
    assert!(!alive(t.pid));
}

#[test]
fn fenced_tasks_die_with_the_supervisor() {
    let mut rig = Rig::new();
    let mut spec = rig.spec("f", &["sleep", "1000"]);
    spec.fenced = true;
    rig.start(spec);
    let f = rig.wait_started("f");
    rig.kill_supervisor();
    until("it is gone", || (!alive(f.pid)).then_some(()));
    rig.succeed();
    assert_eq!(rig.welcome.exits[0].cause, ExitCause::Lost);
}

#[test]
fn a_damaged_journal_is_an_error_and_not_a_fresh_start() {
    let mut rig = Rig::new();
    rig.sh("a", "exit 1");
    rig.wait_exit("a");
    rig.sh("b", "exit 1");
    rig.wait_exit("b");
    rig.kill_supervisor();
    let journal = rig.dir().join("journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&journal, bytes).unwrap();
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_rota-supervisor"))
        .arg("--dir")
        .arg(rig.dir())
        .args(["--generation", "1"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("is damaged at line"),
        "{out:?}"
    );
}

#[test]
fn only_one_supervisor_works_in_a_directory() {
    let rig = Rig::new();
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_rota-supervisor"))
        .arg("--dir")
        .arg(rig.dir())
        .args(["--generation", "1"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("another supervisor"),
        "{out:?}"
    );
}
