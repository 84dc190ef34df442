//! A blocking HTTP/1.1 client over TLS that does exactly what it is told: it never retries, so that
//! a test knows what was acknowledged, and it can send bytes that no proper client would.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// A server that says nothing for so long is broken.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

type Stream = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON of an answer that must be a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(
            (200..300).contains(&self.status),
            "HTTP {}: {}",
            self.status,
            self.text()
        );
        self.json()
    }

    /// An answer that must be a failure with this code and a proper Status; its reason.
    #[track_caller]
    pub fn refused(self, code: u16) -> (String, String) {
        let json = self.json();
        assert_eq!(self.status, code, "{}", self.text());
        assert_eq!(json["kind"], "Status", "{}", self.text());
        assert_eq!(json["status"], "Failure", "{}", self.text());
        assert_eq!(json["code"], code, "{}", self.text());
        let message = json["message"].as_str().unwrap_or("").to_string();
        assert!(!message.is_empty(), "a Status without a message");
        (json["reason"].as_str().unwrap_or("").to_string(), message)
    }
}

/// A client with one connection.
#[derive(Debug)]
pub struct Http {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    stream: Option<Stream>,
}

impl Clone for Http {
    /// The same credentials, a connection of its own.
    fn clone(&self) -> Self {
        Http {
            address: self.address,
            tls: self.tls.clone(),
            stream: None,
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca_pem: &[u8]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(cert.unwrap()).unwrap();
    }
    roots
}

/// Certificates of a kubeconfig: CA, client certificate, client key, all PEM.
pub fn kubeconfig_pems(text: &str) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let config: Value = serde_yaml::from_str(text).unwrap();
    let cluster = &config["clusters"][0]["cluster"];
    let user = &config["users"][0]["user"];
    let data = |object: &Value, key: &str| -> Vec<u8> {
        if let Some(data) = object[format!("{key}-data")].as_str() {
            return base64::engine::general_purpose::STANDARD
                .decode(data)
                .unwrap();
        }
        std::fs::read(object[key].as_str().unwrap_or_else(|| panic!("no {key}"))).unwrap()
    };
    (
        data(cluster, "certificate-authority"),
        data(user, "client-certificate"),
        data(user, "client-key"),
    )
}

impl Http {
    /// Without a client certificate.
    pub fn anonymous(port: u16, ca_pem: &[u8]) -> Http {
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(ca_pem))
            .with_no_client_auth();
        Http::new(port, tls)
    }

    /// With a client certificate.
    pub fn with_certificate(port: u16, ca_pem: &[u8], cert_pem: &[u8], key_pem: &[u8]) -> Http {
        let certs = CertificateDer::pem_slice_iter(cert_pem)
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(key_pem).unwrap();
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(ca_pem))
            .with_client_auth_cert(certs, key)
            .unwrap();
        Http::new(port, tls)
    }

    /// With the certificates of a kubeconfig.
    pub fn from_kubeconfig(port: u16, text: &str) -> Http {
        let (ca, cert, key) = kubeconfig_pems(text);
        Http::with_certificate(port, &ca, &cert, &key)
    }

    fn new(port: u16, mut tls: ClientConfig) -> Http {
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Http {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            tls: Arc::new(tls),
            stream: None,
        }
    }

    /// Opens a TLS connection.
    pub fn connect(&self) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let tcp = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(READ_TIMEOUT))?;
        tcp.set_write_timeout(Some(READ_TIMEOUT))?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let session = ClientConnection::new(self.tls.clone(), name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(session, tcp))
    }

    /// Sends one request. An error says that the outcome is unknown.
    pub fn try_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => BufReader::new(self.connect()?),
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let sent = stream
            .get_mut()
            .write_all(&[head.as_bytes(), body].concat())
            .and_then(|()| stream.get_mut().flush());
        // A server may refuse a body that it has not read to its end; its answer still counts.
        let (status, headers) = match (read_head(&mut stream), sent) {
            (Ok(head), _) => head,
            (Err(error), Ok(())) => return Err(error),
            (Err(_), Err(error)) => return Err(error),
        };
        let close = headers
            .iter()
            .any(|(n, v)| n == "connection" && v.eq_ignore_ascii_case("close"));
        let mut bytes = Vec::new();
        let mut reader = Body::new(&mut stream, method, status, &headers)?;
        reader.read_to_end(&mut bytes)?;
        if !close {
            self.stream = Some(stream);
        }
        Ok(Answer {
            status,
            headers,
            body: bytes,
        })
    }

    /// Sends one request to a server that must answer.
    #[track_caller]
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        match self.try_request(method, path, headers, body) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    /// GET.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    /// POST of JSON.
    #[track_caller]
    pub fn post(&mut self, path: &str, body: &Value) -> Answer {
        let headers = [("Content-Type", "application/json")];
        self.request("POST", path, &headers, body.to_string().as_bytes())
    }

    /// DELETE.
    #[track_caller]
    pub fn delete(&mut self, path: &str) -> Answer {
        self.request("DELETE", path, &[], b"")
    }

    /// Sends bytes as they are and reads until the server closes or says nothing for `quiet`.
    pub fn raw(&self, bytes: &[u8], quiet: Duration) -> Vec<u8> {
        let Ok(mut stream) = self.connect() else {
            return Vec::new();
        };
        let _ = stream.sock.set_read_timeout(Some(quiet));
        let _ = stream.write_all(bytes);
        let _ = stream.flush();
        let mut answer = Vec::new();
        let mut chunk = [0; 8192];
        while let Ok(n) = stream.read(&mut chunk) {
            if n == 0 {
                break;
            }
            answer.extend_from_slice(&chunk[..n]);
        }
        answer
    }

    /// Opens a watch on a connection of its own.
    pub fn watch(&self, path: &str) -> io::Result<Watch> {
        let mut stream = BufReader::new(self.connect()?);
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().flush()?;
        let (status, headers) = read_head(&mut stream)?;
        if status != 200 {
            let mut text = String::new();
            Body::new(&mut stream, "GET", status, &headers)?.read_to_string(&mut text)?;
            return Err(io::Error::other(format!(
                "watch {path}: HTTP {status}: {text}"
            )));
        }
        let chunked = is_chunked(&headers);
        Ok(Watch {
            lines: BufReader::new(OwnedBody {
                stream,
                left: if chunked { Left::Chunk(0) } else { Left::ToEnd },
            }),
        })
    }
}

