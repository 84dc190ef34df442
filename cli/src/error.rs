//! [`CliError`]: what a verb tells the user when it fails: one line of cause, one line of remedy.

use std::error::Error as _;
use std::io;

use serde_json::Value;

use crate::client::Failure;

/// Exit code of an error.
pub const EXIT_ERROR: u8 = 1;
/// Exit code of work that was accepted but cannot be placed now.
pub const EXIT_NOT_PLACED: u8 = 2;

/// Sorts of failure that callers tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorKind {
    /// None of the others.
    #[default]
    Other,
    /// Nobody reads our output any more: end without a word.
    BrokenPipe,
    /// No server answers.
    Unreachable,
    /// The server answered with this HTTP code.
    Status(u16),
}

/// A failure that ends a verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    /// What went wrong, one line.
    pub cause: String,
    /// What to do about it, one line; empty where there is nothing to say.
    pub remedy: String,
    /// Exit code.
    pub exit: u8,
    /// What sort of failure it is, for callers that react to it.
    pub kind: ErrorKind,
}

/// Result of most things here.
pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    /// A cause with a remedy.
    pub fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        CliError {
            cause: one_line(&cause.into()),
            remedy: one_line(&remedy.into()),
            exit: EXIT_ERROR,
            kind: ErrorKind::Other,
        }
    }

    /// Ends with this code and without a message; what there is to say was said already.
    pub fn exit(code: u8) -> Self {
        CliError {
            exit: code,
            ..CliError::new("", "")
        }
    }

    /// Whether nobody reads our output any more.
    pub fn is_broken_pipe(&self) -> bool {
        self.kind == ErrorKind::BrokenPipe
    }

    fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// The same with another exit code.
    pub fn with_exit(mut self, code: u8) -> Self {
        self.exit = code;
        self
    }

    /// The same with another remedy.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = one_line(&remedy.into());
        self
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for CliError {}

impl From<io::Error> for CliError {
    fn from(e: io::Error) -> Self {
        let mut err = CliError::new(format!("writing output: {e}"), "");
        if e.kind() == io::ErrorKind::BrokenPipe {
            err.kind = ErrorKind::BrokenPipe;
        }
        err
    }
}

impl From<Failure> for CliError {
    fn from(f: Failure) -> Self {
        match f {
            Failure::Status { code, body } => {
                from_status(code, &body).of_kind(ErrorKind::Status(code))
            }
            Failure::Transport { url, source } => {
                from_transport(&url, &source).of_kind(ErrorKind::Unreachable)
            }
            Failure::Timeout { url, seconds } => CliError::new(
                format!("no answer from {url} within {seconds} s"),
                "check that the server is well with `rota get --raw /readyz`, or raise --request-timeout",
            ),
            Failure::Other(message) => CliError::new(message, ""),
        }
    }
}

/// Joins lines, so that an error stays one line whatever a server wrote.
fn one_line(s: &str) -> String {
    s.split('\n')
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

fn from_status(code: u16, body: &Value) -> CliError {
    let reason = body["reason"].as_str().unwrap_or("");
    let message = match body["message"].as_str() {
        Some(m) if !m.is_empty() => m.to_string(),
        _ => format!("the server answered {code}"),
    };
    let cause = if reason.is_empty() {
        message
    } else {
        format!("{message} ({reason})")
    };
    let kind = body["details"]["kind"].as_str().unwrap_or("");
    let remedy = match (code, reason) {
        (401, _) => "the credentials of this context are not accepted; `rota up` writes a fresh admin.kubeconfig, name it with --kubeconfig".to_string(),
        (403, _) => "ask an administrator for the right, or use another user with --context".to_string(),
        (404, _) if !kind.is_empty() => format!("`rota get {kind}` lists what is there; -n names another namespace"),
        (404, _) => "the server does not serve this; `rota version` shows which server answers".to_string(),
        (409, "AlreadyExists") => "choose another name, or change the existing object with `rota apply`".to_string(),
        (409, _) => "someone else changed it at the same time; run the command again".to_string(),
        (410, _) => "the list has expired; run the command again".to_string(),
        (413, _) => "split the request into smaller objects".to_string(),
        (422, _) | (400, _) => "correct the field named above and try again".to_string(),
        (429, _) => "the server is busy; try again in a moment".to_string(),
        (503, _) | (504, _) => "the server is not ready or cannot reach the node now; try again in a moment".to_string(),
        (500.., _) => "this is a fault of the server; its log says more".to_string(),
        _ => String::new(),
    };
    CliError::new(cause, remedy)
}

fn from_transport(url: &str, source: &kube::Error) -> CliError {
    let mut text = source.to_string();
    let mut refused = false;
    let mut next: Option<&(dyn std::error::Error + 'static)> = source.source();
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            refused |= io.kind() == io::ErrorKind::ConnectionRefused;
        }
        text = e.to_string();
        next = e.source();
    }
    if refused || text.contains("onnection refused") {
        return CliError::new(
            format!("no API server at {url} (connection refused)"),
            "start one with `rota up`, or name another with --kubeconfig or --context",
        );
    }
    if text.contains("certificate") || text.contains("UnknownIssuer") {
        return CliError::new(
            format!("cannot trust the server at {url}: {text}"),
            "the kubeconfig belongs to another cluster or is out of date; name the right one with --kubeconfig",
        );
    }
    CliError::new(
        format!("cannot reach the API server at {url}: {text}"),
        "check the address in the kubeconfig and the network",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_becomes_cause_and_remedy_on_one_line_each() {
        let e = from_status(
            404,
            &json!({"reason": "NotFound", "message": "jobs.rota.dev \"pi\" not found", "details": {"kind": "jobs"}}),
        );
        assert_eq!(e.cause, "jobs.rota.dev \"pi\" not found (NotFound)");
        assert!(e.remedy.contains("rota get jobs"));
        let e = from_status(
            422,
            &json!({"reason": "Invalid", "message": "a\n b\n\n* c"}),
        );
        assert_eq!(e.cause, "a; b; * c (Invalid)");
        assert_eq!(
            from_status(502, &json!({})).cause,
            "the server answered 502"
        );
    }

    #[test]
    fn a_refused_connection_names_the_url_and_rota_up() {
        let io = io::Error::from(io::ErrorKind::ConnectionRefused);
        let e = from_transport(
            "https://127.0.0.1:7443/",
            &kube::Error::Service(Box::new(io)),
        );
        assert!(e.cause.contains("no API server at https://127.0.0.1:7443/"));
        assert!(e.remedy.contains("`rota up`"));
    }
}
