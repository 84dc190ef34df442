//! Logs: to stderr, chosen by RUST_LOG, as JSON when ROTA_LOG_FORMAT=json.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// What servers say without RUST_LOG: our own news, and of libraries only what went wrong.
const SERVER_DEFAULT: &str = "warn,rota=info,rota_apiserver=info,rota_controllers=info,rota_agent=info,rota_store=info,rota_scheduler=info";
/// Verbs tell the user themselves what went wrong.
const VERB_DEFAULT: &str = "off";

/// Starts logging for a server role or for a verb.
pub fn start(server_role: bool) {
    let default = if server_role {
        SERVER_DEFAULT
    } else {
        VERB_DEFAULT
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    // A second start (tests) keeps the first.
    let _ = if std::env::var("ROTA_LOG_FORMAT").is_ok_and(|v| v == "json") {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
}
