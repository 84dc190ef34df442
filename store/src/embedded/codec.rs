//! Bytes of the embedded store's tables. Changing anything here means a new [`FORMAT`].
//!
//! - `cur`: key → version (8, LE), expiry (8, LE, 0 = none), value.
//! - `log`: version (8, BE) + 0 → flags, previous version (8, LE, 0 = none), expiry (8, LE), key;
//!   version (8, BE) + 1 → expiry, value that this version held, stored by the write that replaced it.
//!   So a value is on disk once while it is current, and history still holds every one.

use std::sync::Arc;

use bytes::Bytes;

use crate::{StoreError, Version};

/// Format of the tables; a store of another format is refused.
pub(super) const FORMAT: &[u8] = b"rota-embedded-1";

/// Second part of a log key: what happened at the version.
pub(super) const LOG_ENTRY: u8 = 0;
/// Second part of a log key: the value that the version held, once replaced.
pub(super) const LOG_OLD: u8 = 1;

const FLAG_PUT: u8 = 1;
const FLAG_ENDS_TXN: u8 = 2;

/// What a key holds.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub version: Version,
    pub expires_at: Option<u64>,
    pub value: Bytes,
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub put: bool,
    pub ends_txn: bool,
    /// Version of the record that this write replaced; 0 if there was none.
    pub previous: Version,
    pub expires_at: Option<u64>,
    pub key: Arc<str>,
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("embedded store: {what}"))
}

fn take_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}

pub(super) fn some_if_set(expiry: u64) -> Option<u64> {
    (expiry != 0).then_some(expiry)
}

pub(super) fn encode_cur(stored: &Stored) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + stored.value.len());
    out.extend_from_slice(&stored.version.to_le_bytes());
    out.extend_from_slice(&stored.expires_at.unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&stored.value);
    out
}

pub(super) fn decode_cur(bytes: &[u8]) -> Result<Stored, StoreError> {
    match (take_u64(bytes, 0), take_u64(bytes, 8)) {
        (Some(version), Some(expiry)) => Ok(Stored {
            version,
            expires_at: some_if_set(expiry),
            value: Bytes::copy_from_slice(&bytes[16..]),
        }),
        _ => Err(corrupt("a record in table cur is too short")),
    }
}

pub(super) fn encode_old(stored: &Stored) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + stored.value.len());
    out.extend_from_slice(&stored.expires_at.unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&stored.value);
    out
}

pub(super) fn decode_old(version: Version, bytes: &[u8]) -> Result<Stored, StoreError> {
    match take_u64(bytes, 0) {
        Some(expiry) => Ok(Stored {
            version,
            expires_at: some_if_set(expiry),
            value: Bytes::copy_from_slice(&bytes[8..]),
        }),
        None => Err(corrupt("an old value in table log is too short")),
    }
}

pub(super) fn log_key(version: Version, kind: u8) -> [u8; 9] {
    let mut key = [kind; 9];
    key[..8].copy_from_slice(&version.to_be_bytes());
    key
}

pub(super) fn decode_log_key(bytes: &[u8]) -> Result<(Version, u8), StoreError> {
    let version = bytes.get(..8).and_then(|v| v.try_into().ok());
    match (version, bytes.get(8), bytes.len()) {
        (Some(version), Some(kind), 9) => Ok((u64::from_be_bytes(version), *kind)),
        _ => Err(corrupt("a key in table log is malformed")),
    }
}

pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(17 + entry.key.len());
    let mut flags = 0;
    if entry.put {
        flags |= FLAG_PUT;
    }
    if entry.ends_txn {
        flags |= FLAG_ENDS_TXN;
    }
    out.push(flags);
    out.extend_from_slice(&entry.previous.to_le_bytes());
    out.extend_from_slice(&entry.expires_at.unwrap_or(0).to_le_bytes());
    out.extend_from_slice(entry.key.as_bytes());
    out
}

pub(super) fn decode_entry(bytes: &[u8]) -> Result<Entry, StoreError> {
    let (Some(flags), Some(previous), Some(expiry)) =
        (bytes.first(), take_u64(bytes, 1), take_u64(bytes, 9))
    else {
        return Err(corrupt("an entry in table log is too short"));
    };
    let key = decode_key(&bytes[17..])?;
    Ok(Entry {
        put: flags & FLAG_PUT != 0,
        ends_txn: flags & FLAG_ENDS_TXN != 0,
        previous,
        expires_at: some_if_set(expiry),
        key,
    })
}

pub(super) fn decode_key(bytes: &[u8]) -> Result<Arc<str>, StoreError> {
    match std::str::from_utf8(bytes) {
        Ok(key) => Ok(key.into()),
        Err(_) => Err(corrupt("a key is not UTF-8")),
    }
}

pub(super) fn decode_number(bytes: &[u8]) -> Result<u64, StoreError> {
    match take_u64(bytes, 0) {
        Some(number) if bytes.len() == 8 => Ok(number),
        _ => Err(corrupt("a number in table meta is malformed")),
    }
}