/// A running watch; yields events until the server ends it.
pub struct Watch {
    lines: BufReader<OwnedBody>,
}

impl Iterator for Watch {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(n) if n > 0 && line.ends_with('\n') => serde_json::from_str(&line).ok(),
            // A line that ends in the middle was cut with the connection.
            _ => None,
        }
    }
}

fn is_chunked(headers: &[(String, String)]) -> bool {
    headers
        .iter()
        .any(|(n, v)| n == "transfer-encoding" && v.eq_ignore_ascii_case("chunked"))
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_string())
}

fn read_head(stream: &mut impl BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    loop {
        let first = read_line(stream)?;
        let status: u16 = first
            .split_whitespace()
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not an HTTP answer: {first}")))?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(stream)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        if status != 100 {
            return Ok((status, headers));
        }
    }
}

/// How much of a body is left.
enum Left {
    Length(usize),
    /// Bytes left in this chunk; 0 before a chunk's head.
    Chunk(usize),
    ToEnd,
    Nothing,
}

fn read_body(stream: &mut Stream, left: &mut Left, buffer: &mut [u8]) -> io::Result<usize> {
    let at_most = match left {
        Left::Nothing => return Ok(0),
        Left::ToEnd => return stream.read(buffer),
        Left::Length(n) => *n,
        Left::Chunk(n) => {
            if *n == 0 {
                let line = read_line(stream)?;
                *n = usize::from_str_radix(line.split(';').next().unwrap_or(""), 16)
                    .map_err(|_| io::Error::other(format!("bad chunk head {line:?}")))?;
                if *n == 0 {
                    while !read_line(stream)?.is_empty() {}
                    *left = Left::Nothing;
                    return Ok(0);
                }
            }
            *n
        }
    };
    let want = at_most.min(buffer.len());
    let got = stream.read(&mut buffer[..want])?;
    if got == 0 && want > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match left {
        Left::Length(n) => {
            *n -= got;
            if *n == 0 {
                *left = Left::Nothing;
            }
        }
        Left::Chunk(n) => {
            *n -= got;
            if *n == 0 {
                read_line(stream)?;
            }
        }
        Left::ToEnd | Left::Nothing => {}
    }
    Ok(got)
}

struct Body<'a> {
    stream: &'a mut Stream,
    left: Left,
}

impl<'a> Body<'a> {
    fn new(
        stream: &'a mut Stream,
        method: &str,
        status: u16,
        headers: &[(String, String)],
    ) -> io::Result<Body<'a>> {
        let length = headers
            .iter()
            .find(|(n, _)| n == "content-length")
            .map(|(_, v)| v.parse::<usize>().map_err(io::Error::other))
            .transpose()?;
        let left = if method == "HEAD" || status == 204 || status == 304 || length == Some(0) {
            Left::Nothing
        } else if is_chunked(headers) {
            Left::Chunk(0)
        } else {
            length.map_or(Left::ToEnd, Left::Length)
        };
        Ok(Body { stream, left })
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_body(self.stream, &mut self.left, buffer)
    }
}

struct OwnedBody {
    stream: Stream,
    left: Left,
}

impl Read for OwnedBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_body(&mut self.stream, &mut self.left, buffer)
    }
}
