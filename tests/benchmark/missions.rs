//! Missions over MQTT to `Succeeded`, against the bare bridge.

use crate::{
    Effort,
    callers::{Kind, Seen},
    stage::{Stage, cpu_time},
    table::{Bound, Table, median},
};
use std::time::Duration;

/// 64 callers, everything on. Returns the gateway's missions per second.
pub async fn throughput(stage: &Stage, table: &mut Table, effort: Effort) -> f64 {
    let mut sides = Sides::default();
    for _ in 0..effort.runs {
        sides.alternate(stage, effort.seconds, &[]).await;
    }
    let rate = |side: &[Run]| side.iter().map(|run| run.seen.rate()).collect::<Vec<_>>();
    let (bare, ours) = (rate(&sides.bridge), rate(&sides.gateway));
    let maximum = median(&ours);
    table.row(
        "bare call, 64 callers",
        &rate(&sides.call),
        "calls/s",
        Bound::None,
    );
    table.row("bare bridge, 64 callers", &bare, "missions/s", Bound::None);
    table.row("gateway, 64 callers", &ours, "missions/s", Bound::None);
    table.row(
        "  of the bare bridge",
        &quotients(&ours, &bare),
        "",
        Bound::AtLeast(0.75),
    );
    let cost = |side: &[Run]| side.iter().map(Run::cpu_micros).collect::<Vec<_>>();
    let (bare, ours) = (cost(&sides.bridge), cost(&sides.gateway));
    table.row("bare bridge, CPU per mission", &bare, "µs", Bound::None);
    table.row("gateway, CPU per mission", &ours, "µs", Bound::None);
    table.row(
        "  times the bare bridge",
        &quotients(&ours, &bare),
        "",
        Bound::AtMost(2.0),
    );
    let p99 = |side: &[Run]| millis(side, 0.99);
    table.row(
        "bare bridge, 64 callers, p99",
        &p99(&sides.bridge),
        "ms",
        Bound::None,
    );
    table.row(
        "gateway, 64 callers, p99",
        &p99(&sides.gateway),
        "ms",
        Bound::None,
    );
    let runs = sides.gateway.iter();
    let failed: u64 = runs.map(|run| run.seen.failed + run.seen.lost).sum();
    table.row(
        "gateway, calls that failed and missions that never ended",
        &[failed as f64],
        "",
        Bound::AtMost(0.0),
    );
    maximum
}

/// One caller: what a mission takes from call to `Succeeded`.
pub async fn one_caller(stage: &Stage, table: &mut Table, effort: Effort, fsync: Duration) {
    let mut sides = Sides::default();
    let alone = [("--callers", "1".into()), ("--connections", "1".into())];
    for _ in 0..effort.runs {
        sides.alternate(stage, effort.seconds, &alone).await;
    }
    let (bare, ours) = (millis(&sides.bridge, 0.5), millis(&sides.gateway, 0.5));
    table.row("bare bridge, one caller, p50", &bare, "ms", Bound::None);
    table.row("gateway, one caller, p50", &ours, "ms", Bound::None);
    let syncs = 2.0 * fsync.as_secs_f64() * 1e3;
    let less: Vec<f64> = ours.iter().map(|ours| ours - syncs).collect();
    table.row(
        "  less two fsyncs, times the bare bridge",
        &quotients(&less, &bare),
        "",
        Bound::AtMost(2.0),
    );
}

/// One run of one side.
struct Run {
    seen: Seen,
    cpu: Duration,
}

impl Run {
    fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.seen.all as f64
    }
}

#[derive(Default)]
struct Sides {
    call: Vec<Run>,
    bridge: Vec<Run>,
    gateway: Vec<Run>,
}

impl Sides {
    /// One run of each side, one right after the other.
    async fn alternate(&mut self, stage: &Stage, seconds: f64, more: &[(&str, String)]) {
        for kind in [Kind::Call, Kind::Bridge, Kind::Gateway] {
            let (process, runs) = match kind {
                Kind::Call => (stage.bridge.process.pid(), &mut self.call),
                Kind::Bridge => (stage.bridge.process.pid(), &mut self.bridge),
                Kind::Gateway | Kind::Flood => (stage.gateway.pid(), &mut self.gateway),
            };
            let before = cpu_time(process);
            let seen = stage.callers(kind, seconds, more).await;
            let cpu = cpu_time(process) - before;
            runs.push(Run { seen, cpu });
        }
    }
}

fn millis(side: &[Run], part: f64) -> Vec<f64> {
    side.iter()
        .map(|run| run.seen.latency(part).as_secs_f64() * 1e3)
        .collect()
}

/// Pair by pair, since the pairs were run in the same seconds.
fn quotients(ours: &[f64], bare: &[f64]) -> Vec<f64> {
    ours.iter()
        .zip(bare)
        .map(|(ours, bare)| ours / bare)
        .collect()
}
