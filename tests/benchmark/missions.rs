//! Missions over MQTT to `Succeeded`, against the bare bridge.

use crate::{
    Effort,
    callers::Kind,
    machine,
    sides::{self, alternate, millis, quotients, rates},
    stage::Stage,
    table::{Bound, Table, median},
};

/// 64 callers, everything on. Returns the gateway's missions per second.
pub async fn throughput(stage: &Stage, table: &mut Table, effort: Effort) -> f64 {
    table.part("missions over MQTT, 64 callers");
    let sides = [Kind::Call, Kind::Bridge, Kind::Gateway].map(|kind| stage.side(kind));
    let [call, bridge, gateway] = alternate(sides.each_ref(), effort, &[]).await;
    table.row("bare call", &rates(&call), "calls/s", Bound::None);
    sides::throughput(table, &bridge, &gateway);
    sides::costs(table, &bridge, &gateway, Bound::AtMost(2.0));
    table.row(
        "bare bridge, p99",
        &millis(&bridge, 0.99),
        "ms",
        Bound::None,
    );
    table.row("gateway, p99", &millis(&gateway, 0.99), "ms", Bound::None);
    sides::no_mishaps(table, &gateway);
    median(&rates(&gateway))
}

/// One caller: what a mission takes from call to `Succeeded`.
pub async fn one_caller(stage: &Stage, table: &mut Table, effort: Effort) {
    table.part("missions over MQTT, one caller");
    let alone = [("--callers", "1".into()), ("--connections", "1".into())];
    let [bridge, gateway] = [Kind::Bridge, Kind::Gateway].map(|kind| stage.side(kind));
    let (mut bare, mut ours, mut fsyncs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.runs {
        // With its neighbours, since a disk that others use changes by the minute.
        fsyncs.push(median(&machine::fsyncs(stage.path())));
        bare.push(bridge.run(effort.seconds, &alone).await);
        ours.push(gateway.run(effort.seconds, &alone).await);
    }
    let (bare, ours) = (millis(&bare, 0.5), millis(&ours, 0.5));
    table.row("one fsync of 4 KiB", &fsyncs, "ms", Bound::None);
    table.row("bare bridge, p50", &bare, "ms", Bound::None);
    table.row("gateway, p50", &ours, "ms", Bound::None);
    let allowed = bare
        .iter()
        .zip(&fsyncs)
        .map(|(bare, fsync)| 2.0 * bare + 2.0 * fsync);
    let allowed: Vec<f64> = allowed.collect();
    table.row(
        "gateway, p50, of 2.0 times the bare bridge plus two fsyncs",
        &quotients(&ours, &allowed),
        "",
        Bound::AtMost(1.0),
    );
}
