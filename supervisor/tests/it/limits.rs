use rota_supervisor::protocol::*;

use crate::harness::*;

/// A rig with control groups, or nothing where the host does not allow them (said on stderr).
fn rig() -> Option<Rig> {
    let rig = Rig::with_group(Some(format!("test-{}", std::process::id())));
    match (&rig.welcome.memory_unlimited, &rig.welcome.cpu_unlimited) {
        (None, None) => Some(rig),
        (m, c) => {
            eprintln!("skipped: control groups are not available here ({m:?}, {c:?})");
            None
        }
    }
}

#[test]
fn memory_limit_ends_the_task_with_a_cause() {
    let Some(mut rig) = rig() else { return };
    let mut spec = rig.spec("m", &["sh", "-c", "head -c 200000000 /dev/zero | tail -c 199999999 > /dev/null; echo status $?; exec tail /dev/zero"]);
    spec.limits.memory_bytes = Some(32 << 20);
    rig.start(spec);
    let e = rig.wait_exit("m");
    assert_eq!(
        (e.cause, e.signal),
        (ExitCause::OutOfMemory, Some(9)),
        "{e:?}"
    );
}

#[test]
fn cpu_limit_throttles() {
    let Some(mut rig) = rig() else { return };
    let mut spec = rig.spec(
        "c",
        &[
            "sh",
            "-c",
            "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; cat /proc/self/cgroup; times",
        ],
    );
    spec.limits.cpu_milli = Some(200);
    rig.start(spec);
    let e = rig.wait_exit("c");
    assert_eq!(e.code, Some(0));
    let log = rig.log("c");
    assert!(
        log.contains(":cpu:/") && log.contains("/rota/test-"),
        "{log}"
    );
}

#[test]
fn descendants_in_other_sessions_are_found_and_groups_removed() {
    let Some(mut rig) = rig() else { return };
    rig.sh("t", "setsid env -i setsid sleep 1000 & sleep 0.3; exit 0");
    let t = rig.wait_started("t");
    rig.wait_exit("t");
    let parent = format!("test-{}", std::process::id());
    until("no group is left", || {
        let out = std::process::Command::new("find")
            .args([
                "/sys/fs/cgroup",
                "-path",
                &format!("*rota/{parent}/g1-{}-*", rig.welcome.pid),
                "-type",
                "d",
            ])
            .output()
            .unwrap();
        out.stdout.is_empty().then_some(())
    });
    assert!(!alive(t.pid));
}

#[test]
fn groups_are_used_again_and_removed_at_the_end() {
    let Some(mut rig) = rig() else { return };
    let pattern = format!("*rota/test-{}/g1-{}-*", std::process::id(), rig.welcome.pid);
    let groups = || {
        let mut find = std::process::Command::new("find");
        find.args(["/sys/fs/cgroup", "-path", &pattern, "-type", "d"]);
        String::from_utf8(find.output().unwrap().stdout).unwrap()
    };
    rig.sh("first", "exit 0");
    rig.wait_exit("first");
    let kept = groups();
    assert!(!kept.is_empty());
    rig.sh("second", "cat /proc/self/cgroup");
    rig.wait_exit("second");
    let name = kept.trim().rsplit('/').next().unwrap().to_string();
    assert!(
        rig.log("second").contains(&name),
        "{name}: {}",
        rig.log("second")
    );
    assert_eq!(groups(), kept);
    let ids = rig.exits.iter().map(|e| e.id.clone()).collect();
    rig.client.send(&Request::Ack(ids)).unwrap();
    rig.client.send(&Request::Drain).unwrap();
    until("it ends", || rig.child.try_wait().unwrap());
    assert_eq!(groups(), "");
}

#[test]
fn without_groups_it_says_so() {
    let rig = Rig::new();
    assert!(rig.welcome.cpu_unlimited.is_some() && rig.welcome.memory_unlimited.is_some());
}
