//! The kinds that Rota serves, and the words and small pure helpers that every part shares.
//!
//! A kind is one file in [`kinds`] and one line in [`registry`]. Everything else (schema, CRD YAML,
//! columns, validation) is derived from those.

pub mod core_kinds;
pub mod crd;
pub mod index_set;
pub mod kinds;
pub mod labels;
pub mod names;
pub mod quantity;
pub mod registry;
pub mod selector;
pub mod structural;
pub mod yaml;

pub use kinds::*;
