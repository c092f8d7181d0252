//! What only real SPIRE can show: run by `tests/run --spire`, and left out by name otherwise.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod real_spire;
