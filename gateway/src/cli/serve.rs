//! The commands that serve, and the one that only looks.

use super::{Done, output};
use crate::{config::Config, logging, supervisor};
use std::path::Path;

/// How `dev` is started.
#[cfg(feature = "dev")]
#[derive(Debug, clap::Args)]
pub(super) struct DevArgs {
    /// Where to keep the state; a temporary folder otherwise.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<std::path::PathBuf>,
    /// Show what it can do, say whether all of it worked, and end.
    #[arg(long)]
    pub(super) demo: bool,
}

pub(super) fn run(file: &Path) -> anyhow::Result<Done> {
    let config = Config::load(file)?;
    logging::init(&config.log)?;
    supervisor::run(file.to_path_buf(), config)?;
    Ok(Done::Well)
}

#[cfg(feature = "dev")]
pub(super) fn dev(args: DevArgs) -> anyhow::Result<Done> {
    let DevArgs { state_dir, demo } = args;
    let well = crate::dev::run(&crate::dev::DevOptions { state_dir, demo })?;
    Ok(if well { Done::Well } else { Done::Badly })
}

pub(super) fn check_config(file: &Path) -> anyhow::Result<Done> {
    let config = Config::load(file)?;
    supervisor::check_keys(file, &config)?;
    let count = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let rules = config.reloadable.policy.rules();
    output::line(format_args!(
        "{}: ok: {}, {}, {}",
        output::clean(&file.display().to_string()),
        count(config.reloadable.robots.len(), "robot"),
        count(config.brokers.len(), "broker"),
        count(rules, "policy rule"),
    ))?;
    if config.development.is_some() {
        output::line("development = true: plaintext, and whoever is on this machine may call")?;
    }
    Ok(Done::Well)
}
