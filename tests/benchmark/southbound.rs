//! Missions over southbound gRPC, against a bridge that makes the same call.

use crate::{
    Effort,
    callers::Kind,
    sides::{self, Side, alternate},
    stage::{LASTING, Rival, robots},
    table::{Bound, Table},
};
use portarium_tests::{Config, GatewayProcess, Identities, free_port, hints, spiffe_id};
use std::{net::Ipv4Addr, time::Duration};

const ROBOTS: usize = 64;
/// Each robot listens on an address of its own, from this one on.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 7, 0, 1);

/// 64 callers, everything on.
pub async fn throughput(table: &mut Table, effort: Effort) {
    table.part("missions over southbound gRPC, 64 callers");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    // Robots end connections before their certificates; the bare bridge does not renew its own, so
    // it is started for each run, and what is left of an SVID's life is longer than a run.
    let ttl = Duration::from_secs_f64(3.0 * (effort.seconds + 3.0));
    let identities = Identities::living(path, &["fleet"], ttl).await;
    let port = free_port();
    let first = format!("{FIRST}:{port}");
    let gateway_id = spiffe_id(hints::GATEWAY);
    let place = [
        &["grpc", "--listen", &first, "--peer", &gateway_id][..],
        &["--own-addresses", "--hint", "fleet"],
        &["--socket", &identities.endpoint()],
    ];
    let _robots = robots(path, "grpc", &place.concat(), ROBOTS).await;
    let certificates = path.join("bare");
    identities.write_lasting(hints::GATEWAY, LASTING, &certificates);
    let gateway = GatewayProcess::start(path, &config(path, &identities, port)).await;
    let side = |kind, port, process| Side {
        kind,
        port,
        process,
        socket: Some(identities.endpoint()),
        robots: ROBOTS,
    };
    let ours = side(Kind::Gateway, gateway.ports.grpc, gateway.pid());
    let (mut bare_runs, mut our_runs) = (Vec::new(), Vec::new());
    for _ in 0..effort.runs {
        let count = ROBOTS.to_string();
        let to = ["grpc", "--first", &first, "--robots", &count];
        let rival = Rival::start(path, "bare-bridge", &certificates, &to).await;
        let bare = side(Kind::Bridge, rival.port, rival.process.pid());
        let once = Effort { runs: 1, ..effort };
        let [bare, ours] = alternate([&bare, &ours], once, &[]).await;
        bare_runs.extend(bare);
        our_runs.extend(ours);
    }
    sides::throughput(table, &bare_runs, &our_runs);
    sides::costs(table, &bare_runs, &our_runs, Bound::None);
    sides::no_mishaps(table, &our_runs);
}

fn config(path: &std::path::Path, identities: &Identities, port: u16) -> Config {
    let mut config = Config::new(path, identities);
    for (n, ip) in (0..ROBOTS).zip(FIRST.to_bits()..) {
        let ip = Ipv4Addr::from(ip).to_string();
        let idempotent = "redelivery = \"idempotent\"";
        config = config.grpc_robot_of("fleet", &format!("r-{n}"), &ip, port, idempotent);
    }
    config
}
