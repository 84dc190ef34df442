//! Keys, values and versions as etcd holds them.
//!
//! A key is the store's prefix and then the key as given, which begins with a slash: so a store
//! under `/rota` and one under `/rota-test` never see each other's keys. Two keys of our own live
//! among them: `/!store` says who the store is, and `/!head` is put last in every transaction, so that its
//! modification revision is the newest revision of *this* store (others may use the cluster too)
//! and its event ends the transaction for a watcher. A value carries its ordinal in the
//! transaction and its expiry in front of the bytes.

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::KeyValue;

use crate::{Record, StoreError, Version};

/// First byte of every value; another one is not ours.
const FORMAT: u8 = 1;
/// Format, ordinal (big-endian, so that values compare by it), expiry.
const HEADER: usize = 1 + 2 + 8;
/// Versions per revision.
pub(super) const SLOTS: Version = 1000;
/// Ordinal that stands for the whole revision.
pub(super) const WHOLE: Version = SLOTS - 1;

/// How this store's keys and versions map to etcd's.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    /// Added to every revision: raised when a store is restored or moved.
    pub offset: Version,
}

impl Names {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, offset: 0 }
    }

    pub(super) fn head(&self) -> Vec<u8> {
        format!("{}/!head", self.prefix).into_bytes()
    }

    pub(super) fn store(&self) -> Vec<u8> {
        format!("{}/!store", self.prefix).into_bytes()
    }

    pub(super) fn full(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// Prefix of every key of this store and of no other key.
    pub(super) fn everything(&self) -> Vec<u8> {
        format!("{}/", self.prefix).into_bytes()
    }

    /// The key as callers know it; `None` for what is not a record.
    pub(super) fn strip<'a>(&self, full: &'a [u8]) -> Option<&'a str> {
        let key = std::str::from_utf8(full).ok()?.strip_prefix(&self.prefix)?;
        (key.starts_with('/') && !key.starts_with("/!")).then_some(key)
    }

    pub(super) fn version(&self, revision: i64, ordinal: u64) -> Version {
        (revision.unsigned_abs() + self.offset) * SLOTS + ordinal
    }

    /// The revision of a version; 0 if it is older than the store's offset.
    pub(super) fn revision(&self, version: Version) -> i64 {
        let revision = (version / SLOTS).saturating_sub(self.offset);
        i64::try_from(revision).unwrap_or(i64::MAX)
    }

    /// The record in a key-value; `None` for our own keys and for what others put under the prefix.
    pub(super) fn record(&self, kv: &KeyValue) -> Option<Record> {
        let key: Arc<str> = self.strip(kv.key())?.into();
        let (ordinal, expires_at, value) = decode(kv.value())?;
        Some(Record {
            version: self.version(kv.mod_revision(), ordinal),
            key,
            value: Bytes::copy_from_slice(value),
            expires_at,
        })
    }
}

pub(super) fn encode(ordinal: usize, expires_at: Option<u64>, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + value.len());
    out.extend(ordinal_prefix(ordinal as u64));
    out.extend_from_slice(&expires_at.unwrap_or(0).to_be_bytes());
    out.extend_from_slice(value);
    out
}

/// What every value with this ordinal starts with.
pub(super) fn ordinal_prefix(ordinal: u64) -> [u8; 3] {
    // Ordinals are below SLOTS, which fits.
    let [hi, lo] = (ordinal as u16).to_be_bytes();
    [FORMAT, hi, lo]
}

pub(super) fn decode(bytes: &[u8]) -> Option<(u64, Option<u64>, &[u8])> {
    if bytes.len() < HEADER || bytes[0] != FORMAT {
        return None;
    }
    let ordinal = u16::from_be_bytes([bytes[1], bytes[2]]).into();
    let expiry = u64::from_be_bytes(bytes[3..HEADER].try_into().ok()?);
    let expires_at = (expiry != 0).then_some(expiry);
    Some((ordinal, expires_at, &bytes[HEADER..]))
}

/// Whether a failed call may have had an effect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// Whether an answer was refused on our side for its size.
pub(super) fn answer_too_large(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if status.message().contains("message length too large"))
}

/// What an etcd error means to a caller.
pub(super) fn error(kind: Kind, error: &etcd_client::Error) -> StoreError {
    let text = error.to_string();
    let certain = [
        "tcp connect error",
        "Connection refused",
        "dns error",
        "no leader",
        "too many requests",
        "database space exceeded",
        "empty endpoints",
    ];
    if text.contains("request is too large") || text.contains("too many operations") {
        return StoreError::TooLarge(text);
    }
    if text.contains("duplicate key") {
        return StoreError::Invalid(text);
    }
    if kind == Kind::Read || certain.iter().any(|part| text.contains(part)) {
        return StoreError::Unavailable(format!("etcd: {text}"));
    }
    StoreError::Unknown(format!("etcd: {text}"))
}
