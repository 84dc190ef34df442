//! Connections of agents: frames in and out, requests and their effect.
//!
//! Promises: one agent is served at a time, the newest; a peer that does not read is cut, and
//! learns everything again from the Welcome of its next connection.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::event::epoll;

use super::{KIND_CONNECTION, KIND_MASK, Supervisor};
use crate::protocol::{Decoder, Event, PROTOCOL_VERSION, Request, SOCKET, Welcome, encode};

/// A peer that lets this much pile up does not read; it is cut and gets it all again in a Welcome.
const OUT_MAX: usize = 32 << 20;

pub(super) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    pub(super) out: Vec<u8>,
    sent: usize,
    pub(super) greeted: bool,
    wants_write: bool,
}

impl Supervisor {
    pub(super) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let number = self.next_connection;
            self.next_connection += 1;
            if self
                .watch(
                    stream.as_fd(),
                    KIND_CONNECTION | number,
                    epoll::EventFlags::IN,
                )
                .is_err()
            {
                continue;
            }
            self.connections.insert(
                number,
                Connection {
                    stream,
                    decoder: Decoder::default(),
                    out: Vec::new(),
                    sent: 0,
                    greeted: false,
                    wants_write: false,
                },
            );
        }
    }

    pub(super) fn on_connection(&mut self, token: u64, flags: epoll::EventFlags) {
        let number = token & !KIND_MASK;
        if flags.contains(epoll::EventFlags::OUT) {
            self.send(number);
        }
        if !flags
            .intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
        {
            return;
        }
        let mut requests = Vec::new();
        let mut open = true;
        if let Some(c) = self.connections.get_mut(&number) {
            self.buffer.resize(256 << 10, 0);
            match rustix::io::read(&c.stream, &mut self.buffer[..]) {
                Ok(0) => open = false,
                Ok(n) => c.decoder.push(&self.buffer[..n]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => open = false,
            }
            loop {
                match c.decoder.next_frame::<Request>() {
                    Ok(Some(r)) => requests.push(r),
                    Ok(None) => break,
                    Err(e) => {
                        eprintln!("a request cannot be read, the connection is closed: {e}");
                        open = false;
                        break;
                    }
                }
            }
        }
        for r in requests {
            if !self.connections.contains_key(&number) {
                return;
            }
            self.on_request(number, r);
        }
        if !open {
            self.connections.remove(&number);
        }
    }

    fn on_request(&mut self, number: u64, request: Request) {
        let greeted = self.connections.get(&number).is_some_and(|c| c.greeted);
        match request {
            Request::Hello { version } if version == PROTOCOL_VERSION => {
                // What is not reported yet goes to the old peers first, so that the Welcome holds
                // everything exactly once.
                self.flush();
                let welcome = Welcome {
                    version: PROTOCOL_VERSION,
                    program: env!("CARGO_PKG_VERSION").into(),
                    pid: std::process::id(),
                    generation: self.options.generation,
                    running: self
                        .slots
                        .iter()
                        .flatten()
                        .map(|t| t.record.started.clone())
                        .collect(),
                    exits: self.exits.values().cloned().collect(),
                    draining: self.draining,
                    cpu_unlimited: self.groups.refused("cpu"),
                    memory_unlimited: self.groups.refused("memory"),
                };
                // One agent at a time: the newest connection is it.
                self.connections.retain(|n, c| *n == number || !c.greeted);
                if let Some(c) = self.connections.get_mut(&number) {
                    c.greeted = true;
                }
                self.tell(number, &Event::Welcome(Box::new(welcome)));
            }
            Request::Hello { version } => {
                let message =
                    format!("this supervisor speaks protocol {PROTOCOL_VERSION}, not {version}");
                self.tell(number, &Event::Refused { message });
                self.connections.remove(&number);
            }
            _ if !greeted => {
                self.connections.remove(&number);
            }
            Request::Start(specs) => {
                for spec in specs {
                    if !self.knows(&spec.id) && !self.queued.contains_key(&spec.id) {
                        self.queued.insert(spec.id.clone(), None);
                        self.queue.push_back(spec);
                    }
                }
            }
            Request::Stop(stops) => stops.into_iter().for_each(|s| self.stop(s)),
            Request::Ack(ids) => {
                for id in &ids {
                    self.exits.remove(id);
                }
                self.journal.ack(&ids);
            }
            Request::Fence { until_boot_ms } => self.fence_until = until_boot_ms,
            Request::Drain => self.draining = true,
        }
    }

    pub(super) fn tell(&mut self, number: u64, event: &Event) {
        if let Some(c) = self.connections.get_mut(&number)
            && (encode(event, &mut c.out).is_err() || c.out.len() - c.sent > OUT_MAX)
        {
            self.connections.remove(&number);
            return;
        }
        self.send(number);
    }

    fn send(&mut self, number: u64) {
        let Some(c) = self.connections.get_mut(&number) else {
            return;
        };
        while c.sent < c.out.len() {
            match rustix::io::write(&c.stream, &c.out[c.sent..]) {
                Ok(n) => c.sent += n,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.connections.remove(&number);
                    return;
                }
            }
        }
        if c.sent == c.out.len() {
            c.out.clear();
            c.sent = 0;
        }
        let wants = !c.out.is_empty();
        if wants != c.wants_write {
            c.wants_write = wants;
            let mut flags = epoll::EventFlags::IN;
            if wants {
                flags |= epoll::EventFlags::OUT;
            }
            let data = epoll::EventData::new_u64(KIND_CONNECTION | number);
            if epoll::modify(&self.epoll, &c.stream, data, flags).is_err() {
                self.connections.remove(&number);
            }
        }
    }
}

/// Path of the socket in an open directory, short enough whatever the directory is called.
pub fn socket_path(dir: &std::fs::File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}
