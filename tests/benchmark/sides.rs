//! What is compared: run alternately, one right after the other, each run by a process of callers.

use crate::{
    Effort,
    callers::{Kind, Seen},
    stage::{cpu_time, printed, resident, role},
    table::{Bound, Table},
};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Who is called, how, and whose CPU time counts.
#[derive(Debug, Clone)]
pub struct Side {
    pub kind: Kind,
    pub port: u16,
    pub process: u32,
    /// The callers' Workload API; plaintext without.
    pub socket: Option<String>,
    /// Robots `r-0` and so on.
    pub robots: usize,
}

/// Further arguments of the callers.
pub type More<'a> = &'a [(&'a str, String)];

/// One run of one side.
#[derive(Debug)]
pub struct Run {
    pub seen: Seen,
    cpu: Duration,
    resident: u64,
}

/// Distinguishes the missions of all runs.
static RUNS: AtomicU32 = AtomicU32::new(0);

impl Side {
    /// The callers of one run, in a process of their own.
    pub async fn callers(&self, seconds: f64, more: More<'_>) -> Seen {
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let kind = format!("{:?}", self.kind).to_lowercase();
        let mut command = role("callers");
        command
            .args(["--kind", &kind])
            .args(["--port", &self.port.to_string()])
            .args(["--robots", &self.robots.to_string()])
            .args(["--seconds", &seconds.to_string()])
            .args(["--run", &format!("run{run}")]);
        if let Some(socket) = &self.socket {
            command.args(["--socket", socket]);
        }
        for (name, value) in more {
            command.arg(name).arg(value);
        }
        printed(&mut command).await
    }

    pub async fn run(&self, seconds: f64, more: More<'_>) -> Run {
        let before = cpu_time(self.process);
        let seen = self.callers(seconds, more).await;
        Run {
            seen,
            cpu: cpu_time(self.process) - before,
            resident: resident(self.process),
        }
    }
}

/// One run of each side, one right after the other, as often as asked.
pub async fn alternate<const N: usize>(
    sides: [&Side; N],
    effort: Effort,
    more: More<'_>,
) -> [Vec<Run>; N] {
    let mut runs = [const { Vec::new() }; N];
    for _ in 0..effort.runs {
        for (side, runs) in sides.iter().zip(&mut runs) {
            runs.push(side.run(effort.seconds, more).await);
        }
    }
    runs
}

/// Missions per second of the bare bridge and of the gateway, and what one is of the other.
pub fn throughput(table: &mut Table, bare: &[Run], ours: &[Run]) {
    let (bare, ours) = (rates(bare), rates(ours));
    table.row("bare bridge", &bare, "missions/s", Bound::None);
    table.row("gateway", &ours, "missions/s", Bound::None);
    let ratios = quotients(&ours, &bare);
    let bound = Bound::AtLeast(0.75);
    table.row("gateway, of the bare bridge", &ratios, "", bound);
}

/// What a mission costs the processes of both, and the quotient with its bound.
pub fn costs(table: &mut Table, bare: &[Run], ours: &[Run], bound: Bound) {
    let (bare, ours) = (cpu_micros(bare), cpu_micros(ours));
    table.row("bare bridge, CPU per mission", &bare, "µs", Bound::None);
    table.row("gateway, CPU per mission", &ours, "µs", Bound::None);
    table.row(
        "gateway, CPU per mission, times the bare bridge",
        &quotients(&ours, &bare),
        "",
        bound,
    );
}

/// Nothing may have failed.
pub fn no_mishaps(table: &mut Table, ours: &[Run]) {
    table.row(
        "gateway, calls that failed and missions that never ended",
        &[mishaps(ours)],
        "",
        Bound::AtMost(0.0),
    );
}

/// Missions per second.
pub fn rates(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(|run| run.seen.rate()).collect()
}

/// CPU time of the process for each mission, in microseconds.
pub fn cpu_micros(runs: &[Run]) -> Vec<f64> {
    let each = |run: &Run| run.cpu.as_secs_f64() * 1e6 / run.seen.all as f64;
    runs.iter().map(each).collect()
}

/// Resident memory of the process after each run, in MB.
pub fn megabytes(runs: &[Run]) -> Vec<f64> {
    let each = |run: &Run| run.resident as f64 / (1024.0 * 1024.0);
    runs.iter().map(each).collect()
}

/// A quantile of the latency, in milliseconds.
pub fn millis(runs: &[Run], part: f64) -> Vec<f64> {
    let each = |run: &Run| run.seen.latency(part).as_secs_f64() * 1e3;
    runs.iter().map(each).collect()
}

/// Calls that failed, and missions that never ended.
pub fn mishaps(runs: &[Run]) -> f64 {
    let mishaps = runs.iter().map(|run| run.seen.failed + run.seen.lost);
    mishaps.sum::<u64>() as f64
}

/// Pair by pair, since the pairs were run in the same seconds.
pub fn quotients(ours: &[f64], bare: &[f64]) -> Vec<f64> {
    ours.iter()
        .zip(bare)
        .map(|(ours, bare)| ours / bare)
        .collect()
}
