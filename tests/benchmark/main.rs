//! The gateway measured against programs that do the same over the same wires with nothing in
//! between: `tests/bench`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a measurement that fails is to say so at once"
)]

mod bare;
mod callers;
mod identity;
mod machine;
mod missions;
mod scale;
mod sides;
mod signals;
mod southbound;
mod stage;
mod table;

use clap::{Parser, Subcommand};
use machine::Machine;
use stage::Stage;
use std::{path::PathBuf, time::Duration};
use table::{Bound, Table, median};

#[derive(Parser)]
#[command(about = "The gateway measured against a bare bridge")]
struct Cli {
    /// Write the table there as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Runs of each side of a comparison.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Seconds of each run, warm-up aside.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// A part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Missions,
    Southbound,
    Tax,
    Signals,
    Handshakes,
    Rotation,
    Scale,
}

/// What a process of a measurement is.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Bare(bare::Bare),
    #[command(hide = true)]
    Callers(callers::Callers),
    #[command(hide = true)]
    Signals(signals::Signals),
    #[command(hide = true)]
    Handshakes(identity::Handshakes),
    #[command(hide = true)]
    Idle(scale::Idle),
}

/// How long and how often to measure.
#[derive(Debug, Clone, Copy)]
struct Effort {
    runs: usize,
    seconds: f64,
}

#[tokio::main]
async fn main() {
    let cli = Cli::parse();
    portarium_tests::init();
    match cli.role {
        Some(Role::Bare(bare)) => bare::run(bare).await,
        Some(Role::Callers(callers)) => callers::run(callers).await,
        Some(Role::Signals(signals)) => signals::run(signals).await,
        Some(Role::Handshakes(handshakes)) => identity::run(handshakes).await,
        Some(Role::Idle(idle)) => scale::run(idle).await,
        None => {
            let effort = Effort {
                runs: cli.runs,
                seconds: cli.seconds,
            };
            let table = measure(effort, &cli.only).await;
            if let Some(path) = cli.json {
                table.write_json(&path);
            }
            std::process::exit(if table.all_hold() { 0 } else { 1 });
        }
    }
}

async fn measure(effort: Effort, only: &[Part]) -> Table {
    let mut table = Table::new();
    let machine = Machine::look(&mut table).await;
    let stage = Stage::start(64).await;
    let fsyncs = machine::fsyncs(stage.path());
    table.row("one fsync of 4 KiB", &fsyncs, "ms", Bound::None);
    let fsync = Duration::from_secs_f64(median(&fsyncs) / 1e3);
    let wanted = |part| only.is_empty() || only.contains(&part);
    let mut maximum = None;
    if wanted(Part::Missions) {
        maximum = Some(missions::throughput(&stage, &mut table, effort).await);
        missions::one_caller(&stage, &mut table, effort, fsync).await;
    }
    if wanted(Part::Southbound) {
        southbound::throughput(&mut table, effort).await;
    }
    if wanted(Part::Tax) {
        identity::tax(&stage, &mut table, effort).await;
    }
    if wanted(Part::Signals) {
        let maximum = match maximum {
            Some(maximum) => maximum,
            None => missions::throughput(&stage, &mut table, effort).await,
        };
        signals::latency(&stage, &mut table, effort, maximum).await;
    }
    if wanted(Part::Handshakes) {
        identity::handshakes(&stage, &mut table, effort).await;
    }
    if wanted(Part::Rotation) {
        identity::rotation(&stage, &mut table, effort).await;
    }
    if wanted(Part::Scale) {
        scale::idle_clients(&stage, &mut table).await;
        scale::at_once(&mut table).await;
        scale::registry_and_history(&stage, &mut table, effort).await;
    }
    machine.conclude(&mut table);
    table.conclude();
    table
}
