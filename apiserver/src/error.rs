//! [`ApiError`]: every failure that a client sees, as an exact `v1 Status`.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use rota_api::registry::FieldError;
use serde_json::{Value, json};

/// A failure with everything its Status needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP code.
    pub code: u16,
    /// Machine word that drives clients, such as `NotFound`.
    pub reason: &'static str,
    /// One line for people; kubectl prints it as it is.
    pub message: String,
    /// Status details: name, group, kind (plural), uid, causes, retryAfterSeconds.
    pub details: Option<Box<Details>>,
    /// Token that resumes an expired list inconsistently.
    pub continue_token: Option<String>,
}

/// Details of a Status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Object name.
    pub name: String,
    /// API group.
    pub group: String,
    /// Plural resource name.
    pub kind: String,
    /// What was wrong where.
    pub causes: Vec<Cause>,
    /// Seconds after which another try makes sense.
    pub retry_after_seconds: Option<u32>,
}

/// One cause.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// Machine word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Path of the field, empty without.
    pub field: String,
}

impl From<FieldError> for Cause {
    fn from(e: FieldError) -> Self {
        Cause {
            reason: e.reason.into(),
            message: e.message,
            field: e.field,
        }
    }
}

/// Short for results of verbs.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// A failure without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            code,
            reason,
            message: message.into(),
            details: None,
            continue_token: None,
        }
    }

    /// Adds details, keeping those that are there.
    pub fn with(mut self, edit: impl FnOnce(&mut Details)) -> Self {
        edit(self.details.get_or_insert_with(Box::default));
        self
    }

    /// About this object.
    pub fn about(self, group: &str, plural: &str, name: &str) -> Self {
        self.with(|d| {
            d.group = group.into();
            d.kind = plural.into();
            d.name = name.into();
        })
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 404 `jobs.rota.dev "x" not found`.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} {name:?} not found", qualified(group, plural)),
        )
        .about(group, plural, name)
    }

    /// 404 for a path that is no resource.
    pub fn no_resource() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    /// 409 on create.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::new(
            409,
            "AlreadyExists",
            format!("{} {name:?} already exists", qualified(group, plural)),
        )
        .about(group, plural, name)
    }

    /// 409 on a lost race or a failed precondition.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {} {name:?}: {why}",
                qualified(group, plural)
            ),
        )
        .about(group, plural, name)
    }

    /// 409 with the usual text of a stale resourceVersion.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(
            group,
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with causes.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let texts: Vec<String> = errors
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect();
        let list = match texts.len() {
            1 => texts[0].clone(),
            _ => format!("[{}]", texts.join(", ")),
        };
        let of = if group.is_empty() {
            kind.to_string()
        } else {
            format!("{kind}.{group}")
        };
        Self::new(422, "Invalid", format!("{of} {name:?} is invalid: {list}")).with(|d| {
            d.group = group.into();
            d.kind = kind.into();
            d.name = name.into();
            d.causes = errors.into_iter().map(Cause::from).collect();
        })
    }

    /// 403 with the usual text.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let of = qualified(group, plural);
        let message = if name.is_empty() {
            format!("{of} is forbidden: {why}")
        } else {
            format!("{of} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(group, plural, name)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {accepted}"),
        )
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 410 when history is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 504 when a version has not happened yet.
    pub fn version_too_large(wanted: u64, current: u64) -> Self {
        Self::new(
            504,
            "Timeout",
            format!("Too large resource version: {wanted}, current: {current}"),
        )
        .with(|d| {
            d.causes = vec![Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                field: String::new(),
            }];
            d.retry_after_seconds = Some(1);
        })
    }

    /// 503 with Retry-After.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message).with(|d| d.retry_after_seconds = Some(1))
    }

    /// 429 with Retry-After.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).with(|d| d.retry_after_seconds = Some(seconds))
    }

    /// 500: a defect of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {}", message.into()),
        )
    }

    /// The `v1 Status` object.
    pub fn status(&self) -> Value {
        let mut metadata = json!({});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = json!(token);
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(d) = &self.details {
            let mut details = serde_json::Map::new();
            for (key, value) in [("name", &d.name), ("group", &d.group), ("kind", &d.kind)] {
                if !value.is_empty() {
                    details.insert(key.into(), json!(value));
                }
            }
            if !d.causes.is_empty() {
                let causes: Vec<Value> = d
                    .causes
                    .iter()
                    .map(|c| {
                        let mut v = json!({"reason": c.reason, "message": c.message});
                        if !c.field.is_empty() {
                            v["field"] = json!(c.field);
                        }
                        v
                    })
                    .collect();
                details.insert("causes".into(), json!(causes));
            }
            if let Some(s) = d.retry_after_seconds {
                details.insert("retryAfterSeconds".into(), json!(s));
            }
            status["details"] = Value::Object(details);
        }
        status
    }
}

/// `jobs.rota.dev` or `nodes`.
pub fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() {
        plural.to_string()
    } else {
        format!("{plural}.{group}")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (code, self.status().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(s) = self.details.as_ref().and_then(|d| d.retry_after_seconds)
            && let Ok(v) = HeaderValue::from_str(&s.to_string())
        {
            headers.insert(header::RETRY_AFTER, v);
        }
        response
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.reason)
    }
}
impl std::error::Error for ApiError {}
