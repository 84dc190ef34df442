//! Who the agent is: joining by token, the certificate files, their renewal.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, DnType, KeyPair};
use rota_api::names::{GROUP_NODES, USER_NODE_PREFIX};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{AgentConfig, AgentError, Credential};
use crate::servers::{Server, Servers};

/// Longest wait for one server's answer while joining or renewing.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Certificate files of the agent, and the servers that it shows them to.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The servers.
    pub servers: Arc<Servers>,
    /// CA, PEM file; absent for servers without TLS (tests only: nothing serves so).
    pub ca: Option<PathBuf>,
    /// Certificate, PEM file.
    pub certificate: PathBuf,
    /// Key, PEM file.
    pub key: PathBuf,
}

fn join_error(e: impl std::fmt::Display) -> AgentError {
    AgentError::Join(e.to_string())
}

/// Finds or obtains the agent's identity.
pub async fn obtain(config: &AgentConfig, servers: Arc<Servers>) -> Result<Identity, AgentError> {
    let stored = Identity {
        servers,
        ca: Some(config.data_dir.join("ca.crt")),
        certificate: config.data_dir.join("agent.crt"),
        key: config.data_dir.join("agent.key"),
    };
    if !stored.servers.tls() {
        return Ok(Identity { ca: None, ..stored });
    }
    let with_ca = |mut i: Identity| {
        if let Some(ca) = &config.ca {
            i.ca = Some(ca.clone());
        }
        i
    };
    match &config.credential {
        Credential::Files { certificate, key } => Ok(with_ca(Identity {
            certificate: certificate.clone(),
            key: key.clone(),
            ..stored
        })),
        Credential::Stored => {
            if !stored.certificate.is_file() {
                return Err(AgentError::Config(format!(
                    "{} does not exist; start the agent with --token (made by `rota token create`)",
                    stored.certificate.display()
                )));
            }
            Ok(with_ca(stored))
        }
        Credential::Token(token) => {
            let stored = with_ca(stored);
            if life(&stored.certificate).is_some_and(|l| l.left > Duration::ZERO) {
                return Ok(stored);
            }
            join(config, &stored, token).await?;
            Ok(stored)
        }
    }
}

async fn join(config: &AgentConfig, identity: &Identity, token: &str) -> Result<(), AgentError> {
    let parts: Vec<&str> = token.trim().split('.').collect();
    let ["rota1", hash, id, secret] = parts[..] else {
        return Err(AgentError::Config(
            "the token is not of the form rota1.<hash>.<id>.<secret>; make one with `rota token create`".into(),
        ));
    };
    let (key, csr) = request_for(&config.name)?;
    let tls = pinned(hash)?;
    let secret = format!("Bearer {id}.{secret}");
    let answer = certificate(&identity.servers, &tls, &csr, Some(&secret)).await?;
    let ca = answer["ca"].as_str().unwrap_or_default();
    let der = CertificateDer::from_pem_slice(ca.as_bytes())
        .map_err(|_| AgentError::Join("the server sent no CA certificate".into()))?;
    if hex(&Sha256::digest(&der)) != hash.to_lowercase() {
        return Err(AgentError::Join(
            "the server's CA is not the one that the token names".into(),
        ));
    }
    if let Some(path) = &identity.ca {
        write_private(path, ca.as_bytes())?;
    }
    write_private(&identity.key, key.as_bytes())?;
    write_private(
        &identity.certificate,
        answer["certificate"]
            .as_str()
            .unwrap_or_default()
            .as_bytes(),
    )
}

/// Replaces the certificate by a new one; the key changes too.
pub async fn renew(name: &str, identity: &Identity) -> Result<(), AgentError> {
    let (key, csr) = request_for(name)?;
    let tls = client_config(identity)?;
    let answer = certificate(&identity.servers, &tls, &csr, None).await?;
    let certificate = answer["certificate"]
        .as_str()
        .ok_or_else(|| AgentError::Join("the server sent no certificate".into()))?;
    // Both new files are complete before either replaces its old one.
    let next = |p: &Path| p.with_extension("new");
    write_private(&next(&identity.key), key.as_bytes())?;
    write_private(&next(&identity.certificate), certificate.as_bytes())?;
    for path in [&identity.key, &identity.certificate] {
        std::fs::rename(next(path), path).map_err(AgentError::file(path))?;
    }
    Ok(())
}

