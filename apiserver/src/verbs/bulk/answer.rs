//! What each item is answered, and the result object of them all.

use std::fmt::Write as _;

use bytes::Bytes;
use rota_store::Version;
use serde::Deserialize;
use serde_json::json;

use crate::error::ApiResult;
use crate::server::Served;
use crate::storage::{Done, Outcome, Prepared};

/// An item that was done.
pub(super) enum Answer {
    /// The object as it is now, or its last state.
    Whole { bytes: Bytes, version: Version },
    /// Only what it is called and which version it has.
    Brief {
        code: u16,
        version: Version,
        removed: bool,
        name: String,
        uid: String,
    },
}

impl Answer {
    /// Version of the object, or of its removal.
    pub(super) fn version(&self) -> Version {
        match self {
            Answer::Whole { version, .. } | Answer::Brief { version, .. } => *version,
        }
    }

    /// From a verb's result.
    pub(super) fn new(done: Done, whole: bool) -> Self {
        if whole {
            return Answer::Whole {
                bytes: done.bytes,
                version: done.version,
            };
        }
        let (name, uid) = name_and_uid(&done.bytes);
        Answer::Brief {
            code: done.code,
            version: done.version,
            removed: done.removed,
            name,
            uid,
        }
    }

    /// From a write that was committed with these versions. `name`: the object's.
    pub(super) fn of(
        prepared: Prepared,
        name: &str,
        served: &Served,
        versions: &[Version],
        whole: bool,
    ) -> Self {
        match (&prepared.outcome, versions.first()) {
            // No ready bytes are made where nobody asked for them.
            (Outcome::Stored { code, uid, .. }, Some(version)) if !whole => Answer::Brief {
                code: *code,
                version: *version,
                removed: false,
                name: name.to_string(),
                uid: uid.to_string(),
            },
            _ => Answer::new(prepared.done(served, versions), whole),
        }
    }
}

/// The result object, with one entry per item in their order.
pub(super) fn render(answers: Vec<ApiResult<Answer>>) -> String {
    let mut out = String::with_capacity(answers.len() * 200 + 64);
    out.push_str(r#"{"kind":"BulkResult","apiVersion":"rota.dev/v1","items":["#);
    for (i, answer) in answers.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        match answer {
            Err(e) => out.push_str(&e.status().to_string()),
            Ok(Answer::Whole { bytes, .. }) => {
                out.push_str(std::str::from_utf8(&bytes).unwrap_or("null"));
            }
            Ok(Answer::Brief {
                code,
                version,
                removed,
                name,
                uid,
            }) => {
                let reason = if removed {
                    r#","reason":"Removed""#
                } else {
                    ""
                };
                // Writing to a String cannot fail.
                let _ = write!(
                    out,
                    r#"{{"kind":"Status","apiVersion":"v1","status":"Success"{reason},"code":{code},"metadata":{{"resourceVersion":"{version}"}},"details":{{"name":{},"uid":{}}}}}"#,
                    json!(name),
                    json!(uid)
                );
            }
        }
    }
    out.push_str("]}");
    out
}

fn name_and_uid(bytes: &[u8]) -> (String, String) {
    #[derive(Deserialize)]
    struct Meta {
        #[serde(default)]
        name: String,
        #[serde(default)]
        uid: String,
    }
    #[derive(Deserialize)]
    struct Head {
        metadata: Meta,
    }
    serde_json::from_slice::<Head>(bytes)
        .map(|h| (h.metadata.name, h.metadata.uid))
        .unwrap_or_default()
}
