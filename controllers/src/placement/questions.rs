//! Questions that placement answers from its memory: why a Job waits now, and what would happen to
//! Jobs that are not there yet. Pure.
//!
//! Every answer names the resourceVersion up to which placement has seen everything.

use jiff::Timestamp;
use rota_api::names::API_VERSION;
use rota_api::{Job, Queue, WaitingFor};
use serde_json::{Value, json};

use super::decide::room;
use super::memory::Memory;
use super::trial::Trial;

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Why tasks of a Job wait.
    Why {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// What would happen if these were applied now.
    Plan {
        /// Jobs, checked and with their defaults, as the API would store them.
        jobs: Vec<Job>,
        /// Queues likewise.
        queues: Vec<Queue>,
    },
}

/// What is told.
pub enum Told {
    /// The answer.
    Answer(Value),
    /// What is asked about is not there.
    NotFound(String),
    /// The answer takes some work, which needs memory no more: [`Trial::run`] gives it.
    Trial(Box<Trial>),
}

impl Memory {
    /// Answers as of `version`.
    pub fn answer(&mut self, question: Question, version: u64, now: Timestamp) -> Told {
        match question {
            Question::Why { namespace, name } => match self.why(&namespace, &name) {
                Some((waiting, reasons)) => {
                    let mut answer = json!({
                        "kind": "Why", "apiVersion": API_VERSION,
                        "metadata": {
                            "namespace": namespace, "name": name,
                            "resourceVersion": version.to_string(),
                        },
                        "waiting": waiting,
                    });
                    if let Some(reasons) = reasons {
                        answer["waitingFor"] = json!(reasons);
                    }
                    Told::Answer(answer)
                }
                None => Told::NotFound(format!("placement knows no Job {namespace}/{name}")),
            },
            Question::Plan { jobs, queues } => {
                Told::Trial(Box::new(self.plan(&jobs, &queues, version, now)))
            }
        }
    }

    /// How many tasks of the Job could start if there were room, and why they do not. No reasons
    /// where none waits, or where the next cycle decides. None: no such Job.
    fn why(&mut self, namespace: &str, name: &str) -> Option<(u32, Option<WaitingFor>)> {
        let serial = self.serial_of(namespace, name)?;
        let job = self.jobs.get(&serial)?;
        let object = job.job.clone()?;
        let waiting = if job.wanted.runnable() { room(job) } else { 0 };
        Some((waiting, self.waiting(serial, &object).flatten()))
    }
}
