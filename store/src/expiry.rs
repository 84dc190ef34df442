//! Removal of expired records, the same on every backend.

use futures::future::join_all;

use crate::{Expect, Guard, ListRequest, Store, StoreError, Txn, Write};

/// Records looked at per round; their removals are committed together.
const EXPIRE_PAGE: usize = 500;

/// Removes what is due under `prefix`. Each removal is its own unit guarded by the version that was
/// seen, so a record renewed meanwhile stays and servers that race each other do no harm.
pub(crate) async fn expire(
    store: &dyn Store,
    prefix: &str,
    now_unix: u64,
) -> Result<usize, StoreError> {
    let mut removed = 0;
    let mut after = None;
    loop {
        let page = store
            .list(ListRequest {
                prefix: prefix.to_owned(),
                after: after.take(),
                limit: EXPIRE_PAGE,
                at: None,
            })
            .await?;
        let due = page
            .items
            .iter()
            .filter(|record| record.expires_at.is_some_and(|at| at <= now_unix));
        let removals = due.map(|record| {
            store.commit(Txn {
                guards: vec![Guard {
                    key: record.key.clone(),
                    expect: Expect::Version(record.version),
                }],
                writes: vec![Write::Delete {
                    key: record.key.clone(),
                }],
            })
        });
        for outcome in join_all(removals).await {
            match outcome {
                Ok(_) => removed += 1,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if !page.more {
            return Ok(removed);
        }
        after = page.items.last().map(|record| record.key.to_string());
    }
}
