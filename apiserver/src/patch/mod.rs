//! Patches: from the current object and a patch body to the object wanted. Pure; admission, versions
//! and who may change what are the callers' business.

mod json;
mod merge;
mod strategic;
#[cfg(test)]
mod tests;

use rota_api::registry::{FieldError, Kind};
use serde_json::Value;

use crate::body;
use crate::error::{ApiError, ApiResult};

pub use merge::merge;

/// `Content-Type` of RFC 6902 patches.
pub const JSON_PATCH: &str = "application/json-patch+json";
/// `Content-Type` of RFC 7386 patches.
pub const MERGE_PATCH: &str = "application/merge-patch+json";
/// `Content-Type` of strategic merge patches.
pub const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";
/// `Content-Type` of server-side apply.
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// Most bytes of an object that a patch may build; a JSON patch can double with each `copy`.
const RESULT_MAX: usize = 3 * 1024 * 1024;

/// Applies a patch to `current`.
pub fn apply(kind: &Kind, content_type: &str, current: &Value, body: &[u8]) -> ApiResult<Value> {
    let media = content_type.split(';').next().unwrap_or("").trim();
    let result = match media {
        JSON_PATCH => {
            let ops = body::parse_json(body)?.value;
            json::apply(current, &ops).map_err(|e| e.about(kind, current))?
        }
        MERGE_PATCH => {
            let patch = object(body)?;
            let mut result = current.clone();
            merge(&mut result, patch);
            result
        }
        STRATEGIC_MERGE_PATCH if kind.core => {
            let patch = object(body)?;
            strategic::apply(current, patch).map_err(ApiError::bad_request)?
        }
        // Server-side apply needs managed fields, which this server does not keep yet; an apply
        // without them would take fields from other writers without a conflict.
        _ => return Err(ApiError::unsupported_media_type(accepted(kind))),
    };
    if !result.is_object() {
        return Err(
            Failure::invalid("", "the patched object must be an object").about(kind, current)
        );
    }
    Ok(result)
}

/// Patch types that a kind accepts.
pub fn accepted(kind: &Kind) -> &'static str {
    if kind.core {
        "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
    } else {
        "application/json-patch+json, application/merge-patch+json"
    }
}

fn object(bytes: &[u8]) -> ApiResult<Value> {
    let value = body::parse_json(bytes)?.value;
    if !value.is_object() {
        return Err(ApiError::bad_request(format!(
            "the patch must be an object, not {}",
            body::type_of(&value)
        )));
    }
    Ok(value)
}

/// Why a patch cannot be applied.
#[derive(Debug)]
enum Failure {
    /// 400: it is no patch.
    Malformed(String),
    /// 413: too long.
    TooLarge(String),
    /// 422: it does not fit the object.
    Invalid(FieldError),
}

impl Failure {
    fn invalid(field: &str, message: impl Into<String>) -> Self {
        Failure::Invalid(FieldError {
            reason: "FieldValueInvalid",
            field: if field.is_empty() {
                "patch".into()
            } else {
                field.into()
            },
            message: message.into(),
        })
    }

    fn about(self, kind: &Kind, current: &Value) -> ApiError {
        match self {
            Failure::Malformed(why) => ApiError::bad_request(why),
            Failure::TooLarge(why) => ApiError::too_large(why),
            Failure::Invalid(e) => {
                let name = current["metadata"]["name"].as_str().unwrap_or("");
                ApiError::invalid(kind.group, kind.kind, name, vec![e])
            }
        }
    }
}
