//! Missions over MQTT to `Succeeded`, against the bare bridge.

use crate::{
    Effort,
    callers::Kind,
    sides::{alternate, cpu_micros, millis, mishaps, quotients, rates},
    stage::Stage,
    table::{Bound, Table, median},
};
use std::time::Duration;

/// 64 callers, everything on. Returns the gateway's missions per second.
pub async fn throughput(stage: &Stage, table: &mut Table, effort: Effort) -> f64 {
    table.part("missions over MQTT, 64 callers");
    let sides = [Kind::Call, Kind::Bridge, Kind::Gateway].map(|kind| stage.side(kind));
    let [call, bridge, gateway] = alternate(sides.each_ref(), effort, &[]).await;
    let (bare, ours) = (rates(&bridge), rates(&gateway));
    let maximum = median(&ours);
    table.row("bare call", &rates(&call), "calls/s", Bound::None);
    table.row("bare bridge", &bare, "missions/s", Bound::None);
    table.row("gateway", &ours, "missions/s", Bound::None);
    table.row(
        "gateway, of the bare bridge",
        &quotients(&ours, &bare),
        "",
        Bound::AtLeast(0.75),
    );
    let (bare, ours) = (cpu_micros(&bridge), cpu_micros(&gateway));
    table.row("bare bridge, CPU per mission", &bare, "µs", Bound::None);
    table.row("gateway, CPU per mission", &ours, "µs", Bound::None);
    table.row(
        "gateway, CPU per mission, times the bare bridge",
        &quotients(&ours, &bare),
        "",
        Bound::AtMost(2.0),
    );
    table.row(
        "bare bridge, p99",
        &millis(&bridge, 0.99),
        "ms",
        Bound::None,
    );
    table.row("gateway, p99", &millis(&gateway, 0.99), "ms", Bound::None);
    table.row(
        "gateway, calls that failed and missions that never ended",
        &[mishaps(&gateway)],
        "",
        Bound::AtMost(0.0),
    );
    maximum
}

/// One caller: what a mission takes from call to `Succeeded`.
pub async fn one_caller(stage: &Stage, table: &mut Table, effort: Effort, fsync: Duration) {
    table.part("missions over MQTT, one caller");
    let alone = [("--callers", "1".into()), ("--connections", "1".into())];
    let sides = [Kind::Bridge, Kind::Gateway].map(|kind| stage.side(kind));
    let [bridge, gateway] = alternate(sides.each_ref(), effort, &alone).await;
    let (bare, ours) = (millis(&bridge, 0.5), millis(&gateway, 0.5));
    table.row("bare bridge, p50", &bare, "ms", Bound::None);
    table.row("gateway, p50", &ours, "ms", Bound::None);
    let syncs = 2.0 * fsync.as_secs_f64() * 1e3;
    let less: Vec<f64> = ours.iter().map(|ours| ours - syncs).collect();
    table.row(
        "gateway, p50 less two fsyncs, times the bare bridge",
        &quotients(&less, &bare),
        "",
        Bound::AtMost(2.0),
    );
}
