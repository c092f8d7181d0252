//! What identity costs: handshakes, rotation under load, and everything against plaintext.

use crate::{
    Effort,
    callers::Kind,
    sides::{Side, alternate, cpu_micros, quotients, rates},
    stage::{Stage, mqtt_robots, printed, role},
    table::{Bound, Table},
};
use portarium_identity::{ClientTls, PeerPolicy, SvidConfig, SvidManager};
use portarium_protocols::grpc::ALPN;
use portarium_tests::{Config, GatewayProcess, Mosquitto, hints, spiffe_id};
use std::time::{Duration, Instant, SystemTime};
use tokio::{io::AsyncReadExt as _, net::TcpStream, task::JoinSet, time::sleep};

/// Clients that connect at the same time.
const CLIENTS: usize = 16;

/// Handshakes in a loop, in a process of their own.
#[derive(Debug, Clone, clap::Args)]
pub struct Handshakes {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    socket: String,
    #[arg(long)]
    seconds: f64,
}

/// Prints how many there were in a second.
pub async fn run(args: Handshakes) {
    let manager = SvidManager::start(SvidConfig {
        endpoint_socket: Some(args.socket.clone()),
        hint: Some(hints::CONTROL_PLANE.into()),
        ..SvidConfig::default()
    })
    .unwrap();
    manager.ready().await;
    let policy = PeerPolicy::new([spiffe_id(hints::GATEWAY).parse().unwrap()]);
    let tls = manager.client_tls(policy, ALPN);
    let begin = Instant::now();
    let until = begin + Duration::from_secs_f64(args.seconds);
    let clients: JoinSet<u64> = (0..CLIENTS)
        .map(|_| shake(tls.clone(), args.port, until))
        .collect();
    let done: u64 = clients.join_all().await.into_iter().sum();
    println!("{}", done as f64 / begin.elapsed().as_secs_f64());
}

async fn shake(tls: ClientTls, port: u16, until: Instant) -> u64 {
    let mut done = 0;
    while Instant::now() < until {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = "localhost".try_into().unwrap();
        let (mut stream, _) = tls.connect(name, tcp).await.unwrap();
        // With TLS 1.3 the server has not looked at our certificate before it says something.
        stream.read_u8().await.unwrap();
        done += 1;
    }
    done
}

/// The mission service's door against a bare accept loop.
pub async fn handshakes(stage: &Stage, table: &mut Table, effort: Effort) {
    table.part("mutual TLS handshakes, 16 clients");
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..effort.runs {
        bare.push(measured(stage, stage.bridge.accept_port, effort.seconds).await);
        ours.push(measured(stage, stage.gateway.ports.grpc, effort.seconds).await);
    }
    table.row("bare accept loop", &bare, "handshakes/s", Bound::None);
    table.row("mission service", &ours, "handshakes/s", Bound::None);
    let ratios = quotients(&ours, &bare);
    table.row(
        "mission service, of the bare accept loop",
        &ratios,
        "",
        Bound::AtLeast(0.8),
    );
}

async fn measured(stage: &Stage, port: u16, seconds: f64) -> f64 {
    let mut handshakes = role("handshakes");
    handshakes
        .args(["--port", &port.to_string()])
        .args(["--socket", &stage.identities.endpoint()])
        .args(["--seconds", &seconds.to_string()]);
    printed(&mut handshakes).await
}

/// Throughput in the second that follows a rotation against the others.
pub async fn rotation(stage: &Stage, table: &mut Table, effort: Effort) {
    table.part("rotation under load");
    let gateway = stage.side(Kind::Gateway);
    let (mut ratios, mut failed) = (Vec::new(), 0);
    for _ in 0..effort.runs {
        let rotations = async {
            let mut at = Vec::new();
            for _ in 0..3 {
                sleep(Duration::from_secs(4)).await;
                stage.identities.authority().rotate();
                at.push(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64());
            }
            at
        };
        let (seen, rotations) = tokio::join!(gateway.callers(15.0, &[]), rotations);
        let in_rotation = |at: f64| rotations.iter().any(|r| (*r..r + 1.1).contains(&at));
        let part = |which: bool| -> Vec<f64> {
            let of = seen
                .tenths
                .iter()
                .filter(|(at, _)| in_rotation(*at) == which);
            of.map(|(_, done)| *done as f64).collect()
        };
        let mean = |tenths: &[f64]| tenths.iter().sum::<f64>() / tenths.len() as f64;
        ratios.push(mean(&part(true)) / mean(&part(false)));
        failed += seen.failed;
    }
    table.row(
        "missions/s in the seconds of a rotation, of the others",
        &ratios,
        "",
        Bound::AtLeast(0.8),
    );
    table.row(
        "calls that failed",
        &[failed as f64],
        "",
        Bound::AtMost(0.0),
    );
}

/// Everything with identities, against the same gateway, broker, robots and callers in
/// `development`: without TLS and policy. The audit is written in both, since nothing can switch
/// it off.
pub async fn tax(stage: &Stage, table: &mut Table, effort: Effort) {
    table.part("identity tax, 64 callers");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let broker = Mosquitto::plaintext(path).await;
    let robots = stage.callers_robots;
    let _fleet = mqtt_robots(path, broker.port, "acme", &["--plaintext"], robots).await;
    let mut config = Config::development(path).broker("main", broker.port);
    for n in 0..robots {
        config = config.mqtt_robot(&format!("r-{n}"), "redelivery = \"idempotent\"");
    }
    let gateway = GatewayProcess::start(path, &config).await;
    let with = stage.side(Kind::Gateway);
    let without = Side {
        port: gateway.ports.grpc,
        process: gateway.pid(),
        socket: None,
        ..with.clone()
    };
    let [without, with] = alternate([&without, &with], effort, &[]).await;
    let (plain, ours) = (rates(&without), rates(&with));
    table.row("development, plaintext", &plain, "missions/s", Bound::None);
    table.row("with identities", &ours, "missions/s", Bound::None);
    let kept = quotients(&ours, &plain);
    let taxes: Vec<f64> = kept.iter().map(|kept| 100.0 * (1.0 - kept)).collect();
    table.row("tax", &taxes, "%", Bound::AtMost(20.0));
    let (plain, ours) = (cpu_micros(&without), cpu_micros(&with));
    table.row("development, CPU per mission", &plain, "µs", Bound::None);
    table.row("with identities, CPU per mission", &ours, "µs", Bound::None);
}
