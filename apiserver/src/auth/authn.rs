//! Who a request comes from: the peer certificate of its connection, or a bearer token.
//!
//! Promises: a credential that is present but wrong is 401, never "anonymous"; token secrets are
//! compared as hashes in constant time; nothing of a credential is ever logged or answered.

use std::sync::Arc;

use http::{HeaderMap, header};
use jiff::Timestamp;
use rota_api::names::GROUP_BOOTSTRAPPERS;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::User;
use super::pki::hex;
use crate::error::ApiError;

/// Name of a caller without credentials.
pub const USER_ANONYMOUS: &str = "system:anonymous";
/// Group of a caller without credentials.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// Longest bearer token looked at: ours have some 90 characters.
const TOKEN_MAX: usize = 512;
/// Prefix of the user name of a join token.
pub const USER_BOOTSTRAP_PREFIX: &str = "system:bootstrap:";

/// What is stored of a join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Hex SHA-256 of the secret.
    pub hash: String,
    /// From then on it is refused; `None` means never.
    pub expiration: Option<Timestamp>,
}

/// Where token records come from (the watch cache).
pub trait TokenLookup: Send + Sync {
    /// The record of the join token with this id.
    fn bootstrap(&self, id: &str) -> Option<TokenRecord>;
}

/// The caller that an absent credential means.
pub fn anonymous() -> Arc<User> {
    User::new(USER_ANONYMOUS, &[GROUP_UNAUTHENTICATED])
}

/// The user that a verified peer certificate names: CN, with every O as a group. `None` when it
/// names nobody or is outside its time (a resumed session may hold one that expired since).
pub fn user_of_certificate(der: &[u8], now: Timestamp) -> Option<Arc<User>> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let validity = cert.validity();
    let now = now.as_second();
    if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
        return None;
    }
    let mut names = cert.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_string();
    // Two names would let two readers see two users.
    if name.is_empty() || names.next().is_some() {
        return None;
    }
    let groups = cert
        .subject()
        .iter_organization()
        .map(|o| o.as_str().map(String::from))
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    Some(Arc::new(User { name, groups }))
}

/// The caller of a request. `peer` is who the connection's certificate names. `Ok(None)`: no
/// credential at all. An Authorization header must be right when it is there; a certificate then
/// still goes before it.
pub fn authenticate(
    headers: &HeaderMap,
    peer: Option<Arc<User>>,
    tokens: &dyn TokenLookup,
    now: Timestamp,
) -> Result<Option<Arc<User>>, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(peer);
    };
    let user = match values.next() {
        None => bearer(value.as_bytes()).and_then(|token| user_of_token(token, tokens, now)),
        Some(_) => None,
    };
    let user = user.ok_or_else(ApiError::unauthorized)?;
    Ok(Some(peer.unwrap_or(user)))
}

/// The token of `Bearer <token>`.
fn bearer(value: &[u8]) -> Option<&str> {
    if value.len() > TOKEN_MAX {
        return None;
    }
    let value = std::str::from_utf8(value).ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' '))
        .then_some(token)
}

fn user_of_token(token: &str, tokens: &dyn TokenLookup, now: Timestamp) -> Option<Arc<User>> {
    let (id, secret) = token.split_once('.')?;
    // The id becomes part of an object name, so it is checked before the look-up.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if id.is_empty() || id.len() > 32 || !id.chars().all(plain) || secret.is_empty() {
        return None;
    }
    let record = tokens.bootstrap(id)?;
    let given = token_hash(secret);
    if !same(
        given.as_bytes(),
        record.hash.to_ascii_lowercase().as_bytes(),
    ) {
        return None;
    }
    if record.expiration.is_some_and(|end| now >= end) {
        return None;
    }
    Some(User::new(
        format!("{USER_BOOTSTRAP_PREFIX}{id}"),
        &[GROUP_BOOTSTRAPPERS],
    ))
}

