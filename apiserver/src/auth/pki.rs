//! The cluster's own certificate authority: its files, the server's certificate, client
//! certificates and kubeconfigs.
//!
//! Promises: every private file is created exclusively with mode 0600 in a 0700 directory and is
//! complete when it appears under its name (written beside, synced, then linked); a file that
//! others could read or write is refused with the command that mends it; running [`Pki::ensure`]
//! again changes nothing unless the server certificate is about to expire or lacks a wanted name.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Life of the authority: longer than a cluster stays without an operator's look.
pub const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of the server certificate; renewed at start when a third is left.
pub const SERVER_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Life of the administrator's certificate in the kubeconfig, written anew by each start.
pub const ADMIN_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Life of a node certificate; the agent renews at two thirds.
pub const NODE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far certificates are dated back, so that a peer whose clock is a little slow accepts them.
const BACKDATE: Duration = Duration::from_secs(3600);

/// Why the authority's files cannot be used. The text has the cause and, after it, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// Such as `read`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read or write a file that must be private.
    #[error(
        "{} has mode {mode:04o}, which lets other users in\nremedy: check who used it, then chmod {wanted:o} {}",
        path.display(), path.display()
    )]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The widest mode accepted.
        wanted: u32,
    },
    /// A file is not what it should be.
    #[error(
        "{} is damaged: {why}\nremedy: restore it from a backup; if there is none, move the whole directory {} away to make a new authority (every node must join again)",
        path.display(), path.parent().unwrap_or(Path::new(".")).display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A name cannot stand in a certificate.
    #[error("{0:?} cannot be a name in the server certificate")]
    Name(String),
    /// The cryptographic library refused.
    #[error("cannot make a certificate: {0}")]
    Crypto(String),
}

impl From<rcgen::Error> for PkiError {
    fn from(e: rcgen::Error) -> Self {
        PkiError::Crypto(e.to_string())
    }
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key (PKCS 8).
    pub key: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issued { .. }")
    }
}

/// The authority, loaded, with a server certificate that is valid now.
pub struct Pki {
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    server: Issued,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pki {{ ca: {} }}", self.ca_hash())
    }
}

