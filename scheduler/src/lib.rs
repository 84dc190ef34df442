//! The scheduler core: which waiting tasks start now, and on which nodes.
//!
//! Pure: no clock, no I/O, no async, no randomness of its own; the manifest proves it. The same
//! inputs in the same order give the same answer, so a recorded run can be replayed.
//!
//! The idea is to decide on *task classes* and *node states* instead of on tasks and nodes.
//! Waiting tasks that are alike for placement share a [`Class`]; nodes that are alike for placement
//! (same free amounts, same capacity, same matters-to-somebody labels, same taints) share a node
//! state, which keeps the list of its nodes. States are few in a fresh cluster and approach the
//! number of nodes after churn; every cost here holds at that end too.
//!
//! [`Cluster`] is the mutable picture: nodes, queues and the tasks that hold resources. [`cycle`]
//! gives every [`Demand`] its turns (by the shares of the queue tree), places what its queue allows
//! and what fits, makes room for what has a higher claim, keeps room for what cannot start yet, and
//! takes what it places out of the cluster at once: there is no second decision to disagree with.
//! [`explain()`] says why a class does not fit, who holds what it lacks and what smallest change
//! would help; [`forecast`] when it will start; [`check`] what is wrong, at a moment or over time.
//!
//! Promises: no node gets more than its free amounts, no queue passes its limit or one above it, a
//! gang starts whole or not at all, rules between tasks hold when a task is placed, no fixed port is
//! given twice on a node, nobody is evicted without somebody being placed for it, no chain of
//! evictions comes back to where it began, and all arithmetic is exact (i64 base units, saturating
//! on input).

// Unit tests share a module with the integration tests, which know this crate by its name.
#[cfg(test)]
extern crate self as rota_scheduler;

mod agenda;
mod ahead;
mod attempt;
pub mod check;
mod classes;
mod cluster;
mod cycle;
pub mod estimate;
mod explain;
mod fair;
mod filter;
mod finder;
pub mod forecast;
mod index;
mod intern;
mod mutant;
mod order;
mod place;
mod preempt;
pub mod score;
mod sequence;
mod side;
mod spec;

pub use cluster::{Cluster, Detached, NodeId, QueueId, TaskId};
pub use cycle::{Cause, Eviction, Options, Outcome, Placement, Reservation, Waiting, cycle};
pub use explain::{Blocker, Change, Explanation, HOLDERS_MAX, Holder, explain};
pub use fair::standing::{Standing, standings};
pub use spec::{
    Backfill, Class, ClassSpec, DEVICE, Demand, Effect, Expression, NEVER, NodeSpec, NodeTerm,
    Operator, Order, Policy, QueueSpec, Reclaim, Run, Spread, Taint, TaskTerm, Time, Toleration,
};
