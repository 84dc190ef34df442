//! Verbs against a small API server in memory: what they send, print and exit with.

#![allow(clippy::unwrap_used)]

mod fake;
mod verbs;