impl Pki {
    /// Loads the authority in `dir`, or makes it. The server certificate always names 127.0.0.1,
    /// ::1 and localhost; `sans` adds host names and addresses.
    pub fn ensure(dir: &Path, sans: &[String]) -> Result<Pki, PkiError> {
        private_dir(dir)?;
        let (ca_key_path, ca_path) = (dir.join("ca.key"), dir.join("ca.crt"));
        // The key comes first: a start that died between the two continues with the same key.
        let key = match read_private(&ca_key_path, 0o600)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|e| PkiError::Damaged {
                path: ca_key_path.clone(),
                why: e.to_string(),
            })?,
            None if ca_path.exists() => {
                return Err(PkiError::Damaged {
                    path: ca_key_path,
                    why: "it is missing, but the authority's certificate is there".into(),
                });
            }
            None => {
                let key = new_key()?;
                write_private(&ca_key_path, key.serialize_pem().as_bytes(), false)?;
                key
            }
        };
        let ca_pem = match read_private(&ca_path, 0o644)? {
            Some(pem) => pem,
            None => {
                let pem = ca_params(&key)?.self_signed(&key)?.pem();
                write_private(&ca_path, pem.as_bytes(), false)?;
                pem
            }
        };
        let damaged = |why: String| PkiError::Damaged {
            path: ca_path.clone(),
            why,
        };
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|e| damaged(e.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&ca_der).map_err(|e| damaged(e.to_string()))?;
        if parsed.public_key().subject_public_key.data != key.der_bytes() {
            return Err(damaged("it does not belong to ca.key".into()));
        }
        if !parsed.is_ca() {
            return Err(damaged("it is not the certificate of an authority".into()));
        }
        if parsed.validity().not_after.timestamp() <= unix_now() as i64 {
            return Err(damaged("it has expired".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&ca_der, key)?;
        let server = ensure_server(dir, &issuer, &ca_der, sans)?;
        Ok(Pki {
            ca_pem,
            ca_der,
            issuer,
            server,
        })
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's certificate, DER.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// Hex SHA-256 of the authority's certificate: the second part of a join token.
    pub fn ca_hash(&self) -> String {
        hex(&Sha256::digest(&self.ca_der))
    }

    /// The server's certificate and key.
    pub fn server(&self) -> &Issued {
        &self.server
    }

    /// A new key and client certificate for a user and its group.
    pub fn issue_client(
        &self,
        user: &str,
        group: &str,
        life: Duration,
    ) -> Result<Issued, PkiError> {
        let key = new_key()?;
        let certificate = self.sign_client(&key, user, group, life)?;
        Ok(Issued {
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// A client certificate for someone else's public key, PEM. The subject is what is given
    /// here; nothing of a request but its key is taken over.
    pub fn sign_client(
        &self,
        key: &impl PublicKeyData,
        user: &str,
        group: &str,
        life: Duration,
    ) -> Result<String, PkiError> {
        let mut params = leaf_params(life);
        params.distinguished_name.push(DnType::CommonName, user);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// A kubeconfig with everything embedded.
    pub fn kubeconfig(&self, server_url: &str, user: &str, issued: &Issued) -> String {
        let mut out = String::with_capacity(8192);
        // Only the URL and the user name are not base64; JSON strings are YAML strings.
        let quoted = |s: &str| serde_json::Value::String(s.into()).to_string();
        let _ = write!(
            out,
            "apiVersion: v1\nkind: Config\nclusters:\n- name: rota\n  cluster:\n    server: {}\n    certificate-authority-data: {}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: rota\n  context:\n    cluster: rota\n    user: {user}\ncurrent-context: rota\npreferences: {{}}\n",
            quoted(server_url),
            BASE64.encode(&self.ca_pem),
            BASE64.encode(&issued.certificate),
            BASE64.encode(&issued.key),
            user = quoted(user),
        );
        out
    }
}

fn ensure_server(
    dir: &Path,
    issuer: &Issuer<'static, KeyPair>,
    ca: &CertificateDer<'static>,
    extra: &[String],
) -> Result<Issued, PkiError> {
    let (key_path, crt_path) = (dir.join("server.key"), dir.join("server.crt"));
    let mut wanted = vec!["127.0.0.1".to_string(), "::1".into(), "localhost".into()];
    for name in extra {
        if !wanted.contains(name) {
            wanted.push(name.clone());
        }
    }
    if let (Some(key), Some(certificate)) = (
        read_private(&key_path, 0o600)?,
        read_private(&crt_path, 0o644)?,
    ) && still_good(&certificate, &key, ca, &wanted)
    {
        return Ok(Issued { certificate, key });
    }
    let mut params = leaf_params(SERVER_LIFE);
    params
        .distinguished_name
        .push(DnType::CommonName, "rota-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = wanted
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => name
                .as_str()
                .try_into()
                .map(SanType::DnsName)
                .map_err(|_| PkiError::Name(name.clone())),
        })
        .collect::<Result<_, _>>()?;
    let key = new_key()?;
    let issued = Issued {
        certificate: params.signed_by(&key, issuer)?.pem(),
        key: key.serialize_pem(),
    };
    // A crash between the two leaves a pair that does not match; `still_good` sees that.
    write_private(&key_path, issued.key.as_bytes(), true)?;
    write_private(&crt_path, issued.certificate.as_bytes(), true)?;
    Ok(issued)
}

/// Whether a server certificate can go on: parses, belongs to its key and our authority, has a
/// third of its life left and names everything wanted.
fn still_good(pem: &str, key_pem: &str, ca: &CertificateDer<'_>, wanted: &[String]) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else {
        return false;
    };
    let (Ok((_, cert)), Ok((_, ca)), Ok(key)) = (
        X509Certificate::from_der(&der),
        X509Certificate::from_der(ca),
        KeyPair::from_pem(key_pem),
    ) else {
        return false;
    };
    if cert.public_key().subject_public_key.data != key.der_bytes()
        || cert.verify_signature(Some(ca.public_key())).is_err()
    {
        return false;
    }
    let left = cert.validity().not_after.timestamp() - unix_now() as i64;
    if left < (SERVER_LIFE.as_secs() / 3) as i64 {
        return false;
    }
    let Ok(Some(sans)) = cert.subject_alternative_name() else {
        return false;
    };
    wanted.iter().all(|name| {
        let ip = name.parse::<IpAddr>().ok().map(|ip| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        });
        sans.value.general_names.iter().any(|san| match (san, &ip) {
            (GeneralName::IPAddress(bytes), Some(ip)) => bytes == ip,
            (GeneralName::DNSName(dns), None) => dns == name,
            _ => false,
        })
    })
}

fn new_key() -> Result<KeyPair, PkiError> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
}

fn ca_params(key: &KeyPair) -> Result<CertificateParams, PkiError> {
    let mut params = leaf_params(CA_LIFE);
    // Part of the key's hash in the name keeps two clusters' authorities apart in a trust store.
    let id = &hex(&Sha256::digest(key.der_bytes()))[..8];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("rota-ca-{id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(unix_now());
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + life;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    // Random and positive: RFC 5280 wants unique serial numbers of at most 20 octets.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(DAY)
        .as_secs()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> PkiError + 'a {
    move |source| PkiError::Io {
        what,
        path: path.into(),
        source,
    }
}

/// Makes a directory (and its parents) that only its owner may enter; refuses one that is wider.
pub fn private_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error("create", dir))?;
    check_mode(dir, 0o700)
}

