//! What an agent is told at its start, and what can go wrong with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use rota_api::kinds::Resources;

/// How the agent proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Certificate and key files; renewed in place at two thirds of their life.
    Files {
        /// Certificate, PEM.
        certificate: PathBuf,
        /// Key, PEM.
        key: PathBuf,
    },
    /// Join token `rota1.<sha256 of the CA>.<id>.<secret>`; only used when the data directory
    /// holds no valid certificate yet.
    Token(String),
    /// The certificate of an earlier run in the data directory.
    Stored,
}

/// What happens to tasks when the agent is told to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// They are stopped first.
    #[default]
    Stop,
    /// They run on under the supervisor.
    Keep,
}

/// An agent's configuration.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// URLs of the API servers, at least one, all of one scheme; the first is used until it does
    /// not answer.
    pub servers: Vec<String>,
    /// CA certificate file; not needed with a token.
    pub ca: Option<PathBuf>,
    /// Identity.
    pub credential: Credential,
    /// Name of the Node.
    pub name: String,
    /// Where certificates, task directories and supervisors live.
    pub data_dir: PathBuf,
    /// Overrides of what the machine has.
    pub resources: Resources,
    /// Further labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Pool of the Node.
    pub pool: Option<String>,
    /// What happens to tasks at the end.
    pub on_exit: OnExit,
    /// Command that runs a supervisor, such as `rota supervisor`; its flags are appended.
    pub supervisor: Vec<OsString>,
    /// Use control groups where the host allows it.
    pub control_groups: bool,
}

impl AgentConfig {
    /// A configuration with the defaults for everything that has one.
    pub fn new(
        servers: impl IntoIterator<Item = impl Into<String>>,
        name: &str,
        data_dir: PathBuf,
        supervisor: Vec<OsString>,
    ) -> Self {
        AgentConfig {
            servers: servers.into_iter().map(Into::into).collect(),
            ca: None,
            credential: Credential::Stored,
            name: name.to_string(),
            data_dir,
            resources: Resources::new(),
            labels: BTreeMap::new(),
            pool: None,
            on_exit: OnExit::default(),
            supervisor,
            control_groups: true,
        }
    }
}

/// Why an agent ends in error. The message holds cause and remedy.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// A file of the data directory.
    #[error("{path}: {source}")]
    File {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Another agent works with the data directory.
    #[error("another agent uses {0}; stop it, or give this one its own data directory")]
    Busy(PathBuf),
    /// The supervisor.
    #[error("the supervisor cannot be used: {0}")]
    Supervisor(String),
    /// Joining the cluster.
    #[error("joining failed: {0}")]
    Join(String),
    /// The client cannot be built.
    #[error("the API client cannot be set up: {0}")]
    Client(String),
}

impl AgentError {
    /// For `map_err` on file operations.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> AgentError {
        let path = path.into();
        move |source| AgentError::File { path, source }
    }
}
