//! [`Fail`]: why a role ends, as one line of cause and one line of remedy.

use std::process::ExitCode;

/// A failure for the person who started the process.
#[derive(Debug)]
pub struct Fail {
    cause: String,
    remedy: String,
}

/// What roles return.
pub type Result<T> = std::result::Result<T, Fail>;

impl Fail {
    /// A cause and what can be done about it.
    pub fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Fail {
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    /// Tells it on stderr; the exit code.
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.cause);
        if !self.remedy.is_empty() {
            eprintln!("hint: {}", self.remedy);
        }
        ExitCode::FAILURE
    }
}

impl From<rota_apiserver::auth::pki::PkiError> for Fail {
    fn from(e: rota_apiserver::auth::pki::PkiError) -> Self {
        let text = e.to_string();
        match text.split_once("\nremedy: ") {
            Some((cause, remedy)) => Fail::new(cause, remedy),
            None => Fail::new(text, "check the directory's owner, mode and free space"),
        }
    }
}
