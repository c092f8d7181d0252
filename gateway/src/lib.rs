//! The gateway: configuration, mission engine and journal, the services around them, and the
//! command line that starts it all.

pub mod admin;
pub mod audit;
pub mod cli;
pub mod config;
pub mod logging;
pub mod metrics;
pub mod policy;
