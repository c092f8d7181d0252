//! The promises, each tried where it would break.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cancels;
mod deadlines;
mod durability;
mod fake;
mod keys;
mod make;
mod recovery;
mod registry;
mod reports;
mod silence;
mod simulator;
mod stops;
mod stops_again;
mod stops_late;
mod world;