fn check_mode(path: &Path, wanted: u32) -> Result<(), PkiError> {
    let mode = fs::metadata(path)
        .map_err(io_error("look at", path))?
        .mode()
        & 0o777;
    // Only what others gain matters; an owner who took rights from himself is fine.
    if mode & 0o077 & !wanted != 0 {
        return Err(PkiError::Mode {
            path: path.into(),
            mode,
            wanted,
        });
    }
    Ok(())
}

/// Reads a file unless its mode lets others do more than `wanted`; `None` when it is not there.
pub fn read_private(path: &Path, wanted: u32) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            check_mode(path, wanted)?;
            Ok(Some(text))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(PkiError::Damaged {
            path: path.into(),
            why: "it is not text".into(),
        }),
        Err(e) => Err(io_error("read", path)(e)),
    }
}

/// Writes a 0600 file that is complete and synced when it appears. Without `replace` an existing
/// file is an error, also when another process creates it at the same moment.
pub fn write_private(path: &Path, bytes: &[u8], replace: bool) -> Result<(), PkiError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    let temporary = path.with_file_name(name);
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if replace {
            fs::rename(&temporary, path)?;
        } else {
            fs::hard_link(&temporary, path)?;
            fs::remove_file(&temporary)?;
        }
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty());
        fs::File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(io_error("write", path))
}

/// The key of an [`Issued`] as rustls wants it.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::Crypto(e.to_string()))
}

