//! `POST /rota/v1/certificates`: a node's certificate request, checked and signed.
//!
//! Promises: of the request only the public key is taken over; subject, usages, life and serial
//! number are ours. A join token may ask for any node's name, a node only for its own.

use rota_api::names::{GROUP_BOOTSTRAPPERS, GROUP_MASTERS, GROUP_NODES, USER_NODE_PREFIX};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

use super::User;
use super::pki::{NODE_LIFE, Pki};
use crate::error::{ApiError, ApiResult};

/// Largest body: a request with a P-384 key has below 1 KiB.
pub const BODY_MAX: usize = 16 * 1024;

/// Answers a certificate request; the value is the body of a 201.
pub fn handle(pki: &Pki, user: &User, body: &[u8]) -> ApiResult<Value> {
    if body.len() > BODY_MAX {
        return Err(ApiError::too_large(format!(
            "a certificate request has at most {BODY_MAX} bytes"
        )));
    }
    let body: Value = serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("the body is not JSON: {e}")))?;
    let pem = body["csr"]
        .as_str()
        .ok_or_else(|| ApiError::bad_request("the body needs \"csr\": a PEM text"))?;
    let request = parse(pem)?;
    may_have(user, &request.node)?;
    let certificate = pki
        .sign_client(
            &request.key,
            &format!("{USER_NODE_PREFIX}{}", request.node),
            GROUP_NODES,
            NODE_LIFE,
        )
        .map_err(|e| ApiError::internal(e.to_string()))?;
    Ok(json!({"certificate": certificate, "ca": pki.ca_pem()}))
}

fn may_have(user: &User, node: &str) -> ApiResult<()> {
    let own = || user.name.strip_prefix(USER_NODE_PREFIX) == Some(node);
    if user.in_group(GROUP_BOOTSTRAPPERS)
        || user.in_group(GROUP_MASTERS)
        || (user.in_group(GROUP_NODES) && own())
    {
        return Ok(());
    }
    Err(ApiError::new(
        403,
        "Forbidden",
        format!(
            "User {:?} cannot get a certificate for node {node:?}",
            user.name
        ),
    ))
}

struct Request {
    node: String,
    key: rcgen::PublicKey,
}

fn parse(pem: &str) -> ApiResult<Request> {
    let bad = |why: String| ApiError::bad_request(format!("the certificate request {why}"));
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| bad(format!("is not PEM: {e}")))?;
    let (rest, csr) = X509CertificationRequest::from_der(&der)
        .map_err(|e| bad(format!("cannot be read: {e}")))?;
    if !rest.is_empty() {
        return Err(bad("has bytes after its end".into()));
    }
    let info = &csr.certification_request_info;
    check_key(&csr).map_err(|why| bad(why.into()))?;
    let subject = &info.subject;
    let text = |values: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| -> Option<String> {
        match values.as_slice() {
            [one] => one.as_str().ok().map(String::from),
            _ => None,
        }
    };
    let node = text(subject.iter_common_name().collect())
        .and_then(|cn| cn.strip_prefix(USER_NODE_PREFIX).map(String::from))
        .filter(|name| is_node_name(name))
        .ok_or_else(|| {
            bad(format!(
                "must have exactly one CN, {USER_NODE_PREFIX}<name>, where the name is lower-case letters, digits, '-' and '.'"
            ))
        })?;
    if text(subject.iter_organization().collect()).as_deref() != Some(GROUP_NODES)
        || subject.iter_attributes().count() != 2
    {
        return Err(bad(format!(
            "must have O={GROUP_NODES} and nothing beside CN and O"
        )));
    }
    for extension in csr.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::BasicConstraints(bc) if bc.ca => {
                return Err(bad("asks for the rights of an authority".into()));
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                return Err(bad("asks for the rights of an authority".into()));
            }
            ParsedExtension::SubjectAlternativeName(_) => {
                return Err(bad(
                    "asks for alternative names, which nodes do not get".into()
                ));
            }
            ParsedExtension::ExtendedKeyUsage(eku)
                if eku.any
                    || eku.server_auth
                    || eku.code_signing
                    || eku.email_protection
                    || eku.time_stamping
                    || eku.ocsp_signing
                    || !eku.other.is_empty() =>
            {
                return Err(bad("asks for more than client authentication".into()));
            }
            _ => {}
        }
    }
    let request = rcgen::CertificateSigningRequestParams::from_der(&der)
        .map_err(|e| bad(format!("is refused: {e}")))?;
    Ok(Request {
        node,
        key: request.public_key,
    })
}

