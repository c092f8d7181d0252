//! Many clients, many robots, many finished missions.

use crate::{
    Effort,
    callers::Kind,
    stage::{IDLE_CALLERS, Stage, resident},
    table::{Bound, Table},
};
use portarium_identity::{PeerPolicy, SvidConfig, SvidManager};
use portarium_protocols::grpc::{
    ALPN, Connection,
    pb::{self, mission_service_client::MissionServiceClient},
};
use portarium_tests::{Process, binary, hints, spiffe_id, until};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const CLIENTS: usize = 1_000;
const ROBOTS: usize = 10_000;
const FINISHED: usize = 100_000;

/// Connections that do nothing, in a process of their own.
#[derive(Debug, Clone, clap::Args)]
pub struct Idle {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    socket: String,
}

/// Connects, calls once on each connection, says `ready` and waits to be ended.
pub async fn run(args: Idle) {
    let mut connections = Vec::new();
    for hint in IDLE_CALLERS {
        let manager = SvidManager::start(SvidConfig {
            endpoint_socket: Some(args.socket.clone()),
            hint: Some(hint.into()),
            ..SvidConfig::default()
        })
        .unwrap();
        manager.ready().await;
        let policy = PeerPolicy::new([spiffe_id(hints::GATEWAY).parse().unwrap()]);
        let tls = manager.client_tls(policy, ALPN);
        for _ in 0..CLIENTS / IDLE_CALLERS.len() {
            let target = format!("localhost:{}", args.port).parse().unwrap();
            let connection = Connection::start(target, Some(tls.clone()), "idle");
            let channel = connection.ready().await.unwrap();
            let mut client = MissionServiceClient::new(channel);
            let request = pb::ListRobotsRequest::default();
            client.list_robots(request).await.unwrap();
            connections.push(connection);
        }
    }
    println!("ready");
    sleep(Duration::from_secs(3600)).await;
}

/// What an idle client costs.
pub async fn idle_clients(stage: &Stage, table: &mut Table) {
    table.part("1,000 connected idle clients");
    let before = resident(stage.gateway.pid());
    let clients = Process::start(
        &binary("bench"),
        [
            "idle",
            "--port",
            &stage.gateway.ports.grpc.to_string(),
            "--socket",
            &stage.identities.endpoint(),
        ],
        &stage.path().join("idle.log"),
    );
    until("a thousand clients", async || {
        clients.output().contains("ready")
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    let each = (resident(stage.gateway.pid()) as f64 - before as f64) / CLIENTS as f64;
    table.row("resident each", &[each / 1024.0], "kB", Bound::AtMost(64.0));
}

/// 10,000 robots and 100,000 finished missions, against an empty gateway.
pub async fn registry_and_history(empty: &Stage, table: &mut Table, effort: Effort) {
    table.part("10,000 robots, 100,000 finished missions");
    let mut full = Stage::start(ROBOTS).await;
    let mut finished = 0;
    while finished < FINISHED {
        let seen = full.side(Kind::Gateway).callers(10.0, &[]).await;
        finished += seen.all as usize;
        eprintln!("{finished} missions finished");
    }
    let mut starts = Vec::new();
    for _ in 0..effort.runs {
        full.gateway.kill();
        let began = Instant::now();
        full.gateway.restart().await;
        starts.push(began.elapsed().as_secs_f64());
    }
    table.row("start to ready", &starts, "s", Bound::AtMost(2.0));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let some = [("--callers", "4".to_owned()), ("--rate", "100".to_owned())];
    for _ in 0..effort.runs {
        for (stage, p50s) in [(&full, &mut ours), (empty, &mut theirs)] {
            let seen = stage.side(Kind::Flood).callers(effort.seconds, &some).await;
            p50s.push(seen.latency(0.5).as_secs_f64() * 1e3);
        }
    }
    table.row("dispatch, p50", &ours, "ms", Bound::None);
    table.row(
        "dispatch on an empty gateway, p50",
        &theirs,
        "ms",
        Bound::None,
    );
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
    table.row(
        "dispatch, times the empty gateway",
        &ratios,
        "",
        Bound::AtMost(1.2),
    );
    table.row(
        "resident",
        &[resident(full.gateway.pid()) as f64 / (1024.0 * 1024.0)],
        "MB",
        Bound::AtMost(150.0),
    );
}

/// A thousand robots, one mission each at once.
pub async fn at_once(table: &mut Table) {
    table.part("1,000 robots, one mission each at once");
    let stage = Stage::start(1_000).await;
    let each = [
        ("--callers", "1000".to_owned()),
        ("--turns", "1".to_owned()),
    ];
    let seen = stage.side(Kind::Gateway).callers(0.0, &each).await;
    let last = seen.latencies.last().copied().unwrap_or(u64::MAX);
    table.row(
        "ended",
        &[seen.all as f64],
        "missions",
        Bound::AtLeast(1_000.0),
    );
    let shed = seen.shed as f64;
    table.row("shed, and asked for again", &[shed], "", Bound::None);
    table.row("the last one after", &[last as f64 / 1e6], "s", Bound::None);
}
