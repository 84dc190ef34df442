//! What a server does besides answering: the objects that every cluster has, compaction, expiry,
//! and the record of which server holds a node's tunnel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rota_api::names::{NODE_LEASE_NAMESPACE, SYSTEM_NAMESPACE};
use rota_store::Version;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::auth::User;
use crate::body::Decoded;
use crate::error::ApiResult;
use crate::server::{Caller, Server};
use crate::verbs::{WriteOptions, create};

/// History that is kept unless told otherwise.
pub const HISTORY_DEFAULT: Duration = Duration::from_secs(600);

/// How often history that is too old is forgotten, and expired objects are removed; more often where
/// less history is kept.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The caller of what the server does by itself.
pub fn itself() -> Caller {
    Caller {
        user: User::new("system:apiserver", &[rota_api::names::GROUP_MASTERS]),
        fence: None,
    }
}

/// Creates the namespaces and the queue that every cluster has. What exists stays as it is.
pub async fn bootstrap(server: &Server) -> ApiResult<()> {
    let caller = itself();
    let mut wanted: Vec<(&str, &str, Value)> = [
        "default",
        "kube-system",
        NODE_LEASE_NAMESPACE,
        SYSTEM_NAMESPACE,
    ]
    .into_iter()
    .map(|name| {
        (
            "",
            "namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        )
    })
    .collect();
    wanted.push((
        rota_api::names::GROUP,
        "queues",
        json!({"apiVersion": "rota.dev/v1", "kind": "Queue", "metadata": {"name": "default"}, "spec": {}}),
    ));
    for (group, plural, value) in wanted {
        let served = server.known(group, plural)?;
        let name = value["metadata"]["name"].as_str().unwrap_or("").to_string();
        if server.cached(served, "", &name).is_some() {
            continue;
        }
        let body = Decoded {
            value,
            duplicates: Vec::new(),
        };
        match create::create(server, &caller, served, "", body, WriteOptions::default()).await {
            Ok(_) => {}
            Err(e) if e.reason == "AlreadyExists" => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Forgets old history and removes expired objects, until the server stops.
pub async fn sweep(server: Arc<Server>, history: Duration) {
    let every = SWEEP_EVERY.min(history / 2).max(Duration::from_millis(500));
    let mut seen: VecDeque<(Instant, Version)> = VecDeque::new();
    loop {
        tokio::select! {
            () = server.stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        seen.push_back((Instant::now(), server.cache.applied()));
        let mut old = None;
        while let Some((at, version)) = seen.front().copied() {
            if at.elapsed() < history {
                break;
            }
            old = Some(version);
            seen.pop_front();
        }
        if let Some(version) = old
            && let Err(e) = server.store.compact(version).await
        {
            tracing::warn!(version, error = %e, "compaction failed; it is tried again later");
        }
        for served in server.served() {
            if served.kind.ttl_seconds.is_none() || served.view {
                continue;
            }
            match server
                .store
                .expire(&served.prefix, create::unix_now())
                .await
            {
                Ok(0) => {}
                Ok(n) => tracing::debug!(kind = served.kind.kind, removed = n, "expired"),
                Err(e) => {
                    tracing::warn!(kind = served.kind.kind, error = %e, "expiry failed; it is tried again later")
                }
            }
        }
    }
}
