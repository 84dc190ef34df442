use std::time::Instant;

use rota_supervisor::protocol::*;

use crate::harness::*;

/// Not a bar (a debug build on a busy machine), but every exit of a large batch must be reported.
#[test]
fn a_thousand_tasks_in_one_message() {
    for group in [None, Some(format!("bench-{}", std::process::id()))] {
        let named = group.is_some();
        let mut rig = Rig::with_group(group);
        let n: usize = std::env::var("ROTA_BENCH_TASKS")
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(1000);
        let program = std::env::var("ROTA_BENCH_PROGRAM").unwrap_or("/bin/true".into());
        let specs = (0..n)
            .map(|i| rig.spec(&format!("t{i}"), &[&program]))
            .collect();
        let spares = rig.root.path().join(rota_supervisor::dirs::SPARE);
        std::fs::create_dir(&spares).unwrap();
        let begin = Instant::now();
        rig.client.send(&Request::Start(specs)).unwrap();
        for i in 0..n {
            assert_eq!(rig.wait_exit(&format!("t{i}")).code, Some(0));
            // As the agent does.
            rota_supervisor::dirs::keep(&spares, i as u32, &rig.attempt(&format!("t{i}")));
            if i % 97 == 0 {
                let seen = rig.exits.len();
                assert!(seen <= n);
            }
        }
        assert_eq!(rig.exits.len(), n);
        eprintln!(
            "{n} tasks, groups {named}: {:.0}/s",
            n as f64 / begin.elapsed().as_secs_f64()
        );
        let ids = rig.exits.iter().map(|e| e.id.clone()).collect();
        rig.client.send(&Request::Ack(ids)).unwrap();
    }
}
