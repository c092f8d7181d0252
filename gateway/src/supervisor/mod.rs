//! The gateway as a whole: bound early, serving once it has an identity, reloaded, drained.
//!
//! A task that ends before it was asked to takes the process down with a clear last line: systemd
//! or Kubernetes starts it again, and the journal makes that safe.

mod adapters;
mod descriptors;
mod observe;
mod prepare;
mod readiness;
mod reload;
mod serve;

pub use prepare::{Addresses, Gateway, check_keys};

use crate::config::Config;
use anyhow::Context as _;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the process is told while it serves.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// End, within the grace.
    pub stop: CancellationToken,
    /// Read the file again. `None`: there is none.
    pub reload: Option<Reload>,
}

/// Wakes the reload.
#[derive(Debug, Clone)]
pub struct Reload {
    /// What to read again.
    pub file: PathBuf,
    /// Notified for each reload that is wanted.
    pub wanted: std::sync::Arc<tokio::sync::Notify>,
}

/// `portarium-gateway run`: serves until SIGTERM or SIGINT; SIGHUP reads robots and policy again.
///
/// # Errors
/// A [`crate::config::ConfigError`] where the configuration is wrong; anything else where the
/// gateway failed.
pub fn run(file: PathBuf, config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // How many tasks run before the next look at the sockets: a stop may lie there. The usual 61
        // are milliseconds where each has work to do.
        .event_interval(8)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let orders = Orders {
            stop: CancellationToken::new(),
            reload: Some(Reload {
                file: file.clone(),
                wanted: std::sync::Arc::default(),
            }),
        };
        // First of all: a SIGHUP that comes while the journal is read would end the process.
        heed_signals(&orders)?;
        let gateway = Gateway::prepare(&file, config)?;
        gateway.serve(orders).await
    });
    // What is left are reads that nobody waits for.
    runtime.shutdown_background();
    result
}

/// Turns signals into orders. A second SIGTERM or SIGINT ends the process at once: the journal
/// makes that safe too.
///
/// # Errors
/// Where the system does not let us listen.
pub(crate) fn heed_signals(orders: &Orders) -> anyhow::Result<()> {
    let failed = "cannot listen for signals";
    let mut terminate = signal(SignalKind::terminate()).context(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).context(failed)?;
    let orders = orders.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hang_up.recv() => {
                    if let Some(reload) = &orders.reload {
                        reload.wanted.notify_one();
                    }
                    continue;
                }
            }
            if orders.stop.is_cancelled() {
                tracing::warn!("told to end a second time: ending at once");
                std::process::exit(1);
            }
            tracing::info!("ending; once more to end at once");
            orders.stop.cancel();
        }
    });
    Ok(())
}
