//! Desired against running, per task: pure, every branch of the agent's behaviour lives here.

use rota_api::kinds::{KillSignal, RestartPolicy, TaskBinding};
use rota_supervisor::protocol::{Exit, ExitCause};

/// Longest pause between restarts in place.
const BACKOFF_MAX_MS: u64 = 300_000;
/// A run that lasted this long starts the back-off over.
const BACKOFF_RESET_MS: u64 = 600_000;
/// Grace where the template names none.
pub const GRACE_DEFAULT_MS: u64 = 30_000;

/// What the API says about a task of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Binding.
    pub spec: TaskBinding,
    /// Somebody asked for its end.
    pub deleting: bool,
    /// Its status is terminal already.
    pub terminal: bool,
}

/// What the template says about stopping and restarting; known once the revision is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// In place.
    pub restart: RestartPolicy,
    /// Asks for the end.
    pub signal: i32,
    /// Until SIGKILL.
    pub grace_ms: u64,
}

/// Number of a kill signal.
pub fn signal_number(signal: Option<KillSignal>) -> i32 {
    match signal {
        None | Some(KillSignal::SIGTERM) => 15,
        Some(KillSignal::SIGINT) => 2,
        Some(KillSignal::SIGQUIT) => 3,
        Some(KillSignal::SIGHUP) => 1,
        Some(KillSignal::SIGUSR1) => 10,
        Some(KillSignal::SIGUSR2) => 12,
        Some(KillSignal::SIGKILL) => 9,
    }
}

/// Where the newest run of a task stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Run {
    /// Nothing was done yet.
    None,
    /// Its template and values are being read.
    Preparing,
    /// The supervisor has it: starting or running.
    Live,
    /// It was asked to end.
    Stopping {
        /// By SIGKILL already.
        forced: bool,
    },
    /// It ended.
    Ended(Exit),
    /// A terminal status was decided on; nothing more happens.
    Done,
}

/// What the agent knows beside the API's view.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// State of the newest run.
    pub run: Run,
    /// Number of that run, 0 for the first.
    pub restarts: u32,
    /// Known once the revision is loaded.
    pub policy: Option<Policy>,
}

/// What holds for the whole node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The node's epoch.
    pub epoch: i64,
    /// The agent ends and takes its tasks along.
    pub stopping: bool,
    /// Wall clock, milliseconds.
    pub now_ms: u64,
}

/// How a task ends for the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// From its exit.
    Exit,
    /// It never ran, or its node was given up: phase Lost.
    Lost {
        /// CamelCase.
        reason: &'static str,
        /// Sentence.
        message: &'static str,
    },
    /// Phase Failed without a run.
    Refused {
        /// CamelCase.
        reason: &'static str,
        /// Sentence.
        message: &'static str,
    },
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the template; plan again when it is there.
    LoadPolicy,
    /// Start run number `restarts`, if the node has room.
    Start {
        /// Number of the run.
        restarts: u32,
    },
    /// Plan again at this wall time; meanwhile the task counts as starting.
    RestartAt {
        /// Milliseconds.
        at_ms: u64,
    },
    /// Ask the supervisor to end it.
    Stop {
        /// Signal number.
        signal: i32,
        /// Milliseconds; 0 is SIGKILL at once.
        grace_ms: u64,
    },
    /// Report this end.
    Report(End),
    /// The task is over and nobody asks any more.
    Forget,
    /// The Node's epoch must be read again.
    RefreshNode,
}

/// Pause before run `restarts`, after a run that lasted `lasted_ms`.
pub fn backoff_ms(restarts: u32, lasted_ms: u64) -> u64 {
    if lasted_ms >= BACKOFF_RESET_MS {
        return 1_000;
    }
    let doublings = restarts.saturating_sub(1).min(20);
    (1_000u64 << doublings).min(BACKOFF_MAX_MS)
}

