//! An etcd cluster of three members over TLS with client certificates, of which one dies.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rota_store::{EtcdOptions, EtcdStore, Event, Store, StoreError, Txn, Version};

use crate::support::{Etcd, Leashed, PATIENCE, connect, create, free_port, put};

/// PEM files of an authority and of one certificate that members and clients share.
struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &ca).unwrap();
        let files = [
            ("ca", ca.pem()),
            ("crt", cert.pem()),
            ("key", key.serialize_pem()),
        ];
        for (name, pem) in files {
            std::fs::write(dir.path().join(name), pem).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Members that know each other; `None` if a port was taken meanwhile.
fn members(pki: &Pki) -> Option<Vec<(String, Leashed)>> {
    let ports = [(); 3].map(|()| (free_port(), free_port()));
    let peer = |i: usize| format!("http://127.0.0.1:{}", ports[i].1);
    let everyone = [0, 1, 2].map(|i| format!("m{i}={}", peer(i))).join(",");
    let started: Vec<_> = (0..3)
        .map(|i| {
            let url = format!("https://127.0.0.1:{}", ports[i].0);
            let args = [
                format!("--name=m{i}"),
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                format!("--listen-peer-urls={}", peer(i)),
                format!("--initial-advertise-peer-urls={}", peer(i)),
                format!("--initial-cluster={everyone}"),
                format!("--cert-file={}", pki.path("crt").display()),
                format!("--key-file={}", pki.path("key").display()),
                format!("--trusted-ca-file={}", pki.path("ca").display()),
                "--client-cert-auth".to_owned(),
            ];
            (url, Leashed::start(&args))
        })
        .collect();
    let listen = ports
        .iter()
        .zip(&started)
        .all(|(port, (_, member))| member.listens(port.0));
    listen.then_some(started)
}

/// Events after `from` up to `to`, resumed after every error.
async fn follow(store: &Arc<dyn Store>, from: Version, to: Version) -> Vec<Event> {
    let deadline = Instant::now() + PATIENCE;
    let (mut events, mut at) = (Vec::new(), from);
    while at < to {
        assert!(
            Instant::now() < deadline,
            "the watch is at {at}, not at {to}"
        );
        let Ok(mut watch) = store.watch(at).await else {
            continue;
        };
        while at < to
            && let Ok(Some(Ok(batch))) = tokio::time::timeout(PATIENCE, watch.next()).await
        {
            at = batch.version;
            events.extend(batch.events);
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_may_die_behind_tls_and_several_endpoints() {
    if Etcd::start().is_none() {
        return;
    }
    let pki = Pki::new();
    let mut started = (0..5)
        .find_map(|_| members(&pki))
        .expect("etcd does not start");
    let options = EtcdOptions {
        endpoints: started.iter().map(|(url, _)| url.clone()).collect(),
        ca: Some(pki.path("ca")),
        cert: Some(pki.path("crt")),
        key: Some(pki.path("key")),
        prefix: "/members".to_owned(),
        ..EtcdOptions::default()
    };
    let store: Arc<dyn Store> = connect(&options).await;

    // The members take nobody without a certificate of the authority, nor are strangers believed.
    let unnamed = EtcdOptions {
        cert: None,
        key: None,
        ..options.clone()
    };
    let stranger = EtcdOptions {
        ca: Some(Pki::new().path("ca")),
        ..options.clone()
    };
    for refused in [unnamed, stranger] {
        let answer = EtcdStore::connect(refused).await.err();
        assert!(
            matches!(answer, Some(StoreError::Unavailable(_))),
            "{answer:?}"
        );
    }

    let mut last = create(&store, "/m/first", "x").await;
    let from = last;
    let mut written = Vec::new();
    for dead in [false, true] {
        if dead {
            started.remove(0);
        }
        for i in 0..20 {
            let name = format!("/m/{dead}/{i}");
            let txn = || Txn {
                guards: vec![],
                writes: vec![put(&name, "x")],
            };
            // While the members choose a new leader a write may be refused or lost from sight.
            let deadline = Instant::now() + PATIENCE;
            last = loop {
                match store.commit(txn()).await {
                    Ok(versions) => break versions[0],
                    Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) if dead => {
                        assert!(Instant::now() < deadline, "no write after a member's death");
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            written.push((name, last));
        }
    }
    let events = follow(&store, from, last).await;
    assert!(events.is_sorted_by_key(|event| event.version));
    for (name, version) in written {
        let seen = events.iter().filter(|event| event.version == version);
        let keys: Vec<_> = seen.map(|event| event.key.to_string()).collect();
        assert_eq!(keys, [name]);
    }
}
