//! The gateway: configuration, mission engine and its journal, the services around them, and the
//! command line that starts it all.

#[cfg(feature = "dev")]
pub mod dev;
