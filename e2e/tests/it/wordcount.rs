//! The two-stage example over text made from a random seed: the answer is `sort | uniq -c`'s, both
//! nodes work, each task is one process, and the merge starts after the last shard has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{Cluster, Store, example, run_ok};

/// Generous for a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn both_stages_on_the_embedded_store() {
    let cluster = Cluster::two_nodes(Store::Embedded).unwrap();
    two_stages(&cluster, false, &["kubectl"]);
}

#[test]
fn both_stages_on_etcd_with_a_shard_that_fails_once() {
    let Some(cluster) = Cluster::two_nodes(Store::Etcd) else {
        return;
    };
    two_stages(&cluster, true, &["rota"]);
}

#[test]
fn a_shard_that_fails_once_on_the_embedded_store() {
    let cluster = Cluster::two_nodes(Store::Embedded).unwrap();
    two_stages(&cluster, true, &["rota"]);
}

fn two_stages(cluster: &Cluster, fail_once: bool, client: &[&str]) {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let dir = cluster.scratch().join("wordcount");
    write_input(&dir.join("input"), seed);
    let failing = StdRng::seed_from_u64(seed).random_range(0..20);

    let mut manifest =
        example("wordcount.yaml").replace("/tmp/rota-wordcount", &dir.to_string_lossy());
    if fail_once {
        let script = "export LC_ALL=C\n        mkdir -p \"$DIR/counts\"";
        assert!(manifest.contains(script));
        manifest = manifest.replace(
            script,
            &format!(
                "export LC_ALL=C\n        if [ $ROTA_INDEX = {failing} ] && [ $ROTA_ATTEMPT = 0 ]; then echo broken; exit 9; fi\n        mkdir -p \"$DIR/counts\""
            ),
        );
    }
    let output = match client[0] {
        "kubectl" => cluster.kubectl_stdin(&["apply", "-f", "-"], &manifest),
        _ => cluster.rota_stdin(&["apply", "-f", "-"], &manifest),
    };
    assert!(output.status.success(), "{}", output.text());
    let merge = cluster.wait_job("wordcount-merge", "Complete", LIMIT);
    let shards = cluster.wait_job("wordcount", "Complete", LIMIT);
    assert_eq!(shards["status"]["succeeded"], 20);
    assert_eq!(shards["status"]["succeededIndexes"], "0-19");
    assert_eq!(shards["status"]["restarts"], i32::from(fail_once));

    let expected = run_ok(
        Command::new("sh")
            .args([
                "-c",
                "cat input/*.txt | tr -cs A-Za-z '\\n' | tr A-Z a-z | grep . | sort | uniq -c",
            ])
            .env("LC_ALL", "C")
            .current_dir(&dir),
    );
    let result = std::fs::read_to_string(dir.join("result.txt")).unwrap();
    assert!(result.lines().count() > 100);
    assert!(result == expected, "seed {seed}: the counts differ");

    // What the tasks themselves wrote down.
    let journal = std::fs::read_to_string(dir.join("journal.txt")).unwrap();
    let lines: Vec<Vec<&str>> = journal.lines().map(|l| l.split(' ').collect()).collect();
    assert_eq!(lines.len(), 21, "{journal}");
    assert_eq!(
        lines[20][0], "merge",
        "the merge came before a shard:\n{journal}"
    );
    let nodes: BTreeSet<&str> = lines.iter().map(|l| l[5]).collect();
    assert!(nodes.len() >= 2, "only {nodes:?} worked");
    let pids: BTreeSet<&str> = lines.iter().map(|l| l[7]).collect();
    assert_eq!(pids.len(), 21, "tasks shared a process:\n{journal}");

    // What the cluster recorded agrees with it.
    let tasks = cluster.tasks("wordcount");
    let by_index: BTreeMap<u64, &serde_json::Value> = tasks
        .iter()
        .filter(|t| t["status"]["phase"] == "Succeeded")
        .map(|t| (t["spec"]["index"].as_u64().unwrap(), t))
        .collect();
    assert_eq!(by_index.len(), 20);
    let mut last_end = String::new();
    for line in lines.iter().filter(|l| l[0] == "shard") {
        let task = by_index[&line[1].parse().unwrap()];
        assert_eq!(task["status"]["pid"].to_string(), line[7]);
        assert_eq!(task["spec"]["nodeName"], line[5]);
        assert_eq!(task["spec"]["attempt"].to_string(), line[3]);
        last_end = last_end.max(task["status"]["finishedTime"].as_str().unwrap().to_string());
    }
    let merging = &cluster.tasks("wordcount-merge")[0];
    let began = merging["status"]["startedTime"].as_str().unwrap();
    assert!(
        began >= last_end.as_str(),
        "merge at {began}, last shard until {last_end}"
    );
    assert_eq!(merge["status"]["succeeded"], 1);
    if fail_once {
        let failed = tasks
            .iter()
            .find(|t| t["status"]["phase"] == "Failed")
            .expect("the failed attempt is kept for an hour");
        assert_eq!(failed["spec"]["index"], failing);
        assert_eq!(failed["spec"]["attempt"], 0);
        assert_eq!(failed["status"]["exitCode"], 9);
        assert_eq!(by_index[&failing]["spec"]["attempt"], 1);
        let index = failing.to_string();
        let log = cluster.rota(&["logs", "job/wordcount", "--index", &index]);
        assert!(
            log.stdout.contains(&format!("shard {failing} ")),
            "{}",
            log.text()
        );
    }
    let log = cluster.rota(&["logs", "job/wordcount-merge"]);
    assert!(log.stdout.contains("commonest"), "{}", log.text());
}

/// Text of random words, of which some are common and most are rare, as in a language.
fn write_input(dir: &Path, seed: u64) {
    std::fs::create_dir_all(dir).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let words: Vec<String> = (0..2000)
        .map(|_| {
            let len = random.random_range(1..10);
            (0..len)
                .map(|_| char::from(random.random_range(b'a'..=b'z')))
                .collect()
        })
        .collect();
    for file in 0..5 {
        let mut text = String::new();
        for _ in 0..random.random_range(100..400) {
            for _ in 0..random.random_range(0..15) {
                let r: f64 = random.random();
                let word = &words[(r * r * r * words.len() as f64) as usize];
                match random.random_range(0..8) {
                    0 => text.push_str(&word.to_uppercase()),
                    1 => text.push_str(&format!("{word}-{}", random.random_range(0..99))),
                    _ => text.push_str(word),
                }
                text.push_str([" ", ", ", ". ", "  ", "'"][random.random_range(0..5)]);
            }
            text.push('\n');
        }
        std::fs::write(dir.join(format!("part-{file}.txt")), text).unwrap();
    }
}
