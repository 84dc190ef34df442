//! Every backend in one place: a new one is a variant and a line here.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{EmbeddedOptions, EmbeddedStore, MemoryStore, Store, StoreError};

/// Which store to open, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreConfig {
    /// In memory; nothing survives the process.
    Memory,
    /// On this machine's disk.
    Embedded {
        /// Directory of the store; created if it is missing.
        dir: PathBuf,
        /// How it keeps its data.
        options: EmbeddedOptions,
    },
    /// In an etcd cluster.
    #[cfg(feature = "etcd")]
    Etcd(crate::EtcdOptions),
}

/// Opens the store that the configuration names.
pub async fn open(config: StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    match config {
        StoreConfig::Memory => Ok(MemoryStore::new()),
        StoreConfig::Embedded { dir, options } => {
            let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(dir, options));
            let opened = opened.await;
            Ok(opened.map_err(|error| StoreError::Unavailable(error.to_string()))??)
        }
        #[cfg(feature = "etcd")]
        StoreConfig::Etcd(options) => Ok(crate::EtcdStore::connect(options).await?),
    }
}
