//! The gateway: configuration, mission engine and journal, the services around them, and the
//! command line that starts it all.

pub mod audit;
pub mod config;
pub mod policy;
