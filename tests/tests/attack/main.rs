//! Attacks on the shipped gateway. Each is refused and leaves a line in the audit; meanwhile the
//! missions and stops of others go on, and afterwards the process is the same, as large as before.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]

mod bearer;
mod callers;
mod doorstep;
mod forge;
mod frames;
mod http2;
mod leaves;
mod logs;
mod messages;
mod names;
mod robots;
mod servers;
mod siege;
mod wire;
