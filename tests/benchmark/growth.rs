//! How missions per second grow with callers and with robots, beside the bare bridge's.

use crate::{
    Effort,
    callers::Kind,
    chart::{Chart, Point},
    machine,
    sides::{More, alternate, no_mishaps, rates},
    stage::Stage,
    table::{Bound, Table},
};
use std::path::Path;

const CALLERS: [usize; 4] = [1, 8, 64, 256];
const ROBOTS: [usize; 3] = [10, 1_000, 10_000];

/// Draws it there.
pub async fn draw(stage: &Stage, table: &mut Table, effort: Effort, to: &Path) {
    let mut callers = Vec::new();
    for count in CALLERS {
        table.part(&format!(
            "growth, {count} callers, {} robots",
            stage.callers_robots
        ));
        let more = [
            ("--callers", count.to_string()),
            ("--connections", count.min(8).to_string()),
        ];
        callers.push(point(stage, table, effort, count, &more).await);
    }
    let mut robots = Vec::new();
    for count in ROBOTS {
        table.part(&format!("growth, 64 callers, {count} robots"));
        let stage = Stage::start(count).await;
        robots.push(point(&stage, table, effort, count, &[]).await);
    }
    let charts = [
        Chart {
            x: format!("callers ({} robots)", stage.callers_robots),
            points: callers,
        },
        Chart {
            x: "robots (64 callers)".into(),
            points: robots,
        },
    ];
    let Effort { runs, seconds } = effort;
    let note = format!(
        "{}, shared by all processes; median and range of {runs} runs of {seconds} s each",
        machine::cores()
    );
    std::fs::write(to, crate::chart::svg(&charts, &note)).unwrap();
    println!("\ndrawn: {}", to.display());
}

async fn point(
    stage: &Stage,
    table: &mut Table,
    effort: Effort,
    x: usize,
    more: More<'_>,
) -> Point {
    let sides = [Kind::Bridge, Kind::Gateway].map(|kind| stage.side(kind));
    let [bridge, gateway] = alternate(sides.each_ref(), effort, more).await;
    let (bare, ours) = (rates(&bridge), rates(&gateway));
    table.row("bare bridge", &bare, "missions/s", Bound::None);
    table.row("gateway", &ours, "missions/s", Bound::None);
    no_mishaps(table, &gateway);
    Point { x, bare, ours }
}
