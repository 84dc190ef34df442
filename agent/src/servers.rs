//! Which API server the agent talks to now.
//!
//! A cluster on etcd may have several API servers, and each serves everything. The agent keeps to
//! one of them until it does not answer, then goes on to the next in the order given, and around.
//! It never goes back by itself: the server that answers is as good as the one that did before.
//!
//! This file owns the list and the present choice; who asks a server tells here that it failed.

use std::fmt::Display;

use tokio::sync::watch;

use crate::config::AgentError;

/// One API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Place in the list, from 0.
    pub at: usize,
    /// URL.
    pub url: http::Uri,
    /// Host to connect to; an IPv6 address has no brackets.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
}

/// All API servers, of which one is the current one.
#[derive(Debug)]
pub struct Servers {
    list: Vec<Server>,
    current: watch::Sender<usize>,
}

impl Servers {
    /// The servers of these URLs; the first is the current one.
    pub fn new(urls: &[String]) -> Result<Self, AgentError> {
        let mut list: Vec<Server> = Vec::new();
        for (at, text) in urls.iter().enumerate() {
            let wrong = |why: String| {
                let which = match urls.len() {
                    1 => "the API server's URL".to_string(),
                    n => format!("API server {} of {n}", at + 1),
                };
                AgentError::Config(format!("{which}, {text:?}, {why}"))
            };
            let server = parse(at, text.trim()).map_err(wrong)?;
            if let Some(first) = list.first()
                && first.url.scheme() != server.url.scheme()
            {
                return Err(wrong(format!(
                    "is not of the same scheme as the first, {}",
                    first.url
                )));
            }
            list.push(server);
        }
        if list.is_empty() {
            return Err(AgentError::Config("no API server is named".into()));
        }
        Ok(Servers {
            list,
            current: watch::Sender::new(0),
        })
    }

    /// The server to talk to now.
    pub fn current(&self) -> &Server {
        &self.list[*self.current.borrow()]
    }

    /// All servers in the order of the list.
    pub fn all(&self) -> &[Server] {
        &self.list
    }

    /// All servers, each once, from the current one on.
    pub fn in_turn(&self) -> impl Iterator<Item = &Server> {
        let (before, from) = self.list.split_at(self.current().at);
        from.iter().chain(before)
    }

    /// Whether they are talked to by TLS: either all are or none.
    pub fn tls(&self) -> bool {
        self.current().url.scheme_str() == Some("https")
    }

    /// Tells that `server` gave no answer, and why. The next one becomes current, but only if
    /// `server` still is: when many calls fail at once, they go on by one together.
    pub fn failed(&self, server: &Server, why: &dyn Display) {
        let next = (server.at + 1) % self.list.len();
        let moved = self.current.send_if_modified(|current| {
            let moves = *current == server.at && next != server.at;
            if moves {
                *current = next;
            }
            moves
        });
        if moved {
            tracing::warn!(
                server = %server.url,
                next = %self.list[next].url,
                error = %why,
                "the API server does not answer; going on with the next"
            );
        }
    }

    /// Goes on with `better`, of which it is known that it can serve, unless `server` was left already.
    pub fn prefer(&self, better: &Server, server: &Server, why: &dyn Display) {
        let moved = self.current.send_if_modified(|current| {
            let moves = *current == server.at && better.at != server.at;
            if moves {
                *current = better.at;
            }
            moves
        });
        if moved {
            tracing::warn!(
                server = %server.url,
                next = %better.url,
                error = %why,
                "the API server cannot serve; going on with one that can"
            );
        }
    }

    /// Waits until `server` is not the current one.
    pub async fn left(&self, server: &Server) {
        let mut current = self.current.subscribe();
        // Cannot be closed while `self` is there.
        let _ = current.wait_for(|at| *at != server.at).await;
    }
}

/// Reads one URL; the error completes a sentence that began with it.
fn parse(at: usize, text: &str) -> Result<Server, String> {
    const REMEDY: &str = "write it as https://HOST:PORT";
    if text.is_empty() {
        return Err(format!("is empty; {REMEDY}"));
    }
    let url: http::Uri = text
        .parse()
        .map_err(|e| format!("is no URL ({e}); {REMEDY}"))?;
    let port = match url.scheme_str() {
        Some("https") => 443,
        Some("http") => 80,
        _ => {
            return Err(format!(
                "begins with neither https:// nor http://; {REMEDY}"
            ));
        }
    };
    let host = match url.host() {
        Some(host) if !host.is_empty() => host,
        _ => return Err(format!("names no host; {REMEDY}")),
    };
    Ok(Server {
        at,
        host: host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_string(),
        port: url.port_u16().unwrap_or(port),
        url,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn servers(urls: &[&str]) -> Result<Servers, String> {
        let urls: Vec<String> = urls.iter().map(|u| u.to_string()).collect();
        Servers::new(&urls).map_err(|e| e.to_string())
    }

    #[test]
    fn urls_are_read() {
        let s = servers(&["https://a:7443", " https://[::1]/ ", "https://c"]).unwrap();
        let read: Vec<_> = s.all().iter().map(|s| (s.host.as_str(), s.port)).collect();
        assert_eq!(read, [("a", 7443), ("::1", 443), ("c", 443)]);
        assert!(s.tls());
        assert!(!servers(&["http://a:1"]).unwrap().tls());
    }

    #[test]
    fn a_wrong_url_is_named() {
        let error = |urls: &[&str]| servers(urls).unwrap_err();
        assert!(error(&[]).contains("no API server"));
        let second = error(&["https://a", ""]);
        assert!(second.contains("2 of 2") && second.contains("is empty"));
        let second = error(&["https://a", "b:7443", "https://c"]);
        assert!(second.contains("2 of 3") && second.contains("\"b:7443\""));
        for wrong in ["ftp://a", "https://", "https://:7443", "a b"] {
            assert!(error(&[wrong]).contains(&format!("{wrong:?}")), "{wrong}");
        }
        let mixed = error(&["https://a", "http://b"]);
        assert!(mixed.contains("2 of 2") && mixed.contains("same scheme as the first, https://a"));
    }

    #[test]
    fn calls_that_fail_at_once_go_on_by_one() {
        let s = servers(&["http://a", "http://b", "http://c"]).unwrap();
        let a = s.current().clone();
        s.failed(&a, &"test");
        s.failed(&a, &"test");
        assert_eq!(s.current().host, "b");
        let turn: String = s.in_turn().map(|s| s.host.as_str()).collect();
        assert_eq!(turn, "bca");
        let b = s.current().clone();
        s.failed(&b, &"test");
        let c = s.current().clone();
        s.failed(&c, &"test");
        assert_eq!(s.current(), &a, "after the last comes the first");
    }

    #[test]
    fn the_only_server_stays_current() {
        let s = servers(&["http://a"]).unwrap();
        let a = s.current().clone();
        s.failed(&a, &"test");
        assert_eq!(s.current(), &a);
        assert!(s.left(&a).now_or_never().is_none());
    }

    #[test]
    fn whoever_waits_for_a_server_hears_that_it_was_left() {
        let s = servers(&["http://a", "http://b"]).unwrap();
        let a = s.current().clone();
        let mut left = Box::pin(s.left(&a));
        assert!(left.as_mut().now_or_never().is_none());
        s.failed(&a, &"test");
        assert!(left.now_or_never().is_some());
        assert!(s.left(&a).now_or_never().is_some(), "also afterwards");
    }
}
