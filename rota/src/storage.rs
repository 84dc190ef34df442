//! Which store a server keeps its objects in, from its flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rota_store::{EmbeddedOptions, Store, StoreConfig, StoreError};

use crate::fail::{Fail, Result};

/// Flags of the store.
#[derive(Clone, Debug, clap::Args)]
pub struct StorageArgs {
    /// Keep objects in this etcd cluster instead of the data directory
    #[arg(
        long,
        value_name = "URL,..",
        value_delimiter = ',',
        help_heading = "Store"
    )]
    etcd_endpoints: Vec<String>,
    /// Keys of this cluster in etcd begin with this; another cluster may use another prefix
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "/rota",
        value_parser = prefix,
        requires = "etcd_endpoints",
        help_heading = "Store"
    )]
    etcd_prefix: String,
    /// CA certificate of the etcd servers
    #[arg(
        long,
        value_name = "FILE",
        requires = "etcd_endpoints",
        help_heading = "Store"
    )]
    etcd_ca: Option<PathBuf>,
    /// Client certificate for etcd
    #[arg(
        long,
        value_name = "FILE",
        requires = "etcd_key",
        help_heading = "Store"
    )]
    etcd_cert: Option<PathBuf>,
    /// Key of the client certificate for etcd
    #[arg(
        long,
        value_name = "FILE",
        requires = "etcd_cert",
        help_heading = "Store"
    )]
    etcd_key: Option<PathBuf>,
    /// History that is kept at least: clients may be away this long and still resume their watches.
    /// Less makes the store smaller
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Store")]
    history_seconds: u64,
}

/// One segment of a path, such as `/rota`: of two prefixes none may lie below the other.
fn prefix(text: &str) -> std::result::Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match text.strip_prefix('/') {
        Some(name) if !name.is_empty() && name.chars().all(plain) => Ok(text.into()),
        _ => Err("it must be a slash and a name, such as /rota or /rota-east".into()),
    }
}

impl StorageArgs {
    /// History that is kept at least.
    pub fn history(&self) -> Duration {
        Duration::from_secs(self.history_seconds)
    }

    /// Whether other servers may use the store at the same time.
    pub fn shared(&self) -> bool {
        !self.etcd_endpoints.is_empty()
    }

    /// Opens the store; the embedded one is in `dir`.
    pub async fn open(&self, dir: &Path) -> Result<Arc<dyn Store>> {
        let config = if self.etcd_endpoints.is_empty() {
            StoreConfig::Embedded {
                dir: dir.into(),
                options: EmbeddedOptions {
                    history_time: self.history(),
                    ..EmbeddedOptions::default()
                },
            }
        } else {
            self.etcd()?
        };
        let place = match &config {
            StoreConfig::Embedded { dir, .. } => format!("the store in {}", dir.display()),
            _ => format!("the store at {}", self.etcd_endpoints.join(", ")),
        };
        rota_store::open(config).await.map_err(|e| {
            let remedy = match &e {
                StoreError::Corrupt(_) => {
                    "restore it from a backup, or move it away to start empty"
                }
                _ if self.etcd_endpoints.is_empty() => {
                    "check that no other process uses it, its owner, and the free space"
                }
                _ => "check that etcd runs, the endpoints, and the certificates given with --etcd-ca, --etcd-cert and --etcd-key",
            };
            Fail::new(format!("cannot open {place}: {e}"), remedy)
        })
    }

    #[cfg(feature = "etcd")]
    fn etcd(&self) -> Result<StoreConfig> {
        let options = rota_store::EtcdOptions {
            endpoints: self.etcd_endpoints.clone(),
            prefix: self.etcd_prefix.clone(),
            ca: self.etcd_ca.clone(),
            cert: self.etcd_cert.clone(),
            key: self.etcd_key.clone(),
            history_time: self.history(),
            ..Default::default()
        };
        Ok(StoreConfig::Etcd(options))
    }

    #[cfg(not(feature = "etcd"))]
    fn etcd(&self) -> Result<StoreConfig> {
        Err(Fail::new(
            "this build has no etcd backend",
            "leave --etcd-endpoints out, or build with the feature etcd (the default)",
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_prefix_is_one_name() {
        for good in ["/rota", "/rota-east", "/a.b_c"] {
            assert_eq!(prefix(good).unwrap(), good);
        }
        for bad in [
            "",
            "/",
            "rota",
            "/rota/",
            "//rota",
            "/a b",
            "/ä",
            "/rota/east",
        ] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }
}
