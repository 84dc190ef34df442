//! Wall-clock time, from outside.

use jiff::Timestamp;
use tokio::time::Instant;

/// Where `now` comes from.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// `start`, plus what tokio's clock (which tests may pause) has moved since `since`.
    Tokio {
        /// Wall-clock time at `since`.
        start: Timestamp,
        /// When `start` was.
        since: Instant,
    },
}

impl Clock {
    /// A clock that follows tokio's, for simulations on paused time. Call it inside the runtime.
    pub fn tokio(start: Timestamp) -> Self {
        Clock::Tokio {
            start,
            since: Instant::now(),
        }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System => Timestamp::now(),
            Clock::Tokio { start, since } => {
                let passed = Instant::now().saturating_duration_since(*since);
                start
                    .checked_add(jiff::SignedDuration::try_from(passed).unwrap_or_default())
                    .unwrap_or(*start)
            }
        }
    }
}
