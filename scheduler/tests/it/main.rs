//! Random clusters against a model that is too simple to be wrong, and small stories.
#![allow(clippy::unwrap_used)]

mod devices;
mod fair;
mod fair_oracle;
mod history;
mod model;
mod packing;
mod preempt;
mod random;
mod side;
mod stories;
mod time;
mod world;
