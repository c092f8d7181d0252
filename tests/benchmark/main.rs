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
mod missions;
mod scale;
mod signals;
mod stage;
mod table;

use clap::{Parser, Subcommand};
use stage::{Stage, fsync_cost};
use std::{fs, path::PathBuf};
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
    #[command(subcommand)]
    role: Option<Role>,
}

/// A part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Missions,
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
    let mut table = Table::default();
    let stage = Stage::start(64).await;
    let fsync = fsync_cost(stage.path());
    println!("{}", machine());
    let cost = [fsync.as_secs_f64() * 1e3];
    table.row("one fsync of 4 KiB", &cost, "ms", Bound::None);
    let wanted = |part| only.is_empty() || only.contains(&part);
    let mut maximum = None;
    if wanted(Part::Missions) {
        maximum = Some(missions::throughput(&stage, &mut table, effort).await);
        missions::one_caller(&stage, &mut table, effort, fsync).await;
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
    table
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    format!("{cores} × {model}, load average {}", load.join(" "))
}
