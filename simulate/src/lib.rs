//! Replays a trace through the production scheduler on virtual time, and says how well it did.
//!
//! Pure: texts in, measures out. No I/O, no clock; randomness comes from a seed, so the same trace,
//! settings and seed give the same bytes.
//!
//! A [`trace::Trace`] is read from text by one of [`trace::FORMATS`]. [`nodes`] makes the cluster,
//! [`load`] brings the trace to an offered load, [`run`] plays it, and [`Measures`] sums up the
//! [`Record`]s of all jobs. Times are integer milliseconds since the trace's origin; amounts are
//! the scheduler's base units (thousandths of a CPU, bytes, [`rota_scheduler::DEVICE`]ths of a GPU).

mod account;
mod engine;
mod fragmentation;
pub mod load;
mod measures;
pub mod nodes;
mod order;
mod random;
pub mod trace;

pub use engine::{Estimates, Record, Run, Settings, run};
pub use measures::Measures;
pub use order::{Backfilling, ORDERS, Preset, preset};

/// The resource that GPUs are, in traces that do not name one.
pub const GPU: &str = "nvidia.com/gpu";

/// The node label that says which GPU model a node has.
pub const GPU_MODEL: &str = "nvidia.com/gpu.product";
