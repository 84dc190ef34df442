//! Puts per second of each backend: single creates of 1 KiB at several concurrencies, and transactions of 100.
//!
//! `cargo run --release -p rota-store --example puts -- [DIR]`; etcd takes part if `ROTA_ETCD` holds its URL.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rota_store::{EmbeddedOptions, Expect, Guard, Store, StoreConfig, StoreError, Txn, Write};

/// How long each figure is measured.
const SPAN: Duration = Duration::from_secs(2);

async fn measure(store: &Arc<dyn Store>, tasks: usize, batch: usize) -> Result<f64, StoreError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let value = Bytes::from(vec![b'v'; 1024]);
    let started = Instant::now();
    let mut running = Vec::new();
    for _ in 0..tasks {
        let (store, value) = (store.clone(), value.clone());
        running.push(tokio::spawn(async move {
            let mut done = 0;
            while started.elapsed() < SPAN {
                let mut txn = Txn::default();
                for _ in 0..batch {
                    let n = NEXT.fetch_add(1, Ordering::Relaxed);
                    let key: Arc<str> = format!("/rota.dev/tasks/default/task-{n:010}").into();
                    txn.guards.push(Guard {
                        key: key.clone(),
                        expect: Expect::Absent,
                    });
                    txn.writes.push(Write::Put {
                        key,
                        value: value.clone(),
                        expires_at: None,
                    });
                }
                done += store.commit(txn).await?.len();
            }
            Ok::<_, StoreError>(done)
        }));
    }
    let mut puts = 0;
    for task in running {
        puts += task
            .await
            .map_err(|error| StoreError::Unknown(error.to_string()))??;
    }
    Ok(puts as f64 / started.elapsed().as_secs_f64())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args()
        .nth(1)
        .map_or_else(std::env::temp_dir, Into::into)
        .join(format!("rota-store-puts-{}", std::process::id()));
    #[allow(unused_mut)]
    let mut configs = vec![
        StoreConfig::Memory,
        StoreConfig::Embedded {
            dir: dir.clone(),
            options: EmbeddedOptions::default(),
        },
    ];
    #[cfg(feature = "etcd")]
    if let Ok(url) = std::env::var("ROTA_ETCD") {
        configs.push(StoreConfig::Etcd(rota_store::EtcdOptions {
            endpoints: vec![url],
            prefix: "/puts".to_owned(),
            ..Default::default()
        }));
    }
    println!("backend   tasks  batch     puts/s  writes/group");
    for config in configs {
        let store = rota_store::open(config).await?;
        for (tasks, batch) in [(1, 1), (16, 1), (64, 1), (256, 1), (1, 100), (16, 100)] {
            let before = store.stats();
            let rate = measure(&store, tasks, batch).await?;
            let after = store.stats();
            let groups = (after.groups - before.groups).max(1);
            println!(
                "{:<9} {tasks:>5}  {batch:>5}  {rate:>9.0}  {:>12.1}",
                store.info().backend,
                (after.writes - before.writes) as f64 / groups as f64
            );
        }
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
