//! Fold: what one ended attempt means for its index. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rota_api::{FailureAction, Job, JobType, LedgerAttempt, Task, TaskPhase};

/// First wait after a failure; doubled by each further one.
const BACKOFF_FIRST: SignedDuration = SignedDuration::from_secs(1);
/// Longest wait between attempts of an index.
const BACKOFF_MAX: SignedDuration = SignedDuration::from_secs(300);
/// Failures of a Task that are not its own: reported by agents, and not charged.
const NOT_ITS_FAULT: &[&str] = &["Evicted", "OutOfResource", "NodeLost", "Fenced", "Stopped"];

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Exit code 0.
    Succeeded,
    /// The task's own failure, with its exit code (128 + signal).
    Failed(Option<i32>),
    /// Stopped on request or by another's fault: deleted, evicted, refused, lost.
    Taken {
        /// The next attempt may start at once; otherwise after [`BACKOFF_FIRST`], so that a node
        /// which refuses everything does not make a busy loop.
        at_once: bool,
    },
}

/// How an ended Task ended; None while it lives.
pub fn end_of(task: &Task) -> Option<End> {
    let status = task.status.as_ref()?;
    let deleted = task.metadata.deletion_timestamp.is_some();
    let reason = status.reason.as_deref().unwrap_or("");
    Some(match status.phase? {
        TaskPhase::Starting | TaskPhase::Running => return None,
        TaskPhase::Succeeded => End::Succeeded,
        TaskPhase::Lost => End::Taken { at_once: true },
        TaskPhase::Failed if deleted => End::Taken { at_once: true },
        TaskPhase::Failed if NOT_ITS_FAULT.contains(&reason) => End::Taken {
            at_once: reason != "OutOfResource",
        },
        TaskPhase::Failed => End::Failed(
            status
                .exit_code
                .or(status.signal.map(|signal| 128 + signal)),
        ),
    })
}

/// The rules of a Job that decide about failures.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Batch or Service.
    pub type_: JobType,
    /// Failures per index.
    pub backoff_limit: u32,
    /// By exit code, in order.
    pub policy: Vec<(Vec<i32>, FailureAction)>,
}

impl Rules {
    /// Of a Job.
    pub fn of(job: &Job) -> Self {
        let policy = job.spec.failure_policy.iter().flatten();
        Rules {
            type_: job.spec.type_,
            backoff_limit: job.spec.backoff_limit.max(0) as u32,
            policy: policy
                .map(|rule| (rule.on_exit_codes.clone(), rule.action))
                .collect(),
        }
    }

    fn action(&self, code: Option<i32>) -> FailureAction {
        self.policy
            .iter()
            .find(|(codes, _)| code.is_some_and(|code| codes.contains(&code)))
            .map_or(FailureAction::Count, |(_, action)| *action)
    }
}

/// What becomes of the index.
#[derive(Clone, Debug, PartialEq)]
pub enum Folded {
    /// Done. The entry is kept only if there is something to remember.
    Succeeded(Option<LedgerAttempt>),
    /// Given up.
    Failed(LedgerAttempt),
    /// Another attempt, not before its time.
    Again(LedgerAttempt),
}

/// Folds attempt number `attempt`, with `restarts` in place, into what the ledger knew of its index.
pub fn fold(
    rules: &Rules,
    known: Option<&LedgerAttempt>,
    attempt: u32,
    end: End,
    restarts: u32,
    now: Timestamp,
) -> Folded {
    let failures_before = known.map_or(0, |k| k.failures.max(0) as u32);
    let entry = |failures: u32, wait: SignedDuration, code: Option<i32>| LedgerAttempt {
        next: as_i32(attempt.saturating_add(1)),
        failures: as_i32(failures),
        not_before_time: (wait > SignedDuration::ZERO)
            .then(|| Time(now.saturating_add(wait).unwrap_or(now))),
        last_exit_code: code.or(known.and_then(|k| k.last_exit_code)),
        saved_seconds: known.and_then(|k| k.saved_seconds),
    };
    let batch = rules.type_ == JobType::Batch;
    match end {
        End::Succeeded if batch => {
            let failures = failures_before.saturating_add(restarts);
            let worth = attempt > 0 || failures > 0;
            Folded::Succeeded(worth.then(|| entry(failures, SignedDuration::ZERO, None)))
        }
        // A Service's process shall run: one that ends well is started again.
        End::Succeeded => Folded::Again(entry(failures_before, BACKOFF_FIRST, Some(0))),
        End::Taken { at_once } => {
            let wait = if at_once {
                SignedDuration::ZERO
            } else {
                BACKOFF_FIRST
            };
            let failures = failures_before.saturating_add(restarts);
            over(rules, failures, entry(failures, wait, None))
        }
        End::Failed(code) => {
            let restarted = failures_before.saturating_add(restarts);
            match rules.action(code) {
                FailureAction::FailJob if batch => Folded::Failed(entry(
                    restarted.saturating_add(1),
                    SignedDuration::ZERO,
                    code,
                )),
                FailureAction::Ignore => {
                    let ignored = entry(failures_before, BACKOFF_FIRST, code);
                    Folded::Again(ignored)
                }
                FailureAction::Count | FailureAction::FailJob => {
                    let failures = restarted.saturating_add(1);
                    over(rules, failures, entry(failures, backoff(failures), code))
                }
            }
        }
    }
}