fn request_for(name: &str) -> Result<(String, String), AgentError> {
    let key = KeyPair::generate().map_err(join_error)?;
    let mut params = CertificateParams::new(Vec::<String>::new()).map_err(join_error)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{USER_NODE_PREFIX}{name}"));
    params
        .distinguished_name
        .push(DnType::OrganizationName, GROUP_NODES);
    let csr = params.serialize_request(&key).map_err(join_error)?;
    Ok((key.serialize_pem(), csr.pem().map_err(join_error)?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(AgentError::file(path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(AgentError::file(path))
}

/// How long a certificate lives and has left.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Until the end; zero when it is over.
    pub left: Duration,
    /// Until it should be renewed: at two thirds.
    pub renew_in: Duration,
}

/// Life of the certificate in a file, if there is one.
pub fn life(path: &Path) -> Option<Life> {
    let pem = std::fs::read(path).ok()?;
    let der = CertificateDer::from_pem_slice(&pem).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let (from, to) = (
        certificate.validity().not_before.timestamp(),
        certificate.validity().not_after.timestamp(),
    );
    let now = jiff::Timestamp::now().as_second();
    let seconds = |n: i64| Duration::from_secs(n.max(0) as u64);
    Some(Life {
        left: seconds(to - now),
        renew_in: seconds(from + (to - from) / 3 * 2 - now),
    })
}

/// TLS configuration with the agent's certificate.
pub fn client_config(identity: &Identity) -> Result<ClientConfig, AgentError> {
    let client = |e: &dyn std::fmt::Display| AgentError::Client(e.to_string());
    let mut roots = RootCertStore::empty();
    if let Some(path) = &identity.ca {
        let pem = std::fs::read(path).map_err(AgentError::file(path))?;
        for der in CertificateDer::pem_slice_iter(&pem) {
            roots
                .add(der.map_err(|e| client(&e))?)
                .map_err(|e| client(&e))?;
        }
    }
    let pem =
        std::fs::read(&identity.certificate).map_err(AgentError::file(&identity.certificate))?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| client(&e))?;
    let key = PrivateKeyDer::from_pem_file(&identity.key).map_err(|e| client(&e))?;
    builder()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| client(&e))
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, AgentError> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| AgentError::Client(e.to_string()))
}

/// Trusts exactly the CA whose hash the token names, found in the chain that the server sends.
#[derive(Debug)]
struct Pinned {
    hash: String,
    schemes: Vec<rustls::SignatureScheme>,
}

fn pinned(hash: &str) -> Result<ClientConfig, AgentError> {
    let provider = rustls::crypto::ring::default_provider();
    let verifier = Pinned {
        hash: hash.to_lowercase(),
        schemes: provider
            .signature_verification_algorithms
            .supported_schemes(),
    };
    Ok(builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|c| hex(&Sha256::digest(c)) == self.hash)
            .ok_or_else(|| {
                rustls::Error::General(
                    "the server does not show the CA that the token names; is the token from this cluster?".into(),
                )
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::ring::default_provider();
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::ring::default_provider();
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.schemes.clone()
    }
}

/// Asks for a certificate: each server in turn, until one gives it.
async fn certificate(
    servers: &Servers,
    tls: &ClientConfig,
    csr: &str,
    authorization: Option<&str>,
) -> Result<serde_json::Value, AgentError> {
    let mut reasons = Vec::new();
    for server in servers.in_turn() {
        let exchange = post(server, tls.clone(), csr, authorization);
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(e)) => reasons.push(format!("{}: {e}", server.url)),
            Err(_) => reasons.push(format!(
                "{}: no answer within {} s",
                server.url,
                TIMEOUT.as_secs()
            )),
        }
    }
    Err(AgentError::Join(reasons.join("; ")))
}

async fn post(
    server: &Server,
    tls: ClientConfig,
    csr: &str,
    authorization: Option<&str>,
) -> Result<serde_json::Value, Box<dyn std::error::Error + Send + Sync>> {
    let (host, port) = (server.host.as_str(), server.port);
    let tcp = TcpStream::connect((host, port)).await?;
    let name = ServerName::try_from(host.to_string())?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    hyper::rt::Executor::execute(&TokioExecutor::new(), async {
        let _ = connection.await; // its error is the exchange's error
    });
    let mut request = http::Request::post("/rota/v1/certificates")
        .header("host", format!("{host}:{port}"))
        .header("content-type", "application/json");
    if let Some(a) = authorization {
        request = request.header("authorization", a);
    }
    let body = serde_json::json!({ "csr": csr }).to_string();
    let request = request.body(Full::new(bytes::Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    if !status.is_success() {
        let why = answer["message"].as_str().unwrap_or("no reason given");
        return Err(format!("the server answered {status}: {why}").into());
    }
    Ok(answer)
}