/// Decides what to do about one task.
pub fn plan(desired: Option<&Desired>, observed: &Observed, ctx: &Context) -> Option<Action> {
    let gentle = || {
        let policy = observed.policy;
        Action::Stop {
            signal: policy.map_or(15, |p| p.signal),
            grace_ms: policy.map_or(GRACE_DEFAULT_MS, |p| p.grace_ms),
        }
    };
    let force = Action::Stop {
        signal: 9,
        grace_ms: 0,
    };
    let run = &observed.run;
    let Some(desired) = desired else {
        // The object vanished: nobody wants the task or its status.
        return match run {
            Run::Live => Some(gentle()),
            Run::Stopping { .. } => None,
            Run::None | Run::Preparing | Run::Ended(_) | Run::Done => Some(Action::Forget),
        };
    };
    if desired.terminal {
        // Somebody else ended it for the API; what still runs must not.
        return match run {
            Run::Live | Run::Stopping { forced: false } => Some(force),
            // What it holds of the node is free again.
            Run::Ended(_) | Run::Preparing => Some(Action::Forget),
            _ => None,
        };
    }
    if desired.spec.epoch < ctx.epoch {
        let fenced = End::Lost {
            reason: "Fenced",
            message: "the node was declared lost after the task was bound to it",
        };
        return match run {
            Run::Live | Run::Stopping { forced: false } => Some(force),
            Run::Ended(e) if e.cause == ExitCause::Ended => Some(Action::Report(End::Exit)),
            Run::Ended(_) | Run::None | Run::Preparing => Some(Action::Report(fenced)),
            Run::Stopping { forced: true } | Run::Done => None,
        };
    }
    if desired.deleting || ctx.stopping {
        let refused = if desired.deleting {
            End::Refused {
                reason: "Stopped",
                message: "deleted before it started",
            }
        } else {
            End::Lost {
                reason: "NodeShutdown",
                message: "the node's agent was stopped before the task started",
            }
        };
        return match run {
            Run::Live => Some(gentle()),
            Run::Ended(_) => Some(Action::Report(End::Exit)),
            Run::None | Run::Preparing => Some(Action::Report(refused)),
            Run::Stopping { .. } | Run::Done => None,
        };
    }
    match run {
        Run::None if desired.spec.epoch > ctx.epoch => Some(Action::RefreshNode),
        Run::None => Some(Action::Start {
            restarts: observed.restarts,
        }),
        // A run of an earlier agent: how to stop it should be known before it has to be.
        Run::Live if observed.policy.is_none() => Some(Action::LoadPolicy),
        Run::Preparing | Run::Live | Run::Stopping { .. } | Run::Done => None,
        Run::Ended(exit) => {
            let Some(policy) = observed.policy else {
                return Some(Action::LoadPolicy);
            };
            let failed = exit.code != Some(0);
            let again = match policy.restart {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => failed,
                RestartPolicy::Never => false,
            };
            let ours = matches!(
                exit.cause,
                ExitCause::Ended | ExitCause::OutOfMemory | ExitCause::NotStarted
            );
            if !again || !ours {
                return Some(Action::Report(End::Exit));
            }
            let restarts = observed.restarts + 1;
            let lasted = exit.finished_ms.saturating_sub(exit.started_ms);
            let lasted = if exit.started_ms == 0 { 0 } else { lasted };
            let at_ms = exit.finished_ms + backoff_ms(restarts, lasted);
            if ctx.now_ms < at_ms {
                Some(Action::RestartAt { at_ms })
            } else {
                Some(Action::Start { restarts })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn desired() -> Desired {
        Desired {
            namespace: "ns".into(),
            name: "t".into(),
            spec: TaskBinding {
                job_name: "j".into(),
                job_uid: "u".into(),
                index: 0,
                attempt: 0,
                epoch: 2,
                node_name: "n".into(),
                queue: "default".into(),
                priority: 0,
                requests: Default::default(),
                ports: None,
                revision: "r".into(),
            },
            deleting: false,
            terminal: false,
        }
    }
    fn exit(code: Option<i32>, cause: ExitCause) -> Run {
        Run::Ended(Exit {
            id: "u.0".into(),
            tag: String::new(),
            pid: 1,
            code,
            signal: None,
            cause,
            reason: None,
            message: None,
            started_ms: 1_000,
            finished_ms: 2_000,
        })
    }
    fn see(run: Run, restart: RestartPolicy) -> Observed {
        Observed {
            run,
            restarts: 0,
            policy: Some(Policy {
                restart,
                signal: 2,
                grace_ms: 5_000,
            }),
        }
    }
    const CTX: Context = Context {
        epoch: 2,
        stopping: false,
        now_ms: 2_500,
    };
    const GENTLE: Action = Action::Stop {
        signal: 2,
        grace_ms: 5_000,
    };
    const FORCE: Action = Action::Stop {
        signal: 9,
        grace_ms: 0,
    };
    use RestartPolicy::*;

    #[test]
    fn starts_what_is_bound_and_leaves_alone_what_runs() {
        let d = desired();
        assert_eq!(
            plan(Some(&d), &see(Run::None, Never), &CTX),
            Some(Action::Start { restarts: 0 })
        );
        for run in [
            Run::Preparing,
            Run::Live,
            Run::Stopping { forced: false },
            Run::Done,
        ] {
            assert_eq!(plan(Some(&d), &see(run, Never), &CTX), None);
        }
    }

    #[test]
    fn a_vanished_task_is_stopped_gently_and_forgotten() {
        assert_eq!(plan(None, &see(Run::Live, Never), &CTX), Some(GENTLE));
        assert_eq!(
            plan(None, &see(Run::Stopping { forced: false }, Never), &CTX),
            None
        );
        for run in [
            Run::None,
            Run::Preparing,
            Run::Done,
            exit(Some(0), ExitCause::Stopped),
        ] {
            assert_eq!(plan(None, &see(run, Never), &CTX), Some(Action::Forget));
        }
    }

    #[test]
    fn a_deleted_task_is_stopped_and_reported() {
        let d = Desired {
            deleting: true,
            ..desired()
        };
        assert_eq!(plan(Some(&d), &see(Run::Live, Always), &CTX), Some(GENTLE));
        assert_eq!(
            plan(
                Some(&d),
                &see(exit(Some(0), ExitCause::Stopped), Always),
                &CTX
            ),
            Some(Action::Report(End::Exit))
        );
        assert!(matches!(
            plan(Some(&d), &see(Run::None, Always), &CTX),
            Some(Action::Report(End::Refused {
                reason: "Stopped",
                ..
            }))
        ));
    }

    #[test]
    fn a_terminal_status_by_others_ends_what_runs_at_once() {
        let d = Desired {
            terminal: true,
            ..desired()
        };
        assert_eq!(plan(Some(&d), &see(Run::Live, Never), &CTX), Some(FORCE));
        assert_eq!(
            plan(Some(&d), &see(Run::None, Never), &CTX),
            None,
            "never started again"
        );
        assert_eq!(
            plan(Some(&d), &see(Run::Preparing, Never), &CTX),
            Some(Action::Forget)
        );
        assert_eq!(
            plan(
                Some(&d),
                &see(exit(Some(0), ExitCause::Stopped), Never),
                &CTX
            ),
            Some(Action::Forget)
        );
    }

    #[test]
    fn an_older_epoch_is_stopped_by_force_and_lost() {
        let d = desired();
        let later = Context { epoch: 3, ..CTX };
        assert_eq!(plan(Some(&d), &see(Run::Live, Always), &later), Some(FORCE));
        assert_eq!(
            plan(
                Some(&d),
                &see(Run::Stopping { forced: false }, Always),
                &later
            ),
            Some(FORCE)
        );
        for run in [
            Run::None,
            Run::Preparing,
            exit(None, ExitCause::Stopped),
            exit(None, ExitCause::Fenced),
        ] {
            assert!(matches!(
                plan(Some(&d), &see(run, Always), &later),
                Some(Action::Report(End::Lost {
                    reason: "Fenced",
                    ..
                }))
            ));
        }
        assert_eq!(
            plan(
                Some(&d),
                &see(exit(Some(0), ExitCause::Ended), Never),
                &later
            ),
            Some(Action::Report(End::Exit)),
            "a result is a result"
        );
    }

    #[test]
    fn a_newer_epoch_waits_for_the_node() {
        let earlier = Context { epoch: 1, ..CTX };
        assert_eq!(
            plan(Some(&desired()), &see(Run::None, Never), &earlier),
            Some(Action::RefreshNode)
        );
    }

    #[test]
    fn restarts_in_place_by_policy_with_back_off() {
        let d = desired();
        for (policy, code, again) in [
            (Never, Some(1), false),
            (Never, Some(0), false),
            (OnFailure, Some(1), true),
            (OnFailure, None, true),
            (OnFailure, Some(0), false),
            (Always, Some(0), true),
            (Always, Some(1), true),
        ] {
            let want = if again {
                Action::RestartAt { at_ms: 3_000 }
            } else {
                Action::Report(End::Exit)
            };
            assert_eq!(
                plan(Some(&d), &see(exit(code, ExitCause::Ended), policy), &CTX),
                Some(want),
                "{policy:?} {code:?}"
            );
        }
        let due = Context {
            now_ms: 3_000,
            ..CTX
        };
        assert_eq!(
            plan(
                Some(&d),
                &see(exit(Some(1), ExitCause::Ended), Always),
                &due
            ),
            Some(Action::Start { restarts: 1 })
        );
        for cause in [ExitCause::Lost, ExitCause::Fenced, ExitCause::Stopped] {
            assert_eq!(
                plan(Some(&d), &see(exit(None, cause), Always), &due),
                Some(Action::Report(End::Exit)),
                "{cause:?}"
            );
        }
    }

    #[test]
    fn without_the_policy_it_is_loaded_first() {
        for run in [exit(Some(1), ExitCause::Ended), Run::Live] {
            let mut o = see(run, Never);
            o.policy = None;
            assert_eq!(plan(Some(&desired()), &o, &CTX), Some(Action::LoadPolicy));
        }
    }

    #[test]
    fn an_agent_that_ends_takes_its_tasks_along() {
        let ctx = Context {
            stopping: true,
            ..CTX
        };
        assert_eq!(
            plan(Some(&desired()), &see(Run::Live, Always), &ctx),
            Some(GENTLE)
        );
        assert!(matches!(
            plan(Some(&desired()), &see(Run::None, Always), &ctx),
            Some(Action::Report(End::Lost { .. }))
        ));
    }

    #[test]
    fn back_off_doubles_up_to_five_minutes() {
        let all: Vec<u64> = (1..=12).map(|n| backoff_ms(n, 0) / 1000).collect();
        assert_eq!(all, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff_ms(9, BACKOFF_RESET_MS), 1_000);
    }
}
