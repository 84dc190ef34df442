//! The other candidate for the embedded store, redb, under the same writes and the same power cuts.
//!
//! Not part of an ordinary run: `cargo test -p rota-store --test it -- --ignored redb --nocapture`.

use std::path::Path;
use std::sync::mpsc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::durability::{CHILD_DIR, CHILD_WRITES};
use crate::powercut::{Image, campaign};

/// Key to version and value, as the store's own table of current records.
const CURRENT: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("cur");
const FILE: &str = "db.redb";

struct Put {
    name: String,
    text: String,
    acked: mpsc::Sender<u64>,
}

/// Not a test of its own, like `durability::child_writer`: the same writes from as many tasks, committed in groups by one thread.
#[test]
#[ignore = "the writer of redb_survives_a_power_cut"]
fn redb_writer() {
    let Ok(dir) = std::env::var(CHILD_DIR) else {
        return;
    };
    let writes: u64 = std::env::var(CHILD_WRITES).unwrap().parse().unwrap();
    std::fs::create_dir_all(&dir).unwrap();
    let db = Database::create(Path::new(&dir).join(FILE)).unwrap();
    // What our wrapper would do: redb leaves its file's name to the caller.
    std::fs::File::open(&dir).unwrap().sync_all().unwrap();
    let (queue, puts) = mpsc::channel::<Put>();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let queue = queue.clone();
            std::thread::spawn(move || {
                for i in 0..writes {
                    let size = [10, 300, 1500, 5000, 40_000][((i + task) % 5) as usize];
                    let name = format!("/k/{task}/{}", i % 37);
                    let text = format!("0.{i}.{}", "x".repeat(size));
                    let (acked, answer) = mpsc::channel();
                    let put = Put {
                        name: name.clone(),
                        text,
                        acked,
                    };
                    queue.send(put).unwrap();
                    println!("acked {name} {} 0.{i}.", answer.recv().unwrap());
                }
            })
        })
        .collect();
    drop(queue);
    let mut version = 0;
    while let Ok(first) = puts.recv() {
        let group: Vec<Put> = std::iter::once(first).chain(puts.try_iter()).collect();
        let transaction = db.begin_write().unwrap();
        let before = version;
        {
            let mut table = transaction.open_table(CURRENT).unwrap();
            for put in &group {
                let value = put.text.as_bytes();
                table
                    .insert(put.name.as_str(), (version + 1, value))
                    .unwrap();
                let pair = format!("{}/pair", put.name);
                table.insert(pair.as_str(), (version + 2, value)).unwrap();
                version += 2;
            }
        }
        transaction.commit().unwrap();
        for (i, put) in group.into_iter().enumerate() {
            put.acked.send(before + 1 + 2 * i as u64).unwrap();
        }
    }
    for task in tasks {
        task.join().unwrap();
    }
    println!("done");
    // No clean end: what follows looks at the files as they are.
    std::process::exit(0);
}

/// What is wrong with the database of an image.
fn verdict(image: &Image) -> Result<(), String> {
    let path = image.dir.path().join(FILE);
    if !path.exists() {
        let lost = !image.acked.is_empty();
        return if lost {
            Err("is not there".to_owned())
        } else {
            Ok(())
        };
    }
    let db = Database::create(path).map_err(|error| format!("does not open: {error}"))?;
    let transaction = db.begin_read().map_err(|error| error.to_string())?;
    let table = match transaction.open_table(CURRENT) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) if image.acked.is_empty() => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let get = |key: &str| {
        let found = table.get(key).map_err(|error| error.to_string())?;
        let found = found.ok_or_else(|| format!("{key} is gone"))?;
        let (version, value) = found.value();
        Ok::<_, String>((version, value.to_vec()))
    };
    for (key, (version, start)) in &image.acked {
        let (found, value) = get(key)?;
        if found < *version {
            return Err(format!("{key} went back"));
        }
        if found == *version && !value.starts_with(start.as_bytes()) {
            return Err(format!("{key} differs"));
        }
    }
    for item in table.iter().map_err(|error| error.to_string())? {
        let (key, _) = item.map_err(|error| error.to_string())?;
        if let Some(main) = key.value().strip_suffix("/pair") {
            let (main, pair) = (get(main)?, get(key.value())?);
            if main.0 + 1 != pair.0 || main.1 != pair.1 {
                return Err(format!("{} is torn", key.value()));
            }
        }
    }
    Ok(())
}

#[tokio::test]
#[ignore = "measures the other candidate, not the store"]
async fn redb_survives_a_power_cut() {
    let mut failures = Vec::new();
    let judge = async |image: &Image| {
        if let Err(what) = verdict(image) {
            failures.push(format!("{}: {what}", image.name));
        }
    };
    campaign("powercut_redb::redb_writer", judge).await;
    assert!(failures.is_empty(), "{failures:#?}");
}