/// What is stored of a token's secret.
pub fn token_hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// Equality whose time does not depend on where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y))) == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::HeaderValue;

    struct One(TokenRecord);
    impl TokenLookup for One {
        fn bootstrap(&self, id: &str) -> Option<TokenRecord> {
            (id == "abc123").then(|| self.0.clone())
        }
    }

    fn tokens(expiration: Option<&str>) -> One {
        One(TokenRecord {
            hash: token_hash("s3cret"),
            expiration: expiration.map(|t| t.parse().unwrap()),
        })
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for v in values {
            map.append(header::AUTHORIZATION, HeaderValue::from_str(v).unwrap());
        }
        map
    }

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_right_token_is_its_bootstrap_user() {
        let user = authenticate(
            &headers(&["Bearer abc123.s3cret"]),
            None,
            &tokens(Some("2030-01-01T00:00:01Z")),
            now(),
        )
        .unwrap()
        .unwrap();
        assert_eq!(user.name, "system:bootstrap:abc123");
        assert_eq!(user.groups, [GROUP_BOOTSTRAPPERS]);
    }

    #[test]
    fn no_header_is_the_peer_or_nobody() {
        let peer = User::new("u", &[]);
        let none = HeaderMap::new();
        assert_eq!(
            authenticate(&none, None, &tokens(None), now()).unwrap(),
            None
        );
        assert_eq!(
            authenticate(&none, Some(peer.clone()), &tokens(None), now()).unwrap(),
            Some(peer.clone())
        );
        let with_token = headers(&["bearer abc123.s3cret"]);
        assert_eq!(
            authenticate(&with_token, Some(peer.clone()), &tokens(None), now()).unwrap(),
            Some(peer)
        );
    }

    #[test]
    fn everything_else_is_401() {
        let long = format!("Bearer abc123.{}", "x".repeat(TOKEN_MAX));
        let two = ["Bearer abc123.s3cret", "Bearer abc123.s3cret"];
        let cases: Vec<Vec<&str>> = vec![
            vec!["Bearer abc123.wrong"],
            vec!["Bearer abc123."],
            vec!["Bearer abc123"],
            vec!["Bearer .s3cret"],
            vec!["Bearer zzz.s3cret"],
            vec!["Bearer ABC123.s3cret"],
            vec!["Bearer ../abc123.s3cret"],
            vec!["Bearer abc123.s3cret extra"],
            vec!["Bearer"],
            vec!["Basic YWJjMTIzLnMzY3JldA=="],
            vec!["abc123.s3cret"],
            vec![""],
            vec![&long],
            two.to_vec(),
        ];
        for case in cases {
            for peer in [None, Some(User::new("u", &[]))] {
                let e = authenticate(&headers(&case), peer, &tokens(None), now()).unwrap_err();
                assert_eq!(e.code, 401, "{case:?}");
                assert!(!e.message.contains("s3cret"));
            }
        }
        let expired = tokens(Some("2030-01-01T00:00:00Z"));
        let e = authenticate(&headers(&two[..1]), None, &expired, now()).unwrap_err();
        assert_eq!(e.code, 401);
    }

    #[test]
    fn certificates_name_user_and_groups_within_their_time() {
        use crate::auth::pki::{Pki, certificates};
        let dir = std::env::temp_dir().join(format!("rota-authn-{:016x}", rand::random::<u64>()));
        let pki = Pki::ensure(&dir, &[]).unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let pem = pki.issue_client("ann", "a", hour).unwrap();
        let der = certificates(&pem.certificate).unwrap();
        let user = user_of_certificate(&der[0], Timestamp::now()).unwrap();
        assert_eq!(
            (user.name.as_str(), &user.groups[..]),
            ("ann", &["a".to_string()][..])
        );
        let later = Timestamp::now() + hour * 2;
        assert_eq!(user_of_certificate(&der[0], later), None);
        assert_eq!(user_of_certificate(b"junk", Timestamp::now()), None);
        // The server's own certificate names "rota-apiserver" without any group.
        let der = certificates(&pki.server().certificate).unwrap();
        let user = user_of_certificate(&der[0], Timestamp::now()).unwrap();
        assert!(user.groups.is_empty());
    }
}
