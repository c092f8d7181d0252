//! What the gateway does as its identity, and those of others, come, change and go: on the embedded
//! authority in the plain run, on real SPIRE under `tests/run --spire`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod authorities;
mod outage;
mod peers;
mod suspend;
mod withdrawal;
