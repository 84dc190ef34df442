//! Fair: how much of the cluster each queue has, against what it is owed.
//!
//! Weighted hierarchical dominant-resource fairness. The share of a queue is the largest part that
//! it has of any resource (Ghodsi et al., "Dominant Resource Fairness", NSDI'11); who has least,
//! divided by its weight, goes next. A queue with queues below it counts what these have, after
//! each of them is scaled down to the one that has least (Bhattacharya et al., "Hierarchical
//! Scheduling for Diverse Datacenter Workloads", SoCC'13), so that what one child holds of a
//! resource that its sister does not even ask for cannot starve the sister.
//!
//! All arithmetic is on integers; the same cluster gives the same order everywhere.

pub(crate) mod bulk;
pub(crate) mod check;
pub(crate) mod limits;
pub(crate) mod past;
pub(crate) mod reclaim;
#[cfg(test)]
mod reclaim_tests;
pub(crate) mod share;
pub(crate) mod standing;
pub(crate) mod tree;
