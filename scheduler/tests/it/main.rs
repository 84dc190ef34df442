//! Random clusters against a model that is too simple to be wrong, and small stories.
#![allow(clippy::unwrap_used)]

mod model;
mod random;
mod side;
mod stories;
