//! `portarium-gateway dev`: everything included, nothing to install.
//!
//! An authority, a broker, one simulated robot for each protocol and the shipped gateway, in one
//! process, over the same sockets and the same mutual TLS as in production. Tests use the parts.

pub mod broker;
mod demo;
pub mod robot;
mod stage;
#[cfg(test)]
mod testing;

pub use stage::{Stage, StageError, StageOptions, hints};

use crate::{
    config::{ConfigError, Place},
    supervisor::{Orders, Reload},
};
use anyhow::{Context as _, bail};
use std::{
    fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// The journal's name in the state folder, ...
const JOURNAL: &str = "journal.sqlite";

/// ... and the configuration's.
const CONFIG: &str = "gateway.toml";

/// SVIDs of `dev` live as long as SPIRE's.
const TTL: Duration = Duration::from_secs(3600);

/// Those of the demo live as short as can be, so that one sees them rotate.
const DEMO_TTL: Duration = Duration::from_secs(10);

/// How `dev` is started.
#[derive(Debug, Clone)]
pub struct DevOptions {
    /// Where the state is kept; a temporary folder otherwise.
    pub state_dir: Option<PathBuf>,
    /// Show the main job and end.
    pub demo: bool,
}

/// Serves until Ctrl-C, or runs the demo. Returns whether all went as it should.
///
/// # Errors
/// Where something cannot be started.
pub fn run(options: &DevOptions) -> anyhow::Result<bool> {
    if let Some(dir) = options.state_dir.as_ref().filter(|_| options.demo) {
        begins_anew(dir)?;
    }
    let temporary = match &options.state_dir {
        Some(_) => None,
        None => Some(
            tempfile::tempdir()
                .context("no temporary folder can be made; give one with --state-dir")?,
        ),
    };
    let dir = match (&options.state_dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_path_buf(),
        (None, None) => PathBuf::from("."),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(perform(&dir, options.demo));
    runtime.shutdown_background();
    result
}

/// The demo's missions have the same names each time; what an earlier one left would answer them.
fn begins_anew(dir: &Path) -> anyhow::Result<()> {
    if dir.join(JOURNAL).exists() {
        bail!(
            "{}: there is state of an earlier run, and the demo begins anew; name another folder, or none",
            dir.display()
        );
    }
    Ok(())
}

async fn perform(dir: &Path, demo: bool) -> anyhow::Result<bool> {
    let orders = Orders {
        reload: Some(Reload {
            file: dir.join(CONFIG),
            wanted: std::sync::Arc::default(),
        }),
        ..Orders::default()
    };
    // First of all: a Ctrl-C that comes before would leave the temporary folder behind.
    crate::supervisor::heed_signals(&orders)?;
    let stage = Stage::start(StageOptions {
        dir: dir.to_path_buf(),
        svid_ttl: if demo { DEMO_TTL } else { TTL },
        // The demo shall run beside a gateway that has the usual ports.
        usual_ports: !demo,
    });
    let stage = tokio::select! {
        stage = stage => stage?,
        () = orders.stop.cancelled() => return Ok(!demo),
    };
    let gateway = stage.gateway().map_err(with_advice)?;
    let addresses = gateway.addresses()?;
    let mut serving = tokio::spawn(gateway.serve(orders.clone()));
    let well = tokio::select! {
        ended = &mut serving => {
            ended.context("the gateway failed")??;
            return Ok(orders.stop.is_cancelled());
        }
        well = act(&stage, addresses, demo, &orders) => well,
    };
    orders.stop.cancel();
    serving.await.context("the gateway failed")??;
    stage.close().await;
    well
}

/// The file that the error names is ours; the ports are changed elsewhere.
fn with_advice(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(ConfigError::Key {
            place: Place::File { key, .. },
            ..
        }) if key.ends_with(".listen") => {
            let section = key.trim_end_matches(".listen").to_uppercase();
            let advice = format!("set PORTARIUM__{section}__LISTEN=127.0.0.1:0 for any free port");
            error.context(advice)
        }
        _ => error,
    }
}

async fn act(
    stage: &Stage,
    addresses: crate::supervisor::Addresses,
    demo: bool,
    orders: &Orders,
) -> anyhow::Result<bool> {
    if demo {
        return tokio::select! {
            well = demo::perform(stage, addresses) => well,
            () = orders.stop.cancelled() => Ok(false),
        };
    }
    stage.ready(addresses).await?;
    tell(stage.banner(addresses));
    orders.stop.cancelled().await;
    Ok(true)
}

/// A line on standard output. That nobody reads it any longer ends neither what is served nor the
/// demo, whose verdict is its exit code.
fn tell(text: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}
