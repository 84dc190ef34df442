//! The line on which placement is asked: a connection that the leader dials to the API server,
//! HTTP/2 with the leader as the server. Questions wait in a short queue until a cycle is over.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use rota_api::names::{PATH_PLACEMENT_TUNNEL, TUNNEL_UPGRADE};
use rota_api::{Job, JobRevision, Queue, Task};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::DropGuard;

use super::memory::Memory;
use super::questions::{Question, Told};
use crate::runtime::{Context, Failure, Informers, backoff};

/// Questions that wait for the end of a cycle; the next one is told to come back later.
const WAITING_MAX: usize = 64;
/// Trials at a time: each occupies a thread and a copy of the cluster.
const TRIALS_MAX: usize = 2;
/// Bytes of a question: as the API server takes them, with defaults filled in.
const QUESTION_MAX: usize = 16 << 20;
/// Longest wait until placement has seen what the asker has seen.
const SEEN_WAIT: Duration = Duration::from_secs(5);
/// Pings find a server that vanished, and keep idle connections from being closed.
const PING: Duration = Duration::from_secs(5);

/// A question, and where the answer goes.
pub struct Asked {
    question: Question,
    reply: oneshot::Sender<Told>,
}

impl Asked {
    /// Answers from memory as of `version`.
    pub fn answer(self, memory: &mut Memory, version: u64, now: Timestamp) {
        // An asker that went away wants no answer.
        if !self.reply.is_closed() {
            let _ = self.reply.send(memory.answer(self.question, version, now));
        }
    }
}

/// The version up to which placement has been told of everything.
pub fn seen(informers: &Informers) -> u64 {
    [
        informers.get::<Job>().progress().observed,
        informers.get::<Queue>().progress().observed,
        informers.get::<Node>().progress().observed,
        informers.get::<JobRevision>().progress().observed,
        informers.get::<Task>().progress().observed,
    ]
    .into_iter()
    .min()
    .unwrap_or(0)
}

/// Keeps a line open for the rest of the term, or until the guard is dropped; questions come out of
/// the receiver.
pub fn open(ctx: &Context) -> (DropGuard, mpsc::Receiver<Asked>) {
    let (questions, asked) = mpsc::channel(WAITING_MAX);
    let stop = ctx.stop.child_token();
    let desk = Arc::new(FrontDesk {
        ctx: ctx.clone(),
        questions,
        trials: Semaphore::new(TRIALS_MAX),
    });
    let until = stop.clone();
    tokio::spawn(async move { until.run_until_cancelled(desk.keep_open()).await });
    (stop.drop_guard(), asked)
}

struct FrontDesk {
    ctx: Context,
    questions: mpsc::Sender<Asked>,
    trials: Semaphore,
}

impl FrontDesk {
    async fn keep_open(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            match self.clone().once().await {
                Ok(()) => failures = 0,
                Err(error) => {
                    tracing::debug!(error, "placement cannot be asked at the moment");
                    failures += 1;
                }
            }
            let pause = backoff::delay(self.ctx.seed, "line", failures.max(1));
            tokio::time::sleep(pause).await;
        }
    }

    /// One connection, until it ends.
    async fn once(self: Arc<Self>) -> Result<(), String> {
        let opened = self.ctx.rest.upgrade(PATH_PLACEMENT_TUNNEL, TUNNEL_UPGRADE);
        let stream = opened.await.map_err(|failure| {
            if matches!(failure, Failure::LeaseLost(_)) {
                self.ctx.stop.cancel();
            }
            failure.to_string()
        })?;
        let service = hyper::service::service_fn(move |request| {
            let desk = self.clone();
            async move { Ok::<_, Infallible>(desk.handle(request).await) }
        });
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING * 2)
            .serve_connection(stream, service)
            .await
            .map_err(|e| e.to_string())
    }

    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match self.told(request).await {
            Ok(answer) => reply(StatusCode::OK, answer.to_string()),
            Err((status, why)) => reply(status, why),
        }
    }

    async fn told(&self, request: Request<Incoming>) -> Result<Value, (StatusCode, String)> {
        let later = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, why.to_string());
        let seen = request.uri().query().and_then(|q| {
            let seen = q.split('&').find_map(|pair| pair.strip_prefix("seen="));
            seen?.parse().ok()
        });
        let question = read(request).await?;
        // Jobs are what people ask about; the rest is as new as the answer's version says.
        let jobs = self.ctx.informers.get::<Job>();
        if !jobs.observed(seen.unwrap_or(0), SEEN_WAIT).await {
            return Err(later("placement has not seen the newest changes yet"));
        }
        let _place = match &question {
            Question::Plan { .. } => Some(
                self.trials
                    .acquire()
                    .await
                    .map_err(|_| later("placement stops"))?,
            ),
            Question::Why { .. } => None,
        };
        let (answer, told) = oneshot::channel();
        let asked = Asked {
            question,
            reply: answer,
        };
        self.questions
            .try_send(asked)
            .map_err(|_| later("too many questions wait for placement"))?;
        match told.await.map_err(|_| later("placement stops"))? {
            Told::Answer(answer) => Ok(answer),
            Told::NotFound(why) => Err((StatusCode::NOT_FOUND, why)),
            Told::Trial(trial) => tokio::task::spawn_blocking(move || trial.run())
                .await
                .map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
        }
    }
}

/// The question in a request.
async fn read(request: Request<Incoming>) -> Result<Question, (StatusCode, String)> {
    let path = request.uri().path().to_string();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let bad = |e: &dyn std::fmt::Display| (StatusCode::BAD_REQUEST, e.to_string());
    match parts[..] {
        ["why", namespace, name] => Ok(Question::Why {
            namespace: namespace.into(),
            name: name.into(),
        }),
        ["plan"] => {
            #[derive(serde::Deserialize)]
            struct Plan {
                jobs: Vec<Job>,
                queues: Vec<Queue>,
            }
            let body = Limited::new(request.into_body(), QUESTION_MAX).collect();
            let body = body.await.map_err(|e| bad(&e))?.to_bytes();
            let plan: Plan = serde_json::from_slice(&body).map_err(|e| bad(&e))?;
            Ok(Question::Plan {
                jobs: plan.jobs,
                queues: plan.queues,
            })
        }
        _ => Err((
            StatusCode::NOT_FOUND,
            "placement answers /why/NAMESPACE/NAME and /plan".into(),
        )),
    }
}

fn reply(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