/// Accepts P-256, P-384 and Ed25519, each with its own signature: the signer derives the key's
/// type from the signature's, so another pairing would give a certificate that lies about its key.
fn check_key(csr: &X509CertificationRequest<'_>) -> Result<(), &'static str> {
    const EC: &str = "1.2.840.10045.2.1";
    const ED25519: &str = "1.3.101.112";
    let spki = &csr.certification_request_info.subject_pki;
    let signature = csr.signature_algorithm.algorithm.to_id_string();
    let curve = spki
        .algorithm
        .parameters
        .as_ref()
        .and_then(|p| p.as_oid().ok())
        .map(|oid| oid.to_id_string());
    let size = spki.subject_public_key.data.len();
    let pairing = (
        spki.algorithm.algorithm.to_id_string(),
        curve.as_deref().unwrap_or(""),
        signature.as_str(),
    );
    let known = match (pairing.0.as_str(), pairing.1, pairing.2) {
        (EC, "1.2.840.10045.3.1.7", "1.2.840.10045.4.3.2") => size == 65,
        (EC, "1.3.132.0.34", "1.2.840.10045.4.3.3") => size == 97,
        (ED25519, "", ED25519) => size == 32,
        _ => false,
    };
    if !known {
        return Err("needs a P-256, P-384 or Ed25519 key with its usual signature");
    }
    csr.verify_signature()
        .map_err(|_| "is not signed by its own key")
}

/// RFC 1123 subdomain, as Node names are.
fn is_node_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::auth::authn::user_of_certificate;
    use crate::auth::pki::certificates;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };

    fn pki() -> Pki {
        let dir = std::env::temp_dir().join(format!("rota-csr-{:016x}", rand::random::<u64>()));
        Pki::ensure(&dir, &[]).unwrap()
    }

    fn csr(cn: &str, orgs: &[&str], edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        csr_with(&rcgen::PKCS_ECDSA_P256_SHA256, cn, orgs, edit)
    }

    fn csr_with(
        alg: &'static rcgen::SignatureAlgorithm,
        cn: &str,
        orgs: &[&str],
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        for o in orgs {
            params.distinguished_name.push(DnType::OrganizationName, *o);
        }
        edit(&mut params);
        let key = KeyPair::generate_for(alg).unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        serde_json::to_vec(&json!({ "csr": pem })).unwrap()
    }

    fn token() -> std::sync::Arc<User> {
        User::new("system:bootstrap:x", &[GROUP_BOOTSTRAPPERS])
    }

    #[test]
    fn a_token_gets_a_node_certificate() {
        let pki = pki();
        for alg in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ] {
            let body = csr_with(alg, "system:node:n-1.a", &[GROUP_NODES], |_| {});
            let answer = handle(&pki, &token(), &body).unwrap();
            assert_eq!(answer["ca"], pki.ca_pem());
            let der = certificates(answer["certificate"].as_str().unwrap()).unwrap();
            let user = user_of_certificate(&der[0], jiff::Timestamp::now()).unwrap();
            assert_eq!(user.name, "system:node:n-1.a");
            assert_eq!(user.groups, [GROUP_NODES]);
        }
    }

    #[test]
    fn a_node_renews_only_itself_and_others_get_nothing() {
        let pki = pki();
        let body = csr("system:node:n1", &[GROUP_NODES], |_| {});
        let node = |n: &str| User::new(format!("system:node:{n}"), &[GROUP_NODES]);
        handle(&pki, &node("n1"), &body).unwrap();
        for user in [
            node("n2"),
            User::new("system:node:n1", &[]),
            User::new("ann", &["system:authenticated"]),
            User::new("rota:job", &["system:controllers"]),
        ] {
            assert_eq!(handle(&pki, &user, &body).unwrap_err().code, 403);
        }
    }

    #[test]
    fn requests_for_more_than_a_node_are_refused() {
        let pki = pki();
        let ok = "system:node:n1";
        let nothing = |_: &mut CertificateParams| {};
        let bodies = vec![
            csr("system:admin", &[GROUP_NODES], nothing),
            csr("system:node:", &[GROUP_NODES], nothing),
            csr("system:node:UP", &[GROUP_NODES], nothing),
            csr("system:node:a/b", &[GROUP_NODES], nothing),
            csr(ok, &["system:masters"], nothing),
            csr(ok, &[], nothing),
            csr(ok, &[GROUP_NODES], |p| {
                p.distinguished_name.push(DnType::CountryName, "XX");
            }),
            csr(ok, &[GROUP_NODES], |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            csr(ok, &[GROUP_NODES], |p| {
                p.subject_alt_names = vec![rcgen::SanType::DnsName("localhost".try_into().unwrap())];
            }),
            csr(ok, &[GROUP_NODES], |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            b"{}".to_vec(),
            b"not json".to_vec(),
            br#"{"csr": "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}"#.to_vec(),
            br#"{"csr": 7}"#.to_vec(),
        ];
        for (i, body) in bodies.iter().enumerate() {
            let e = handle(&pki, &token(), body).unwrap_err();
            assert_eq!(e.code, 400, "case {i}: {e}");
        }
        let e = handle(&pki, &token(), &vec![b' '; BODY_MAX + 1]).unwrap_err();
        assert_eq!(e.code, 413);
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let pki = pki();
        let body = csr("system:node:n1", &[GROUP_NODES], |_| {});
        let pem = serde_json::from_slice::<Value>(&body).unwrap()["csr"]
            .as_str()
            .unwrap()
            .to_string();
        let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .unwrap()
            .to_vec();
        // One letter of the subject, which the signature covers.
        let at = der.windows(2).position(|w| w == b"n1").unwrap();
        der[at + 1] = b'2';
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&der);
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
        );
        let body = serde_json::to_vec(&json!({ "csr": pem })).unwrap();
        let e = handle(&pki, &token(), &body).unwrap_err();
        assert_eq!(e.code, 400);
        assert!(e.message.contains("signed"), "{e}");
    }
}
