//! Who would be cut off if an authority were revoked.

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics};
use portarium_protocols::grpc::pb;
use portarium_tests::{
    Caller, Config, GatewayProcess, Identities, Mosquitto, Process, audit, binary, figure,
    grpc_robot, hints, init, metric, mqtt_robot, spiffe_id, until,
};
use std::{
    collections::BTreeSet,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tonic::Code;

/// Connections follow their SVIDs within this.
const LIFE: Duration = Duration::from_secs(30);

const ROBOTS: [&str; 2] = ["m", "g"];

/// Both callers, both lanes to the broker and both to the robot that serves gRPC.
const PEERS: [(&str, &str, &str); 4] = [
    ("north", "grpc", hints::CONTROL_PLANE),
    ("north", "grpc", hints::OPERATOR),
    ("south", "grpc", "g"),
    ("south", "mqtt.main", hints::BROKER),
];

type Row = (String, String, String);

/// An operator who asks whose connections rest on what.
struct Asks {
    operator: Caller,
    gateway: GatewayProcess,
}

impl Asks {
    async fn peers(&self, authority: &str) -> pb::ListPeersResponse {
        let request = pb::ListPeersRequest {
            authority_id: authority.into(),
        };
        let answer = self.operator.call(|mut client| {
            let request = request.clone();
            async move { client.list_peers(request).await }
        });
        answer.await.unwrap()
    }

    /// Who is connected on this authority.
    async fn on(&self, authority: &str) -> BTreeSet<Row> {
        let peers = self.peers(authority).await.peers;
        let row = |peer: pb::Peer| (peer.direction, peer.adapter, peer.spiffe_id);
        peers.into_iter().map(row).collect()
    }

    /// What the metrics count on it, on both sides.
    async fn counted(&self, authority: &str) -> f64 {
        let name = "portarium_gateway_peer_connections";
        let labels = format!("authority=\"{authority}\"");
        metric(self.gateway.ports.admin, name, &labels).await
    }
}

fn everyone() -> BTreeSet<Row> {
    let row = |(side, adapter, hint): (&str, &str, &str)| {
        (side.to_owned(), adapter.to_owned(), spiffe_id(hint))
    };
    PEERS.into_iter().map(row).collect()
}

/// What the command says, as the operator.
async fn said(dir: &Path, identities: &Identities, port: u16, words: &str) -> String {
    let program = binary("portarium-gateway");
    let mut command = Command::new(&program);
    command
        .args(words.split_whitespace())
        .args(["--hint", hints::OPERATOR])
        .env("SPIFFE_ENDPOINT_SOCKET", identities.endpoint())
        .env("PORTARIUM_SERVER", format!("localhost:{port}"))
        .env("PORTARIUM_SERVER_ID", spiffe_id(hints::GATEWAY));
    let output = dir.join(format!("said-{}", fastrand::u64(..)));
    let mut process = Process::spawn(command, &program, &output);
    let ended = process.wait(Duration::from_secs(20)).await;
    assert!(ended.success(), "{}", process.output());
    process.output()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn each_peer_is_named_on_the_old_authority_until_its_connection_is_of_the_new_one() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::living(dir, &ROBOTS, LIFE).await;
    let broker = Mosquitto::rotating(dir, &identities).await;
    let log = ExecutionLog::in_memory();
    let robot = |id: &str| RobotConfig::new(id.parse().unwrap());
    let own = StatusTopics::Own;
    let _m = mqtt_robot(&identities, broker.port, own, robot("m"), &log).await;
    let g = grpc_robot(&identities, robot("g"), &log).await;
    let config = Config::new(dir, &identities)
        .broker("main", broker.port)
        .mqtt_robot("m", "")
        .grpc_robot("g", g.local_addr().port(), "");
    let gateway = GatewayProcess::start(dir, &config).await;
    let port = gateway.ports.grpc;
    let control = Caller::control_plane(&identities, port).await;
    control.robots_reachable(&ROBOTS).await;
    let asks = Asks {
        operator: Caller::with(&identities, hints::OPERATOR, port).await,
        gateway,
    };

    let old = identities.signing().await;
    let all = asks.peers("").await.peers;
    assert!(all.iter().all(|peer| {
        let rests = peer.authority_id == old && peer.intermediate_ids.is_empty();
        rests && peer.in_bundle && peer.trust_domain == "portarium.robotics"
    }));
    // Each lane is a connection.
    until("two lanes to each", async || {
        asks.peers(&old).await.peers.len() == 6
    })
    .await;
    assert_eq!(asks.on(&old).await, everyone());

    identities.prepare().await;
    identities.activate().await;
    let new = identities.signing().await;
    assert_ne!(new, old);
    identities.taint().await;
    let tainted = Instant::now();
    // Who connects from now on rests on the new one; who is connected stays on the old one for now.
    let _late = Caller::control_plane(&identities, port).await;
    let (before, after) = (asks.on(&old).await, asks.on(&new).await);
    let newcomer = everyone()
        .into_iter()
        .find(|row| row.2 == spiffe_id(hints::CONTROL_PLANE));
    assert!(after.contains(&newcomer.unwrap()), "{after:?}");
    assert!(!before.is_empty());
    assert!(asks.counted(&old).await > 0.5 && asks.counted(&new).await > 0.5);
    let known = asks.peers("").await.authority_ids;
    assert!(known.contains(&old) && known.contains(&new), "{known:?}");
    let told = said(dir, &identities, port, &format!("peers --authority {old}")).await;
    assert!(
        told.lines().skip(1).all(|line| line.ends_with(&old)),
        "{told}"
    );

    until("nobody to rest on the old one", async || {
        asks.on(&old).await.is_empty()
    })
    .await;
    let took = tainted.elapsed();
    assert_eq!(asks.on(&new).await, everyone());
    assert!(asks.counted(&old).await < 0.5);
    let told = said(dir, &identities, port, &format!("peers --authority {old}")).await;
    assert_eq!(told, format!("no connection rests on authority {old}\n"));

    identities.revoke().await;
    until("the old one to leave the bundle", async || {
        !asks.peers("").await.authority_ids.contains(&old)
    })
    .await;
    // mosquitto is started anew, since it keeps authorities that it has read.
    until("everyone to be there", async || {
        asks.on(&new).await == everyone()
    })
    .await;
    let lines = audit(&asks.gateway.audit_file());
    let cut = lines.iter().filter(|line| line["method"] == "recheck");
    assert_eq!(cut.count(), 0, "whoever it named would have been cut");
    figure(
        "peers",
        &format!(
            "{} of {} named on the old authority right after the taint, none {took:.1?} later; \
             revoked then, nobody is cut",
            before.len(),
            PEERS.len()
        ),
    );

    // It is no control plane's to ask.
    let request = pb::ListPeersRequest::default();
    let refused = control.client().unwrap().list_peers(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let told = |decision: &str, hint: &str| {
        let lines = audit(&asks.gateway.audit_file());
        lines.iter().any(|line| {
            line["method"] == "ListPeers"
                && line["decision"] == decision
                && line["caller"] == spiffe_id(hint)
        })
    };
    until("the audit to tell", async || {
        told("refused", hints::CONTROL_PLANE) && told("allowed", hints::OPERATOR)
    })
    .await;
}