/// The chain of an [`Issued`] as rustls wants it.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| PkiError::Crypto(e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn dir() -> PathBuf {
        let dir = std::env::temp_dir().join(format!("rota-pki-{:016x}", rand::random::<u64>()));
        fs::create_dir(&dir).unwrap();
        dir.join("pki")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_second_start_changes_nothing_and_files_are_private() {
        let dir = dir();
        let first = Pki::ensure(&dir, &["box.example".into(), "10.1.2.3".into()]).unwrap();
        let second = Pki::ensure(&dir, &["10.1.2.3".into()]).unwrap();
        assert_eq!(first.ca_hash(), second.ca_hash());
        assert_eq!(first.server().certificate, second.server().certificate);
        assert_eq!(mode(&dir), 0o700);
        for file in fs::read_dir(&dir).unwrap() {
            assert_eq!(mode(&file.unwrap().path()), 0o600);
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 4, "no temporary files");
    }

    #[test]
    fn a_new_name_renews_the_server_certificate_only() {
        let dir = dir();
        let first = Pki::ensure(&dir, &[]).unwrap();
        let second = Pki::ensure(&dir, &["new.example".into()]).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_ne!(first.server().certificate, second.server().certificate);
        assert!(matches!(
            Pki::ensure(&dir, &["bad näme".into()]),
            Err(PkiError::Name(_))
        ));
    }

    #[test]
    fn files_that_others_can_read_are_refused_with_the_remedy() {
        let dir = dir();
        Pki::ensure(&dir, &[]).unwrap();
        let key = dir.join("ca.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let e = Pki::ensure(&dir, &[]).unwrap_err().to_string();
        assert!(e.contains("0640") && e.contains("chmod 600"), "{e}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let e = Pki::ensure(&dir, &[]).unwrap_err().to_string();
        assert!(e.contains("chmod 700"), "{e}");
    }

    #[test]
    fn damage_is_named_and_never_papered_over() {
        let dir = dir();
        Pki::ensure(&dir, &[]).unwrap();
        fs::write(dir.join("ca.crt"), "garbage").unwrap();
        assert!(matches!(
            Pki::ensure(&dir, &[]),
            Err(PkiError::Damaged { .. })
        ));
        fs::remove_file(dir.join("ca.crt")).unwrap();
        Pki::ensure(&dir, &[]).expect("a start that died before ca.crt continues");
        fs::remove_file(dir.join("ca.key")).unwrap();
        let e = Pki::ensure(&dir, &[]).unwrap_err().to_string();
        assert!(e.contains("ca.key") && e.contains("missing"), "{e}");
    }

    #[test]
    fn a_torn_or_foreign_server_pair_is_made_anew() {
        let (dir, other) = (dir(), dir());
        let first = Pki::ensure(&dir, &[]).unwrap();
        Pki::ensure(&other, &[]).unwrap();
        for (file, from) in [("server.key", &other), ("server.crt", &other)] {
            fs::copy(from.join(file), dir.join(file)).unwrap();
            let again = Pki::ensure(&dir, &[]).unwrap();
            assert_ne!(again.server().certificate, first.server().certificate);
            let der = certificates(&again.server().certificate).unwrap();
            let (_, cert) = X509Certificate::from_der(&der[0]).unwrap();
            let (_, ca) = X509Certificate::from_der(again.ca_der()).unwrap();
            cert.verify_signature(Some(ca.public_key())).unwrap();
        }
    }

    #[test]
    fn exclusive_creation_never_overwrites() {
        let dir = dir();
        private_dir(&dir).unwrap();
        let path = dir.join("x");
        write_private(&path, b"one", false).unwrap();
        assert!(write_private(&path, b"two", false).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_private(&path, b"three", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn client_certificates_and_kubeconfig() {
        let dir = dir();
        let pki = Pki::ensure(&dir, &[]).unwrap();
        let issued = pki
            .issue_client("system:admin", "system:masters", ADMIN_LIFE)
            .unwrap();
        let text = pki.kubeconfig("https://127.0.0.1:7443", "system:admin", &issued);
        let config: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(
            config["clusters"][0]["cluster"]["server"],
            "https://127.0.0.1:7443"
        );
        let data = config["users"][0]["user"]["client-key-data"]
            .as_str()
            .unwrap();
        assert_eq!(BASE64.decode(data).unwrap(), issued.key.as_bytes());
        private_key(&issued.key).unwrap();
    }
}
