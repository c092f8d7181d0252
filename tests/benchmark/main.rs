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
mod chart;
mod growth;
mod identity;
mod machine;
mod missions;
mod rivals;
mod scale;
mod sides;
mod signals;
mod southbound;
mod stage;
mod table;

use clap::{Parser, Subcommand};
use stage::Stage;
use std::path::PathBuf;
use table::{Bound, Table};

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
    /// Instead of the table: missions per second over callers and robots, drawn as an SVG.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = "tests/benchmark/growth.svg")]
    growth: Option<PathBuf>,
    /// Instead of the table: against what people would use instead.
    #[arg(long)]
    rivals: bool,
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
    Idle,
    AtOnce,
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
    #[command(hide = true)]
    Posts(rivals::Posts),
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
        Some(Role::Posts(posts)) => rivals::run(posts).await,
        None => {
            let table = measure(&cli).await;
            if let Some(path) = cli.json {
                table.write_json(&path);
            }
            std::process::exit(if table.all_hold() { 0 } else { 1 });
        }
    }
}

async fn measure(cli: &Cli) -> Table {
    let effort = Effort {
        runs: cli.runs,
        seconds: cli.seconds,
    };
    let mut table = Table::new();
    let begun = machine::look(&mut table).await;
    let stage = Stage::start(64).await;
    let fsyncs = machine::fsyncs(stage.path());
    table.row("one fsync of 4 KiB", &fsyncs, "ms", Bound::None);
    parts(cli, effort, &stage, &mut table).await;
    if let Some(file) = &cli.growth {
        growth::draw(&stage, &mut table, effort, file).await;
    }
    if cli.rivals {
        rivals::compare(&stage, &mut table, effort).await;
    }
    machine::conclude(&mut table, begun);
    table.conclude();
    table
}

/// The parts of the table that are wanted.
async fn parts(cli: &Cli, effort: Effort, stage: &Stage, table: &mut Table) {
    let all = cli.only.is_empty() && cli.growth.is_none() && !cli.rivals;
    let wanted = |part| all || cli.only.contains(&part);
    let mut maximum = None;
    if wanted(Part::Missions) {
        maximum = Some(missions::throughput(stage, table, effort).await);
        missions::one_caller(stage, table, effort).await;
    }
    if wanted(Part::Southbound) {
        southbound::throughput(table, effort).await;
    }
    if wanted(Part::Tax) {
        identity::tax(stage, table, effort).await;
    }
    if wanted(Part::Signals) {
        let maximum = match maximum {
            Some(maximum) => maximum,
            None => missions::throughput(stage, table, effort).await,
        };
        signals::latency(stage, table, effort, maximum).await;
    }
    if wanted(Part::Handshakes) {
        identity::handshakes(stage, table, effort).await;
    }
    if wanted(Part::Rotation) {
        identity::rotation(stage, table, effort).await;
    }
    if wanted(Part::Idle) {
        scale::idle_clients(stage, table).await;
    }
    if wanted(Part::AtOnce) {
        scale::at_once(table).await;
    }
    if wanted(Part::Scale) {
        scale::registry_and_history(stage, table, effort).await;
    }
}
