//! One file per verb, generic over kinds.

pub mod ask;
pub mod bulk;
pub mod create;
pub mod delete;
pub mod logs;
pub mod read;
pub mod scale;
pub mod selectors;
pub mod update;
pub mod watch;

use crate::error::{ApiError, ApiResult};
use crate::request::Query;

/// Options that all writing verbs share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Validate and answer as if, store nothing.
    pub dry_run: bool,
    /// What happens to unknown and duplicate fields.
    pub field_validation: FieldValidation,
}

/// The fieldValidation parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Prune silently.
    Ignore,
    /// Prune and warn.
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

impl WriteOptions {
    /// From the query; wrong values are 422 as in Kubernetes.
    pub fn parse(query: &Query) -> ApiResult<Self> {
        let invalid = |key: &str, value: &str, supported: &str| {
            ApiError::new(
                422,
                "Invalid",
                format!("{key}: Unsupported value: {value:?}: supported values: {supported}"),
            )
        };
        let dry_run = match query.get("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => return Err(invalid("dryRun", other, "\"All\"")),
        };
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(invalid(
                    "fieldValidation",
                    other,
                    "\"Ignore\", \"Warn\", \"Strict\"",
                ));
            }
        };
        if query.get("fieldManager").is_some_and(|m| m.len() > 128) {
            return Err(ApiError::new(
                422,
                "Invalid",
                "fieldManager: Too long: may not be longer than 128",
            ));
        }
        Ok(WriteOptions {
            dry_run,
            field_validation,
        })
    }
}
