//! The agent's half: finding, starting and calling a supervisor. Blocking; an async caller takes
//! the socket path and the codec and uses its own stream.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::protocol::{Decoder, Event, PROTOCOL_VERSION, Request, Welcome, encode};
use crate::server::socket_path;

/// Name of the file that takes what a supervisor says on standard error.
pub const MESSAGES: &str = "supervisor.log";

/// A blocking connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

fn other(message: impl Into<String>) -> io::Error {
    io::Error::other(message.into())
}

/// Opens a stream to the supervisor of a directory.
pub fn connect(dir: &Path) -> io::Result<UnixStream> {
    let dir = std::fs::File::open(dir)?;
    UnixStream::connect(socket_path(&dir))
}

impl Client {
    /// Connects and says hello.
    pub fn open(dir: &Path) -> io::Result<(Client, Welcome)> {
        let mut client = Client {
            stream: connect(dir)?,
            decoder: Decoder::default(),
        };
        client.send(&Request::Hello {
            version: PROTOCOL_VERSION,
        })?;
        match client.next(Duration::from_secs(10))? {
            Some(Event::Welcome(w)) => Ok((client, *w)),
            Some(Event::Refused { message }) => Err(other(message)),
            _ => Err(other("the supervisor does not answer")),
        }
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode(request, &mut bytes)?;
        self.stream.write_all(&bytes)
    }

    /// The next event, or none within the time.
    pub fn next(&mut self, timeout: Duration) -> io::Result<Option<Event>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(event) = self
                .decoder
                .next_frame()
                .map_err(|e| other(e.to_string()))?
            {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.decoder.push(&buffer[..n]),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Starts a supervisor process: `<exe> <args..> --dir D --generation G ..`. It belongs to nobody
/// but itself: own session, standard error into its directory.
pub fn launch(
    command: &[std::ffi::OsString],
    dir: &Path,
    generation: u64,
    import: &[&Path],
    group: Option<&str>,
) -> io::Result<std::process::Child> {
    let (exe, args) = command
        .split_first()
        .ok_or_else(|| other("no supervisor program"))?;
    std::fs::create_dir_all(dir)?;
    let messages = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join(MESSAGES))?;
    let mut c = Command::new(exe);
    c.args(args)
        .arg("--dir")
        .arg(dir)
        .arg("--generation")
        .arg(generation.to_string());
    for d in import {
        c.arg("--import").arg(d);
    }
    if let Some(g) = group {
        c.arg("--group").arg(g);
    }
    c.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(messages);
    c.spawn()
}
