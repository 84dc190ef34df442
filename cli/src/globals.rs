//! Flags of every verb, and how they and the environment lead to a server.

use std::path::{Path, PathBuf};

use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::error::{CliError, Result};

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Flags that every verb accepts.
#[derive(Args, Clone, Debug, Default)]
pub struct Globals {
    /// Path of the kubeconfig file; otherwise $KUBECONFIG, ~/.kube/config, or the one that `rota up` wrote
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub context: Option<String>,
    /// Namespace; otherwise that of the context
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub namespace: Option<String>,
    /// Seconds to wait for an answer to a single request, 0 without end
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value_t = DEFAULT_REQUEST_TIMEOUT,
        help_heading = "Global options"
    )]
    pub request_timeout: u64,
    /// Colour the output; NO_COLOR in the environment turns `auto` off
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        help_heading = "Global options"
    )]
    pub color: ColorChoice,
    /// The whole command line of the binary, for `rota completion`; set by the binary.
    #[arg(skip)]
    pub root: Option<clap::Command>,
}

/// A server that is well answers any single request far sooner; watches and logs have no limit.
const DEFAULT_REQUEST_TIMEOUT: u64 = 60;

/// Where a kubeconfig comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    List(String),
    InCluster,
}

/// What the choice of a kubeconfig depends on.
struct Environment {
    kubeconfig: Option<String>,
    home: Option<PathBuf>,
    data_home: Option<PathBuf>,
    in_cluster: bool,
}

impl Environment {
    fn read() -> Self {
        let path = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        Environment {
            kubeconfig: std::env::var("KUBECONFIG").ok().filter(|v| !v.is_empty()),
            home: path("HOME"),
            data_home: path("XDG_DATA_HOME"),
            in_cluster: path("KUBERNETES_SERVICE_HOST").is_some(),
        }
    }

    /// The kubeconfig that `rota up` writes in its default data directory.
    fn rota_up(&self) -> Option<PathBuf> {
        let data = self
            .data_home
            .clone()
            .or_else(|| Some(self.home.as_ref()?.join(".local/share")))?;
        Some(data.join("rota/admin.kubeconfig"))
    }
}

/// Flag, then $KUBECONFIG, then the user's own file, then what `rota up` wrote, then the Pod's account.
fn choose(
    flag: Option<&Path>,
    env: &Environment,
    exists: impl Fn(&Path) -> bool,
) -> Result<Source> {
    if let Some(f) = flag {
        return if exists(f) {
            Ok(Source::File(f.into()))
        } else {
            Err(CliError::new(
                format!("kubeconfig {} does not exist", f.display()),
                "name an existing file with --kubeconfig; `rota up` prints the path of its own",
            ))
        };
    }
    if let Some(list) = &env.kubeconfig {
        return Ok(Source::List(list.clone()));
    }
    if let Some(own) = env.home.as_ref().map(|h| h.join(".kube/config"))
        && exists(&own)
    {
        return Ok(Source::File(own));
    }
    if let Some(up) = env.rota_up()
        && exists(&up)
    {
        return Ok(Source::File(up));
    }
    if env.in_cluster {
        return Ok(Source::InCluster);
    }
    Err(CliError::new(
        "no kubeconfig found: none of --kubeconfig, $KUBECONFIG, ~/.kube/config and the data directory of `rota up` has one",
        "start a cluster with `rota up`, or name a kubeconfig with --kubeconfig",
    ))
}

impl Globals {
    /// Configuration of the client: address, credentials, default namespace.
    pub async fn config(&self) -> Result<kube::Config> {
        let env = Environment::read();
        let source = choose(self.kubeconfig.as_deref(), &env, |p| p.is_file())?;
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let bad = |what: String| {
            move |e: kube::config::KubeconfigError| {
                CliError::new(
                    format!("{what}: {}", crate::client::innermost(&e)),
                    "check the file and --context with `kubectl config view`",
                )
            }
        };
        let (kubeconfig, named) = match source {
            Source::File(p) => {
                let named = format!("kubeconfig {}", p.display());
                (
                    Kubeconfig::read_from(&p).map_err(bad(named.clone()))?,
                    named,
                )
            }
            Source::List(list) => {
                let named = format!("$KUBECONFIG ({list})");
                let read = Kubeconfig::from_env().map_err(bad(named.clone()))?;
                let read = read.ok_or_else(|| {
                    CliError::new(
                        format!("{named} names no file that exists"),
                        "correct it, or unset it to use ~/.kube/config or the data directory of `rota up`",
                    )
                })?;
                (read, named)
            }
            Source::InCluster => {
                return kube::Config::incluster().map_err(|e| {
                    CliError::new(
                        format!("service account of this Pod: {e}"),
                        "name a kubeconfig with --kubeconfig",
                    )
                });
            }
        };
        kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(bad(named))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn env() -> Environment {
        Environment {
            kubeconfig: None,
            home: Some("/home/u".into()),
            data_home: None,
            in_cluster: false,
        }
    }

    #[test]
    fn the_kubeconfig_is_looked_for_in_the_documented_order() {
        let all = |_: &Path| true;
        let mut e = env();
        e.kubeconfig = Some("/a:/b".into());
        assert_eq!(
            choose(Some(Path::new("/x")), &e, all).unwrap(),
            Source::File("/x".into())
        );
        assert_eq!(choose(None, &e, all).unwrap(), Source::List("/a:/b".into()));
        e.kubeconfig = None;
        assert_eq!(
            choose(None, &e, all).unwrap(),
            Source::File("/home/u/.kube/config".into())
        );
        let up = |p: &Path| p.ends_with("rota/admin.kubeconfig");
        assert_eq!(
            choose(None, &e, up).unwrap(),
            Source::File("/home/u/.local/share/rota/admin.kubeconfig".into())
        );
        e.data_home = Some("/d".into());
        assert_eq!(
            choose(None, &e, up).unwrap(),
            Source::File("/d/rota/admin.kubeconfig".into())
        );
        e.in_cluster = true;
        assert_eq!(choose(None, &e, |_| false).unwrap(), Source::InCluster);
    }

    #[test]
    fn without_any_kubeconfig_the_remedy_is_rota_up() {
        let err = choose(None, &env(), |_| false).unwrap_err();
        assert!(err.remedy.contains("rota up"));
        assert!(choose(Some(Path::new("/x")), &env(), |_| false).is_err());
    }
}
