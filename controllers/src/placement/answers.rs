//! What the answers to placement's writes mean for its memory. Pure.

use jiff::Timestamp;

use super::decide::{Answer, Op, REFUSED_PAUSE, Write};
use super::memory::{Memory, Stand};
use crate::runtime::{Failure, Key};

impl Memory {
    /// Takes the answer to a write. A failure that matters to people is answered back, in words.
    pub fn answered(&mut self, write: Write, answer: Answer, now: Timestamp) {
        match write.op.clone() {
            Op::Create(key) => self.created(key, write, answer, now),
            Op::Fold(serial, number) => self.folded_answer(serial, number, answer, now),
            Op::Stop(key) => {
                if let Some(task) = self.tasks.get_mut(&key)
                    && matches!(answer, Answer::Failed(_))
                {
                    task.stop_sent = false;
                    self.dirty.insert(task.job);
                }
            }
            Op::Remove(key) => {
                let gone = matches!(
                    answer,
                    Answer::Done(_) | Answer::Failed(Failure::NotFound(_))
                );
                if let Some(task) = self.tasks.get_mut(&key) {
                    if gone {
                        let serial = task.job;
                        self.tasks.remove(&key);
                        if let Some(job) = self.jobs.get_mut(&serial) {
                            job.tasks.remove(&key);
                        }
                    } else {
                        task.remove_sent = false;
                        self.removals.insert(key);
                    }
                }
            }
            Op::DropLedger(serial, number) => {
                if let Some(job) = self.jobs.get_mut(&serial) {
                    job.releasing = false;
                    if matches!(
                        answer,
                        Answer::Done(_) | Answer::Failed(Failure::NotFound(_))
                    ) {
                        job.book.chunk_gone(number);
                    }
                }
            }
            Op::Release(serial) => {
                if let Some(job) = self.jobs.get_mut(&serial) {
                    job.releasing = false;
                    match answer {
                        // Nothing more is ours; the watch tells when the object goes.
                        Answer::Done(_) | Answer::Failed(Failure::NotFound(_)) => {
                            self.forget(serial);
                        }
                        _ => {}
                    }
                }
            }
            Op::JobStatus(serial) => self.job_status_answered(serial, answer, now),
            Op::QueueStatus(name) => self.queue_status_answered(&name, &answer),
        }
    }

    fn created(&mut self, key: Key, write: Write, answer: Answer, now: Timestamp) {
        match answer {
            Answer::Done(object) => {
                self.creating = self.creating.saturating_sub(1);
                let Some(task) = self.tasks.get_mut(&key) else {
                    return;
                };
                if task.stand == Stand::Creating {
                    task.stand = Stand::Live;
                }
                if task.uid.is_none() {
                    let uid = object["metadata"]["uid"].as_str();
                    let uid = uid.or(object["details"]["uid"].as_str());
                    task.uid = uid.map(String::from);
                }
                let job = self.jobs.get(&task.job);
                if job.is_some_and(|j| !j.wanted.runnable()) {
                    self.dirty.insert(task.job);
                }
            }
            Answer::Failed(Failure::Transient { .. } | Failure::LeaseLost(_)) => {
                // Nobody knows which of a gang are there: each is made certain by itself.
                self.resend.push(Write {
                    together: 0,
                    ..write
                });
            }
            Answer::Failed(failure) => {
                tracing::warn!(task = %key, %failure, "a Task was refused");
                self.refused(&key, now);
            }
            Answer::Seen(_) => {
                tracing::warn!(task = %key, "the name of a Task is taken by another Job's");
                self.refused(&key, now);
            }
        }
    }

    fn refused(&mut self, key: &Key, now: Timestamp) {
        self.creating = self.creating.saturating_sub(1);
        if let Some(task) = self.tasks.get(key)
            && task.stand == Stand::Creating
        {
            if let Some(job) = self.jobs.get_mut(&task.job) {
                let until = now.saturating_add(REFUSED_PAUSE).unwrap_or(now);
                job.paused_until = Some(until);
            }
            self.uncreate(key);
        }
    }

    fn folded_answer(&mut self, serial: u64, number: u32, answer: Answer, now: Timestamp) {
        let Some(job) = self.jobs.get_mut(&serial) else {
            return;
        };
        match answer {
            Answer::Done(object) => {
                let version = object["metadata"]["resourceVersion"].as_str().unwrap_or("");
                let indexes = job.book.written(number, version.to_owned());
                let keys: Vec<Key> = indexes
                    .iter()
                    .filter_map(|index| job.folding.remove(index))
                    .collect();
                // More may have been folded meanwhile.
                self.chunks.insert((serial, number));
                self.dirty.insert(serial);
                for key in keys {
                    self.folded(&key, now);
                }
            }
            Answer::Seen(object) => {
                let version = object.map(|o| {
                    let version = o["metadata"]["resourceVersion"].as_str();
                    version.unwrap_or("").to_owned()
                });
                job.book.unwritten(number, Some(version));
                self.chunks.insert((serial, number));
            }
            Answer::Failed(failure) => {
                if !failure.is_transient() {
                    tracing::error!(job = %job.owner.name, %failure, "the ledger cannot be written");
                }
                job.book.unwritten(number, None);
                self.chunks.insert((serial, number));
            }
        }
    }
}
