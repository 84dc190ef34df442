//! What an operation is held against: the same work without Rota.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;

use super::{Args, LIMIT_PAGES, Load, Op, PAGE, TXN_CLIENTS, drive};
use crate::bench::client::Conn;
use crate::bench::cluster::Cluster;
use crate::bench::limits::{Etcd, ReadyBytes};

/// The limit for an operation.
pub(super) enum Limit {
    Puts(Etcd),
    Txns(Etcd),
    Pages(Etcd),
    Ready(Box<ReadyBytes>),
    None,
}

impl Limit {
    pub(super) async fn prepare(
        args: &Args,
        cluster: &Cluster,
        admin: &mut Conn,
        load: &Load,
    ) -> Limit {
        match Self::try_prepare(args, cluster, admin, load).await {
            Ok(limit) => limit,
            Err(error) => {
                eprintln!("no limit to compare with: {error:#}");
                Limit::None
            }
        }
    }

    async fn try_prepare(
        args: &Args,
        cluster: &Cluster,
        admin: &mut Conn,
        load: &Load,
    ) -> Result<Limit> {
        if args.no_limit {
            return Ok(Limit::None);
        }
        Ok(match args.op {
            Op::Create | Op::Bulk | Op::Page => {
                let endpoints = cluster.etcd.as_deref().context("there is no etcd")?;
                let etcd = Etcd::connect(endpoints).await?;
                match args.op {
                    Op::Create => Limit::Puts(etcd),
                    Op::Bulk => Limit::Txns(etcd),
                    _ => {
                        etcd.seed(load.objects, load.object_bytes).await?;
                        Limit::Pages(etcd)
                    }
                }
            }
            Op::Get | Op::List => {
                let data_dir = cluster
                    .data_dir
                    .as_deref()
                    .context("only an own cluster has its server certificate at hand")?;
                let (_, path, _) = load.request(0, None);
                let (_, body) = admin.send(Method::GET, &path, Bytes::new()).await?;
                Limit::Ready(Box::new(
                    ReadyBytes::start(&cluster.target, data_dir, body.len()).await?,
                ))
            }
        })
    }

    pub(super) fn what(&self) -> &'static str {
        match self {
            Limit::Puts(_) => "raw etcd put of as many bytes at the same concurrency",
            Limit::Txns(_) => "raw etcd transactions of 100 guarded puts at concurrency 16",
            Limit::Pages(_) => {
                "raw etcd range of 500 keys a page, pages evenly spaced over the range"
            }
            Limit::Ready(_) => "axum serving as many ready bytes over TLS at the same concurrency",
            Limit::None => "none",
        }
    }

    pub(super) fn unit(&self) -> &'static str {
        match self {
            Limit::Puts(_) | Limit::Txns(_) => "objects per second",
            Limit::Pages(_) => "keys per second",
            Limit::Ready(_) => "requests per server CPU second",
            Limit::None => "",
        }
    }

    pub(super) fn per_cpu_second(&self) -> bool {
        matches!(self, Limit::Ready(_))
    }

    pub(super) async fn slice(
        &self,
        args: &Args,
        objects: usize,
        time: Duration,
    ) -> Result<Option<f64>> {
        let (clients, bytes) = (args.concurrency as usize, args.object_bytes as usize);
        Ok(match self {
            Limit::Puts(etcd) => Some(etcd.puts(clients, bytes, time).await?),
            Limit::Txns(etcd) => Some(etcd.txns(TXN_CLIENTS, bytes, time).await?),
            Limit::Pages(etcd) => Some(etcd.pages(objects, PAGE as i64, LIMIT_PAGES).await?),
            Limit::Ready(server) => {
                let load = Arc::new(Load {
                    op: Op::List,
                    tasks: false,
                    namespace: String::new(),
                    collection: "/".into(),
                    object_bytes: 0,
                    batch: 0,
                    objects: 0,
                    stop: AtomicBool::new(false),
                    serial: AtomicU64::new(0),
                    first_version: AtomicU64::new(0),
                    last_version: AtomicU64::new(0),
                });
                let before = server.cpu_seconds();
                let slice = drive(&server.target, &load, args.concurrency, time).await?;
                before
                    .zip(server.cpu_seconds())
                    .map(|(b, a)| a - b)
                    .filter(|cpu| *cpu > 0.0)
                    .map(|cpu| slice.ops as f64 / cpu)
            }
            Limit::None => None,
        })
    }
}
