//! [`Context`]: what a verb works with: the server, made on first use, and the two output streams.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::client::Api;
use crate::discovery::Discovery;
use crate::error::{CliError, Result};
use crate::globals::{ColorChoice, Globals};

/// A server and what its kubeconfig says about it.
#[derive(Clone)]
pub struct Remote {
    /// Requests.
    pub api: Api,
    /// Namespace of the context.
    pub namespace: String,
    /// The cluster's CA certificates in DER, as the kubeconfig names them.
    pub ca: Vec<Vec<u8>>,
}

/// What a verb works with.
pub struct Context {
    /// Flags.
    pub globals: Globals,
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
    /// Stdout is a terminal.
    pub out_tty: bool,
    /// Stderr is a terminal.
    pub err_tty: bool,
    remote: OnceCell<Remote>,
    discovery: Mutex<Option<Arc<Discovery>>>,
}

/// Output kept in memory, for tests and for callers that print it themselves.
#[derive(Clone, Default)]
pub struct Capture(Arc<Mutex<Vec<u8>>>);

impl Capture {
    /// What was written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl Write for Capture {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Context {
    /// On this process's stdout and stderr.
    pub fn new(globals: Globals) -> Self {
        Context {
            out: Mutex::new(Box::new(io::stdout())),
            err: Mutex::new(Box::new(io::stderr())),
            out_tty: io::stdout().is_terminal(),
            err_tty: io::stderr().is_terminal(),
            globals,
            remote: OnceCell::new(),
            discovery: Mutex::new(None),
        }
    }

    /// On a given client and given streams, none of them a terminal.
    pub fn with_client(
        globals: Globals,
        client: kube::Client,
        out: impl Write + Send + 'static,
        err: impl Write + Send + 'static,
    ) -> Self {
        let namespace = client.default_namespace().to_string();
        let timeout = request_timeout(&globals);
        let remote = Remote {
            api: Api::new(client, "the API server".into(), timeout),
            namespace,
            ca: Vec::new(),
        };
        Context {
            out: Mutex::new(Box::new(out)),
            err: Mutex::new(Box::new(err)),
            out_tty: false,
            err_tty: false,
            globals,
            remote: OnceCell::new_with(Some(remote)),
            discovery: Mutex::new(None),
        }
    }

    /// The server.
    pub async fn remote(&self) -> Result<&Remote> {
        self.remote
            .get_or_try_init(|| async {
                let mut config = self.globals.config().await?;
                // `Api` retries within its own bounds.
                config.default_retry = false;
                let url = config.cluster_url.to_string();
                let namespace = config.default_namespace.clone();
                let ca = config.root_cert.clone().unwrap_or_default();
                let client = kube::Client::try_from(config).map_err(|e| {
                    CliError::new(
                        format!("credentials for {url}: {}", crate::client::innermost(&e)),
                        "check the user of this context in the kubeconfig",
                    )
                })?;
                Ok(Remote {
                    api: Api::new(client, url, request_timeout(&self.globals)),
                    namespace,
                    ca,
                })
            })
            .await
    }

    /// Requests to the server.
    pub async fn api(&self) -> Result<&Api> {
        Ok(&self.remote().await?.api)
    }

    /// The namespace to work in: -n, else the context's.
    pub async fn namespace(&self) -> Result<String> {
        match &self.globals.namespace {
            Some(n) => Ok(n.clone()),
            None => Ok(self.remote().await?.namespace.clone()),
        }
    }

    /// What the server serves; asked once.
    pub async fn discovery(&self) -> Result<Arc<Discovery>> {
        if let Some(d) = self.discovery.lock().clone() {
            return Ok(d);
        }
        self.refresh_discovery().await
    }

    /// Asks again what the server serves.
    pub async fn refresh_discovery(&self) -> Result<Arc<Discovery>> {
        let d = Arc::new(Discovery::load(self.api().await?).await?);
        *self.discovery.lock() = Some(d.clone());
        Ok(d)
    }

    /// Writes a result to stdout.
    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = self.out.lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Writes a line of bytes to stdout as it is, after a prefix.
    pub fn print_line(&self, prefix: &str, line: &[u8]) -> Result<()> {
        let mut whole = Vec::with_capacity(prefix.len() + line.len() + 1);
        whole.extend_from_slice(prefix.as_bytes());
        whole.extend_from_slice(line);
        whole.push(b'\n');
        let mut out = self.out.lock();
        out.write_all(&whole)?;
        out.flush()?;
        Ok(())
    }

    /// Writes a line of talk to stderr; a closed stderr is no reason to stop.
    pub fn say(&self, line: &str) {
        let mut err = self.err.lock();
        let _ = writeln!(err, "{line}");
    }

    /// Whether stdout is coloured.
    pub fn color(&self) -> bool {
        self.wants_color(self.out_tty)
    }

    fn wants_color(&self, tty: bool) -> bool {
        match self.globals.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                tty && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                    && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
            }
        }
    }

    /// Tells of a failure: cause and remedy, a line each.
    pub fn report(&self, e: &CliError) {
        if e.is_broken_pipe() || e.cause.is_empty() {
            return;
        }
        let color = self.wants_color(self.err_tty);
        let (red, cyan, off) = if color {
            ("\x1b[31m", "\x1b[36m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        self.say(&format!("{red}error:{off} {}", e.cause));
        if !e.remedy.is_empty() {
            self.say(&format!("{cyan}hint:{off} {}", e.remedy));
        }
    }
}

fn request_timeout(globals: &Globals) -> Option<Duration> {
    (globals.request_timeout > 0).then(|| Duration::from_secs(globals.request_timeout))
}
