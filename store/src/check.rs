//! The rules every transaction must keep, checked before any backend sees it.

use std::collections::HashSet;

use crate::{CommitResult, Expect, StoreError, TXN_BYTES_MAX, TXN_WRITES_MAX, Txn, Write};

/// Most guards of one [`Txn`]. Guards on keys that are not written are compared on etcd as well, so they
/// share its limit of 128 operations.
pub const TXN_GUARDS_MAX: usize = 120;

/// Most bytes of one key; far above any object's path and far below any backend's limit.
pub const KEY_BYTES_MAX: usize = 2048;

/// Refuses a transaction that breaks a rule of the trait; costs no allocation for the usual single write.
pub(crate) fn validate(txn: &Txn) -> Result<(), StoreError> {
    if txn.writes.is_empty() {
        return Err(StoreError::Invalid("no writes".into()));
    }
    if txn.writes.len() > TXN_WRITES_MAX {
        return Err(StoreError::TooLarge(format!(
            "{} writes, at most {TXN_WRITES_MAX}",
            txn.writes.len()
        )));
    }
    if txn.guards.len() > TXN_GUARDS_MAX {
        return Err(StoreError::TooLarge(format!(
            "{} guards, at most {TXN_GUARDS_MAX}",
            txn.guards.len()
        )));
    }
    let mut bytes = 0;
    let mut seen = HashSet::new();
    for write in &txn.writes {
        let key = write.key();
        check_key(key)?;
        if txn.writes.len() > 1 && !seen.insert(key.as_ref()) {
            return Err(StoreError::Invalid(format!("key {key} is written twice")));
        }
        match write {
            Write::Put { value, .. } => bytes += value.len(),
            Write::Delete { key } => {
                let guarded = txn
                    .guards
                    .iter()
                    .any(|guard| guard.key == *key && !matches!(guard.expect, Expect::Absent));
                if !guarded {
                    return Err(StoreError::Invalid(format!("unguarded delete of {key}")));
                }
            }
        }
    }
    for guard in &txn.guards {
        check_key(&guard.key)?;
    }
    if bytes > TXN_BYTES_MAX {
        return Err(StoreError::TooLarge(format!(
            "{bytes} bytes of values, at most {TXN_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// The transactions that keep the rules, and what those at the other places are answered.
pub(crate) fn sift(txns: Vec<Txn>) -> (Vec<Txn>, Vec<(usize, StoreError)>) {
    let mut refused = Vec::new();
    let mut good = Vec::with_capacity(txns.len());
    for (at, txn) in txns.into_iter().enumerate() {
        match validate(&txn) {
            Ok(()) => good.push(txn),
            Err(error) => refused.push((at, error)),
        }
    }
    (good, refused)
}

/// Puts the answers of [`sift`] back in their places among those of the good ones.
pub(crate) fn weave(
    mut outcomes: Vec<CommitResult>,
    refused: Vec<(usize, StoreError)>,
) -> Vec<CommitResult> {
    for (at, error) in refused {
        outcomes.insert(at.min(outcomes.len()), Err(error));
    }
    outcomes
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if !key.starts_with('/') || key.len() > KEY_BYTES_MAX {
        return Err(StoreError::Invalid(format!(
            "a key begins with a slash and has at most {KEY_BYTES_MAX} bytes, this one has {}",
            key.len()
        )));
    }
    Ok(())
}

/// Whether a transaction may go on: `found` is what the guarded key holds.
pub(crate) fn holds(expect: &Expect, found: Option<(u64, &[u8])>) -> bool {
    match (expect, found) {
        (Expect::Absent, None) => true,
        (Expect::Version(wanted), Some((version, _))) => *wanted == version,
        (Expect::Value(wanted), Some((_, value))) => wanted.as_ref() == value,
        _ => false,
    }
}
