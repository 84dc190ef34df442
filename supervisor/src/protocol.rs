//! What agent and supervisor say to each other: length-prefixed JSON frames over a unix socket.
//!
//! Every message carries many items, so that a thousand starts cost one write. The first request
//! on a connection is [`Request::Hello`]; the answer, [`Event::Welcome`], holds everything that
//! the agent needs to take over from a predecessor.

use serde::{Deserialize, Serialize};

/// Version of the protocol; a peer with another one is refused.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest frame: a full batch of starts with large environments, and far below memory pressure.
pub const FRAME_MAX: usize = 64 << 20;

/// Name of the socket in the supervisor's directory.
pub const SOCKET: &str = "sock";

/// From the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Opens the conversation.
    Hello {
        /// [`PROTOCOL_VERSION`] of the agent.
        version: u32,
    },
    /// Starts tasks, in order. A start whose id is known already is ignored.
    Start(Vec<StartSpec>),
    /// Asks tasks to end.
    Stop(Vec<StopSpec>),
    /// The agent has these exits for good; they are forgotten.
    Ack(Vec<String>),
    /// Fenced tasks may run until this moment of CLOCK_BOOTTIME, in milliseconds.
    Fence {
        /// The moment.
        until_boot_ms: u64,
    },
    /// Start nothing more; end with the last task and the last acknowledged exit.
    Drain,
}

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Answers Hello.
    Welcome(Box<Welcome>),
    /// Something happened to tasks.
    Report(Report),
    /// The peer cannot be served; the connection ends.
    Refused {
        /// Why.
        message: String,
    },
}

/// State of a supervisor as a new agent needs it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`PROTOCOL_VERSION`] of the supervisor.
    pub version: u32,
    /// Version of the program.
    pub program: String,
    /// Process id of the supervisor.
    pub pid: u32,
    /// Its generation.
    pub generation: u64,
    /// Tasks that run.
    pub running: Vec<Started>,
    /// Exits that were not acknowledged.
    pub exits: Vec<Exit>,
    /// It starts nothing more.
    #[serde(default)]
    pub draining: bool,
    /// Why cpu limits are not enforced; absent when they are.
    pub cpu_unlimited: Option<String>,
    /// Why memory limits are not enforced; absent when they are.
    pub memory_unlimited: Option<String>,
}

/// What happened, in order: a start of a task is reported before or with its exit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Tasks that started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub started: Vec<Started>,
    /// Tasks that ended; each stands in the synced journal by now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<Exit>,
}

/// A process to start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartSpec {
    /// Unique for every start.
    pub id: String,
    /// Handed back in every report.
    pub tag: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment as `KEY=value`.
    pub env: Vec<String>,
    /// Entry of `env` by which stray descendants of this task are recognised.
    pub mark: String,
    /// Directory of the attempt; gets `work/` and the log files. Created.
    pub attempt_dir: String,
    /// Where to start; absent: the attempt's `work/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
    /// Killed when the fence deadline passes.
    #[serde(default)]
    pub fenced: bool,
}

/// Limits of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// A task to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSpec {
    /// Which.
    pub id: String,
    /// Signal number to the whole process group.
    pub signal: i32,
    /// Milliseconds until SIGKILL.
    pub grace_ms: u64,
}

/// A running task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Id of the start.
    pub id: String,
    /// Tag of the start.
    pub tag: String,
    /// Process id.
    pub pid: i32,
    /// Start time of the process in clock ticks since boot, or a little earlier; with pid and boot
    /// id it is unique.
    pub start_ticks: u64,
    /// Wall time of the start, milliseconds.
    pub started_ms: u64,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    /// By itself or by a signal from elsewhere.
    Ended,
    /// It could not be started.
    NotStarted,
    /// The agent asked for it.
    Stopped,
    /// The fence deadline passed.
    Fenced,
    /// Its memory limit.
    OutOfMemory,
    /// It ended unseen: its exit code is unknown.
    Lost,
}

/// The end of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Id of the start.
    pub id: String,
    /// Tag of the start.
    pub tag: String,
    /// Process id, 0 when none was started.
    pub pid: i32,
    /// Exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it ended.
    pub cause: ExitCause,
    /// CamelCase word, for starts that failed and lost tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Wall time of the start, milliseconds; 0 when none was started.
    pub started_ms: u64,
    /// Wall time of the end, milliseconds.
    pub finished_ms: u64,
}

/// Appends a frame to a buffer.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    serde_json::to_writer(&mut *out, message)?;
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    Ok(())
}

/// Takes frames apart.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    at: usize,
}

/// Why a byte stream is no sequence of frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A length beyond [`FRAME_MAX`].
    #[error("a frame of {0} bytes is larger than allowed")]
    TooLarge(usize),
    /// Not the expected JSON.
    #[error("a frame cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

impl Decoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 && self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        } else if self.at > 1 << 20 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if one is there.
    pub fn next_frame<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, FrameError> {
        let rest = &self.buffer[self.at..];
        let Some(head) = rest.get(..4) else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if len > FRAME_MAX {
            return Err(FrameError::TooLarge(len));
        }
        let Some(body) = rest.get(4..4 + len) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body)?;
        self.at += 4 + len;
        Ok(Some(message))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let mut bytes = Vec::new();
        let messages = [
            Request::Hello { version: 1 },
            Request::Ack(vec!["a".into(), "b".into()]),
            Request::Fence { until_boot_ms: 7 },
        ];
        for m in &messages {
            encode(m, &mut bytes).unwrap();
        }
        for step in 1..bytes.len() {
            let mut d = Decoder::default();
            let mut got = Vec::new();
            for chunk in bytes.chunks(step) {
                d.push(chunk);
                while let Some(m) = d.next_frame::<Request>().unwrap() {
                    got.push(m);
                }
            }
            assert_eq!(got, messages, "step {step}");
        }
    }

    #[test]
    fn a_frame_that_is_too_large_is_refused_before_it_is_read() {
        let mut d = Decoder::default();
        d.push(&u32::MAX.to_le_bytes());
        assert!(matches!(
            d.next_frame::<Request>(),
            Err(FrameError::TooLarge(_))
        ));
    }
}
