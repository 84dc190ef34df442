//! Connections that agents and the placement leader open and the server talks back over.
//!
//! An agent, say, upgrades a request to `rota-tunnel/1`; from then on the server is the HTTP/2 client on
//! that connection and the agent the server, so nothing needs to reach into the machine. There is no
//! ping on purpose: a stopped process cannot answer one, but its kernel keeps the TCP connection. So
//! a connection that ends says that the agent's process or machine is gone, and one that stays says
//! nothing more than that the process exists. TCP keepalive (set where the socket is accepted)
//! finds dead machines.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rota_api::names::TUNNEL_UPGRADE;
use tokio::sync::mpsc;

use crate::error::{ApiError, ApiResult};

/// Longest wait for an answer to begin.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// Longest wait for the far end to speak HTTP/2 after the upgrade.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(15);

/// Takes a request for a tunnel: the connection to come, and the answer that hands it over.
pub fn upgrade(parts: &mut Parts) -> ApiResult<(OnUpgrade, Response<Body>)> {
    let wanted = parts
        .headers
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("");
    if !wanted.eq_ignore_ascii_case(TUNNEL_UPGRADE) {
        return Err(ApiError::bad_request(format!(
            "this path wants Connection: Upgrade and Upgrade: {TUNNEL_UPGRADE}"
        )));
    }
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(ApiError::bad_request(
            "this connection cannot be upgraded; use HTTP/1.1",
        ));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(TUNNEL_UPGRADE));
    Ok((upgrade, response))
}

/// Why the far end cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No connection from it to this server.
    #[error("it has no connection to this server at the moment")]
    NoTunnel,
    /// It is connected but did not answer in time.
    #[error("it is connected but did not answer within {} s", ANSWER_WAIT.as_secs())]
    Silent,
    /// The connection failed meanwhile.
    #[error("the connection failed: {0}")]
    Broken(hyper::Error),
}

/// What happened to a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelEventKind {
    /// It stands.
    Opened,
    /// The far end went away; never sent because this server stops.
    PeerClosed,
}

/// A change of a node's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelEvent {
    /// The node.
    pub node: String,
    /// Identity of the connection.
    pub id: String,
    /// What happened.
    pub kind: TunnelEventKind,
}

struct Tunnel {
    id: String,
    requests: SendRequest<Body>,
}

/// All agents connected to this server.
pub struct Tunnels {
    nodes: Mutex<HashMap<String, Tunnel>>,
    events: mpsc::UnboundedSender<TunnelEvent>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<TunnelEvent>>>,
    stopping: AtomicBool,
}

impl Tunnels {
    /// None yet.
    pub fn new() -> Arc<Self> {
        // Unbounded is bounded here by the number of connections: two events each.
        let (events, receiver) = mpsc::unbounded_channel();
        Arc::new(Tunnels {
            nodes: Mutex::default(),
            events,
            receiver: Mutex::new(Some(receiver)),
            stopping: AtomicBool::new(false),
        })
    }

    /// None yet; nobody wants to know what happens to them.
    pub fn unrecorded() -> Arc<Self> {
        let tunnels = Self::new();
        drop(tunnels.events());
        tunnels
    }

    /// The stream of events; there is one reader, a second one sees nothing.
    pub fn events(&self) -> mpsc::UnboundedReceiver<TunnelEvent> {
        self.receiver
            .lock()
            .take()
            .unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// Connected agents.
    pub fn count(&self) -> usize {
        self.nodes.lock().len()
    }

    /// From now on connections end because of us, which says nothing about the agents.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Takes over a connection once its upgrade is through.
    pub fn accept(self: &Arc<Self>, node: &str, upgrade: OnUpgrade) {
        let tunnels = self.clone();
        let node = node.to_string();
        tokio::spawn(async move {
            if let Err(e) = tunnels.serve(&node, upgrade).await {
                tracing::info!(node, error = %e, "tunnel ended");
            }
        });
    }

    async fn serve(self: &Arc<Self>, node: &str, upgrade: OnUpgrade) -> Result<(), hyper::Error> {
        let io = upgrade.await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(io);
        let Ok(handshake) = tokio::time::timeout(HANDSHAKE_WAIT, handshake).await else {
            return Ok(());
        };
        let (requests, connection) = handshake?;
        let id = uuid::Uuid::new_v4().to_string();
        self.nodes.lock().insert(
            node.to_string(),
            Tunnel {
                id: id.clone(),
                requests,
            },
        );
        self.send(node, &id, TunnelEventKind::Opened);
        let result = connection.await;
        {
            let mut nodes = self.nodes.lock();
            if nodes.get(node).is_some_and(|t| t.id == id) {
                nodes.remove(node);
            }
        }
        if !self.stopping.load(Ordering::Acquire) {
            self.send(node, &id, TunnelEventKind::PeerClosed);
        }
        result
    }

    fn send(&self, node: &str, id: &str, kind: TunnelEventKind) {
        // Without a reader nobody wants to know.
        let _ = self.events.send(TunnelEvent {
            node: node.into(),
            id: id.into(),
            kind,
        });
    }

    /// Asks an agent.
    pub async fn request(
        &self,
        node: &str,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TunnelError> {
        let mut requests = self
            .nodes
            .lock()
            .get(node)
            .map(|t| t.requests.clone())
            .ok_or(TunnelError::NoTunnel)?;
        match tokio::time::timeout(ANSWER_WAIT, requests.send_request(request)).await {
            Err(_) => Err(TunnelError::Silent),
            Ok(Err(e)) => Err(TunnelError::Broken(e)),
            Ok(Ok(response)) => Ok(response),
        }
    }
}
