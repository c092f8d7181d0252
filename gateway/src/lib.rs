//! The gateway: configuration, mission engine and journal, the services around them, and the
//! command line that starts it all.

pub mod admin;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod engine;
pub mod journal;
pub mod logging;
pub mod metrics;
pub mod north;
pub mod peers;
pub mod policy;
pub mod supervisor;
