//! What people would use instead: a bridge in Python and one in Node, the same job without a
//! journal, and `thingsboard-gateway` as far as it can do it.

mod thingsboard;

pub use thingsboard::{Posts, run};

use crate::{
    Effort,
    callers::Kind,
    sides::{Run, Side, alternate, cpu_micros, megabytes, millis, mishaps, rates},
    stage::Stage,
    table::{Bound, Table},
};
use portarium_tests::{Process, free_port, until};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// What `tests/bench --rivals` installed.
fn peers(what: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(".peers")
        .join(what);
    assert!(path.exists(), "no {}: run tests/bench", path.display());
    path
}

/// All of them, and ours.
pub async fn compare(stage: &Stage, table: &mut Table, effort: Effort) {
    table.part("rivals, missions over MQTT, 64 callers");
    let python = peers("rivals/bin/python");
    let modules = peers("rivals-node/node_modules");
    let node = [
        "env".into(),
        format!("NODE_PATH={}", modules.display()).into(),
    ];
    let _fleets = [stage.fleet("python").await, stage.fleet("node").await];
    let python = Bridge::start(stage, &[], &python, "bridge.py").await;
    let node = Bridge::start(stage, &node, Path::new("node"), "bridge.js").await;
    let sides = [
        stage.side(Kind::Gateway),
        stage.side(Kind::Bridge),
        python.side(stage),
        node.side(stage),
    ];
    let runs = alternate(sides.each_ref(), effort, &[]).await;
    let names = [
        "gateway",
        "bare bridge",
        "Python (grpcio, aiomqtt)",
        "Node (grpc-js, mqtt.js)",
    ];
    for (name, runs) in names.iter().zip(&runs) {
        rows(table, name, runs);
    }
    thingsboard::measure(table, effort).await;
}

fn rows(table: &mut Table, name: &str, runs: &[Run]) {
    let mut row = |what: &str, values: &[f64], unit| {
        table.row(&format!("{name}{what}"), values, unit, Bound::None);
    };
    row("", &rates(runs), "missions/s");
    row(", p99", &millis(runs, 0.99), "ms");
    row(", CPU per mission", &cpu_micros(runs), "µs");
    row(", resident", &megabytes(runs), "MB");
    row(", calls that failed", &[mishaps(runs)], "");
}

/// A bridge of theirs, with the certificates of the bare one.
struct Bridge {
    port: u16,
    process: Process,
}

impl Bridge {
    async fn start(stage: &Stage, prefix: &[OsString], program: &Path, script: &str) -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let port = free_port();
        let arguments: [OsString; 9] = [
            tests.join("benchmark/rivals").join(script).into(),
            "--listen".into(),
            port.to_string().into(),
            "--broker".into(),
            stage.broker.port.to_string().into(),
            "--certificates".into(),
            stage.path().join("bare").into(),
            "--protos".into(),
            tests.join("../protocols/proto").into(),
        ];
        let log = stage.path().join(format!("{script}.log"));
        let process = Process::start_behind(prefix, program, arguments, &log);
        until(script, async || process.output().contains("ready")).await;
        Self { port, process }
    }

    fn side(&self, stage: &Stage) -> Side {
        Side {
            port: self.port,
            process: self.process.pid(),
            ..stage.side(Kind::Bridge)
        }
    }
}
