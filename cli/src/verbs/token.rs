//! `rota token create`: a token with which an agent joins the cluster.
//!
//! The token carries the hash of the cluster's CA, so that the agent can trust the server it finds;
//! the cluster keeps only a hash of the secret.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use rand::RngCore as _;
use rota_api::names::SYSTEM_NAMESPACE;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::Failure;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::time;

/// Type of the Secret that holds a token.
const SECRET_TYPE: &str = "bootstrap.rota.dev/token";
/// Random bytes of a token's id: enough never to meet another one.
const ID_BYTES: usize = 6;
/// Random bytes of the secret: not to be guessed.
const SECRET_BYTES: usize = 24;

/// Flags of `rota token`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum What {
    /// Make a token and print it
    Create {
        /// How long it can be used
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = time::duration)]
        ttl: Duration,
    },
}

/// A new token: what is printed, and the Secret that the server checks it against.
struct Token {
    text: String,
    secret: Value,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn make(ca: &[u8], id: &[u8], secret: &[u8], expires: Timestamp) -> Token {
    let (id, secret) = (hex(id), hex(secret));
    let hash = hex(&Sha256::digest(secret.as_bytes()));
    Token {
        text: format!("rota1.{}.{id}.{secret}", hex(&Sha256::digest(ca))),
        secret: json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": SYSTEM_NAMESPACE},
            "type": SECRET_TYPE,
            "data": {
                "hash": BASE64.encode(hash),
                "expiration": BASE64.encode(expires.to_string()),
            },
        }),
    }
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    let What::Create { ttl } = args.what;
    let remote = cx.remote().await?;
    let Some(ca) = remote.ca.first() else {
        return Err(CliError::new(
            "the kubeconfig does not name the cluster's CA, which the token must carry",
            "use the admin.kubeconfig that `rota up` or `rota server` wrote",
        ));
    };
    let seconds = i64::try_from(ttl.as_secs()).ok();
    let expires = seconds
        .filter(|s| *s > 0)
        .and_then(|s| Timestamp::from_second(Timestamp::now().as_second().checked_add(s)?).ok())
        .ok_or_else(|| CliError::new("--ttl must be at least a second and end within this era", "for example --ttl 24h"))?;
    let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
    rand::rng().fill_bytes(&mut id);
    rand::rng().fill_bytes(&mut secret);
    let token = make(ca, &id, &secret, expires);
    let collection = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets");
    remote.api.post(&collection, &token.secret).await.map_err(|e: Failure| {
        let missing = e.is_not_found();
        let e = CliError::from(e);
        if missing {
            e.with_remedy("this server has no namespace rota-system; tokens need a Rota API server")
        } else {
            e
        }
    })?;
    cx.print(&format!("{}\n", token.text))?;
    cx.say(&format!("valid until {expires}; use it with `rota agent --server URL --token TOKEN`"));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_secret_holds_only_a_hash() {
        let t = make(b"der", &[1; ID_BYTES], &[2; SECRET_BYTES], Timestamp::UNIX_EPOCH);
        let parts: Vec<&str> = t.text.split('.').collect();
        assert_eq!((parts.len(), parts[0], parts[1].len()), (4, "rota1", 64));
        assert_eq!(parts[2], "010101010101");
        assert_eq!(t.secret["metadata"]["name"], "bootstrap-token-010101010101");
        let hash = BASE64.decode(t.secret["data"]["hash"].as_str().unwrap()).unwrap();
        assert_eq!(hash, hex(&Sha256::digest(parts[3])).as_bytes());
        assert!(!t.secret.to_string().contains(parts[3]));
        let expires = BASE64.decode(t.secret["data"]["expiration"].as_str().unwrap()).unwrap();
        assert_eq!(expires, b"1970-01-01T00:00:00Z");
    }
}
