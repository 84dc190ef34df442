//! The book against a small world of stored chunks and Tasks, with crashes at every point.

use super::*;
use proptest::prelude::*;
use rota_api::JobType;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Take { refused: bool, crash: bool },
    End { which: usize, how: u8 },
    Write { stored: bool, told: bool },
    Remove,
    Crash,
    Resize(u32),
    Time(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (prop::bool::weighted(0.1), prop::bool::weighted(0.1))
            .prop_map(|(refused, crash)| Step::Take { refused, crash }),
        5 => (any::<usize>(), 0u8..5).prop_map(|(which, how)| Step::End { which, how }),
        5 => (prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(stored, told)| Step::Write { stored, told }),
        2 => Just(Step::Remove),
        1 => Just(Step::Crash),
        1 => (1u32..6).prop_map(Step::Resize),
        2 => (1i64..400).prop_map(Step::Time),
    ]
}

#[derive(Clone, Debug)]
struct Attempt {
    index: u32,
    attempt: u32,
    end: Option<End>,
}

struct World {
    rules: Rules,
    n: u32,
    now: i64,
    chunks: BTreeMap<u32, (u64, JobLedgerSpec)>,
    tasks: Vec<Attempt>,
    book: Book,
    /// Highest attempt ever created, and failures that were its own, per index.
    highest: BTreeMap<u32, u32>,
    charged: BTreeMap<u32, i32>,
    versions: u64,
}

impl World {
    fn new(type_: JobType) -> Self {
        let rules = Rules {
            type_,
            backoff_limit: 3,
            policy: Vec::new(),
        };
        let mut book = Book::default();
        book.resize(3);
        World {
            rules,
            n: 3,
            now: 0,
            chunks: BTreeMap::new(),
            tasks: Vec::new(),
            book,
            highest: BTreeMap::new(),
            charged: BTreeMap::new(),
            versions: 0,
        }
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Take { refused, crash } => {
                let now = self.time();
                self.book.wake(now);
                let Some((index, attempt)) = self.book.take() else {
                    return;
                };
                if *refused {
                    self.book.give_back(index);
                    return;
                }
                let before = self.highest.insert(index, attempt);
                assert!(
                    before.is_none_or(|b| attempt == b + 1),
                    "attempts go up by one"
                );
                self.tasks.push(Attempt {
                    index,
                    attempt,
                    end: None,
                });
                if *crash {
                    self.restart();
                }
            }
            Step::End { which, how } => {
                let live: Vec<usize> = (0..self.tasks.len())
                    .filter(|i| self.tasks[*i].end.is_none())
                    .collect();
                if live.is_empty() {
                    return;
                }
                let task = &mut self.tasks[live[which % live.len()]];
                let end = match how {
                    0 | 1 => End::Succeeded,
                    2 => End::Failed(Some(1)),
                    3 => End::Taken { at_once: true },
                    _ => End::Taken { at_once: false },
                };
                task.end = Some(end);
                if end == End::Failed(Some(1)) {
                    *self.charged.entry(task.index).or_default() += 1;
                }
                let task = task.clone();
                let now = self.time();
                let rules = self.rules.clone();
                let mut end_it = || {
                    self.book
                        .end(&rules, task.index, task.attempt, end, 0, "node", now)
                };
                assert!(end_it().is_some(), "the first word of an end is folded");
                assert!(end_it().is_none(), "the second is not");
            }
            Step::Write { stored, told } => {
                for number in self.book.chunk_numbers() {
                    let Some(write) = self.book.write(number) else {
                        continue;
                    };
                    assert!(self.book.write(number).is_none(), "one write at a time");
                    let there = self.chunks.get(&number).map(|c| c.0.to_string());
                    assert_eq!(there, write.version, "the precondition holds");
                    if *stored {
                        self.store(&write);
                    }
                    let seen = self.chunks.get(&number).map(|c| c.0.to_string());
                    match (stored, told) {
                        (true, true) => {
                            self.book.written(number, seen.unwrap());
                        }
                        // Unknown: a look shows the version, and the write is made again.
                        _ => self.book.unwritten(number, Some(seen)),
                    }
                }
            }
            Step::Remove => {
                let book = &self.book;
                self.tasks
                    .retain(|t| t.end.is_none() || book.folding.contains(&t.index));
            }
            Step::Crash => self.restart(),
            Step::Resize(n) => {
                // A Batch Job's completions only grow.
                self.n = match self.rules.type_ {
                    JobType::Batch => self.n.max(*n),
                    JobType::Service => *n,
                };
                self.book.resize(self.n);
            }
            Step::Time(seconds) => self.now += seconds,
        }
    }

    fn store(&mut self, write: &ChunkWrite) {
        self.versions += 1;
        let (version, spec) = self.chunks.entry(write.chunk).or_default();
        *version = self.versions;
        spec.chunk = write.chunk as i32;
        spec.succeeded = write.succeeded.clone();
        spec.failed = write.failed.clone();
        spec.attempts.extend(write.attempts.clone());
        for (node, text) in &write.last_nodes {
            spec.last_nodes.insert(node.clone(), text.clone().unwrap());
        }
    }

    /// A new leader: knows only what is stored.
    fn restart(&mut self) {
        let chunks = self.chunks.values().map(|(v, spec)| (v.to_string(), spec));
        self.book = Book::restore(chunks);
        let now = self.time();
        let found: Vec<Found> = self
            .tasks
            .iter()
            .map(|t| self.book.found(t.index, t.attempt))
            .collect();
        self.book.resize(self.n);
        let rules = self.rules.clone();
        for (task, found) in self.tasks.iter().zip(found) {
            match (found, task.end) {
                (Found::Occupies, Some(end)) => {
                    let folded =
                        self.book
                            .end(&rules, task.index, task.attempt, end, 0, "node", now);
                    assert!(folded.is_some());
                }
                (Found::Superseded, None) => panic!("a live Task was superseded: {task:?}"),
                _ => {}
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.book.check(), Vec::<String>::new());
        let mut live = IndexSet::new();
        for task in self.tasks.iter().filter(|t| t.end.is_none()) {
            assert!(live.insert(task.index), "two live Tasks of an index");
        }
        assert_eq!(live, self.book.live, "the book knows what lives");
        for (index, charged) in &self.charged {
            let noted = self.book.attempts.get(index).map_or(0, |a| a.failures);
            assert_eq!(noted, *charged, "each failure is charged once");
            let over = self.rules.type_ == JobType::Batch && *charged > 3;
            assert_eq!(self.book.failed.contains(*index), over);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn every_index_is_in_one_place(service in any::<bool>(), steps in prop::collection::vec(step(), 1..120)) {
        let type_ = if service { JobType::Service } else { JobType::Batch };
        let mut world = World::new(type_);
        for step in &steps {
            world.apply(step);
            world.check();
        }
        world.restart();
        world.check();
    }
}
