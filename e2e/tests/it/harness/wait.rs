//! Waiting for a condition with a deadline, never for an amount of time.

use std::time::{Duration, Instant};

/// Long enough for a debug build on a busy machine; a condition that holds costs nothing of it.
pub const DEFAULT: Duration = Duration::from_secs(60);
/// Often enough to cost no noticeable time, seldom enough to leave the CPU to the server.
const POLL: Duration = Duration::from_millis(50);

/// Waits until `condition` gives a value. Panics with `what` and the last refusal after 60 s.
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Result<T, String>) -> T {
    eventually_for(DEFAULT, what, condition)
}

/// Waits until `condition` gives a value. Panics with `what` and the last refusal after `limit`.
pub fn eventually_for<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, String>,
) -> T {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(last) => assert!(
                begun.elapsed() < limit,
                "not within {limit:?}: {what}\n  last: {last}"
            ),
        }
        std::thread::sleep(POLL);
    }
}

/// `Ok` if a condition holds, else the text as refusal.
pub fn check(holds: bool, or: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(or()) }
}
