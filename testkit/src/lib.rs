//! A whole cluster in one process, for tests: the real API server over a memory store, the real
//! controllers, and simulated agents, all on tokio's clock, which tests pause.
//!
//! Faults are injected at the store ([`faults`]); [`history`] records every write and checks the
//! promises that must hold at each of them.

pub mod cluster;
pub mod faults;
pub mod history;
pub mod hollow;

use std::time::Duration;

pub use cluster::{Builder, TestCluster};
pub use faults::{Fault, FaultyStore};
pub use history::History;
pub use hollow::{Outcome, Script};

/// How often a condition is looked at, in virtual time.
const POLL: Duration = Duration::from_millis(20);

/// Waits until a condition gives a value, or panics with its last refusal at the deadline.
pub async fn eventually<T, F>(deadline: Duration, what: &str, mut condition: F) -> T
where
    F: AsyncFnMut() -> Result<T, String>,
{
    let begun = tokio::time::Instant::now();
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(last) => assert!(
                begun.elapsed() < deadline,
                "not within {deadline:?}: {what}\n  last: {last}"
            ),
        }
        tokio::time::sleep(POLL).await;
    }
}