fn over(rules: &Rules, failures: u32, entry: LedgerAttempt) -> Folded {
    if rules.type_ == JobType::Batch && failures > rules.backoff_limit {
        Folded::Failed(LedgerAttempt {
            not_before_time: None,
            ..entry
        })
    } else {
        Folded::Again(entry)
    }
}

fn backoff(failures: u32) -> SignedDuration {
    let doubled = 1i64 << failures.saturating_sub(1).min(20);
    SignedDuration::from_secs(BACKOFF_FIRST.as_secs() * doubled).min(BACKOFF_MAX)
}

fn as_i32(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(limit: u32) -> Rules {
        Rules {
            type_: JobType::Batch,
            backoff_limit: limit,
            policy: vec![
                (vec![3], FailureAction::Ignore),
                (vec![4], FailureAction::FailJob),
            ],
        }
    }

    fn check(
        rules: &Rules,
        failures: i32,
        end: End,
        restarts: u32,
        expect: (&str, i32, Option<i64>),
    ) {
        let known = LedgerAttempt {
            next: 5,
            failures,
            ..LedgerAttempt::default()
        };
        let (word, entry) = match fold(rules, Some(&known), 5, end, restarts, Timestamp::UNIX_EPOCH)
        {
            Folded::Succeeded(entry) => ("succeeded", entry.unwrap_or_default()),
            Folded::Failed(entry) => ("failed", entry),
            Folded::Again(entry) => ("again", entry),
        };
        let wait = entry.not_before_time.as_ref().map(|t| t.0.as_second());
        assert_eq!((word, entry.failures, wait), expect);
        assert_eq!(entry.next, 6);
    }

    #[test]
    fn failures_wait_longer_each_time_until_the_limit() {
        let r = rules(20);
        check(&r, 0, End::Failed(Some(1)), 0, ("again", 1, Some(1)));
        check(&r, 3, End::Failed(Some(1)), 0, ("again", 4, Some(8)));
        check(&r, 15, End::Failed(Some(1)), 0, ("again", 16, Some(300)));
        check(&r, 20, End::Failed(Some(1)), 0, ("failed", 21, None));
        check(&rules(0), 0, End::Failed(None), 0, ("failed", 1, None));
    }

    #[test]
    fn restarts_in_place_are_charged() {
        check(&rules(6), 0, End::Failed(Some(1)), 6, ("failed", 7, None));
        check(&rules(6), 0, End::Succeeded, 2, ("succeeded", 2, None));
    }

    #[test]
    fn what_others_caused_is_not_charged() {
        check(
            &rules(0),
            0,
            End::Taken { at_once: true },
            0,
            ("again", 0, None),
        );
        check(
            &rules(0),
            0,
            End::Taken { at_once: false },
            0,
            ("again", 0, Some(1)),
        );
    }

    #[test]
    fn rules_by_exit_code() {
        check(&rules(0), 0, End::Failed(Some(3)), 0, ("again", 0, Some(1)));
        check(&rules(9), 0, End::Failed(Some(4)), 0, ("failed", 1, None));
    }

    #[test]
    fn a_service_never_gives_up() {
        let r = Rules {
            type_: JobType::Service,
            ..rules(0)
        };
        check(&r, 9, End::Failed(Some(1)), 0, ("again", 10, Some(300)));
        check(&r, 0, End::Succeeded, 0, ("again", 0, Some(1)));
    }

    #[test]
    fn first_attempts_that_succeed_leave_no_entry() {
        assert_eq!(
            fold(&rules(6), None, 0, End::Succeeded, 0, Timestamp::UNIX_EPOCH),
            Folded::Succeeded(None)
        );
    }
}
