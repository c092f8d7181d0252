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
pub mod policy;
pub mod supervisor;

/// An error and what is behind it, on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
