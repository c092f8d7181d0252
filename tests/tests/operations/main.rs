//! What people and machines that run the gateway see: health, readiness with its reasons,
//! metrics, and the standard services over mutual TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod metrics;

use common::{
    Process, World, assert_contains, id, process, until,
    world::{free_port, http_get, sum},
};
use futures::{StreamExt as _, future::ready, stream};
use portarium_gateway::dev::hints::{GATEWAY, OPERATOR};
use portarium_identity::authority::{Authority, AuthorityConfig, Entry};
use rustix::process::Signal;
use std::{
    fs,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// The service that a caller asks for.
const SERVICE: &str = "portarium.robotics.v1.MissionService";

/// A gateway with a robot that is out of reach, which is no reason not to be ready, and an agent
/// that comes and goes.
struct Alone {
    dir: TempDir,
    health: u16,
    admin: u16,
}

impl Alone {
    fn new(more: &str) -> Self {
        portarium_identity::install_crypto_provider();
        let alone = Self {
            dir: tempfile::tempdir().unwrap(),
            health: free_port(),
            admin: free_port(),
        };
        let dir = alone.dir.path().display();
        let config = format!(
            r#"
[identity]
endpoint_socket = "unix://{dir}/agent.sock"
hint = "{GATEWAY}"
[grpc]
listen = "127.0.0.1:0"
[health]
listen = "127.0.0.1:{}"
[admin]
listen = "127.0.0.1:{}"
[journal]
path = "{dir}/journal.sqlite"
[audit]
path = "{dir}/audit.jsonl"
[[policy]]
peers = ["{peer}"]
methods = ["DispatchMission"]
robots = ["*"]
fleets = ["*"]
actions = ["*"]
{more}
[[robots]]
id = "amr-7"
adapter = "grpc"
address = "localhost:1"
peers = ["{peer}"]
actions = ["dock"]
"#,
            alone.health,
            alone.admin,
            peer = id("robot"),
        );
        fs::write(alone.dir.path().join("gateway.toml"), config).unwrap();
        alone
    }

    fn start(&self) -> Process {
        let file = self.dir.path().join("gateway.toml");
        Process::spawn(process::command(&[
            "run",
            "--config",
            file.to_str().unwrap(),
        ]))
    }

    async fn agent(&self, hints: &[&str]) -> Authority {
        let config = AuthorityConfig {
            trust_domain: "portarium.robotics".into(),
            socket: self.dir.path().join("agent.sock"),
            svid_ttl: Duration::from_secs(10),
            entries: entries(hints),
        };
        Authority::start(config).await.unwrap()
    }

    /// The state in which the metrics see the identity.
    async fn identity_is(&self, state: &str) {
        let (_, page) = http_get(self.admin, "/metrics").await.unwrap();
        let line = format!("identity_state{{state=\"{state}\"}} 1");
        assert_contains(&page, &line);
    }

    async fn generation(&self) -> f64 {
        let (_, page) = http_get(self.admin, "/metrics").await.unwrap();
        sum(&page, "portarium_gateway_svid_generation", &[])
    }

    /// Starts the agent, and says how long it took from then until something was so.
    async fn returning(
        &self,
        what: &str,
        mut is: impl AsyncFnMut() -> Option<()>,
    ) -> (Authority, Duration) {
        let agent = self.agent(&[GATEWAY]).await;
        let began = Instant::now();
        while is().await.is_none() {
            let took = began.elapsed();
            assert!(took < Duration::from_secs(2), "not {what} after {took:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (agent, began.elapsed())
    }

    /// Waits until `/readyz` says no, with this reason, while `/livez` says yes.
    async fn not_ready(&self, reason: &str) {
        let told = until(&format!("not ready: {reason}"), || async {
            let (status, body) = http_get(self.health, "/readyz").await?;
            (status == 503 && body.contains(reason)).then_some(body)
        })
        .await;
        print!("{told}");
        let (status, body) = http_get(self.health, "/livez").await.unwrap();
        assert_eq!((status, body.as_str()), (200, "alive\n"));
    }

    async fn ready(&self) {
        until("ready", || async {
            let answer = http_get(self.health, "/readyz").await?;
            (answer == (200, "ready\n".into())).then_some(())
        })
        .await;
    }
}

fn entries(hints: &[&str]) -> Vec<Entry> {
    let entry = |hint: &&str| Entry {
        spiffe_id: id(hint),
        hint: (*hint).into(),
        dns_names: vec!["localhost".into()],
    };
    hints.iter().map(entry).collect()
}

#[tokio::test]
async fn readiness_tells_apart_what_is_wrong_with_the_identity_and_comes_back_with_the_agent() {
    let alone = Alone::new("");
    let socket = alone.dir.path().join("agent.sock");
    let gateway = alone.start();
    alone
        .not_ready("identity: the Workload API socket does not exist")
        .await;
    alone.identity_is("no_socket").await;

    drop(UnixListener::bind(&socket).unwrap());
    alone
        .not_ready("identity: the Workload API cannot be used")
        .await;
    alone.identity_is("refused").await;

    let agent = alone.agent(&[]).await;
    alone
        .not_ready("identity: the SPIRE agent has no entry")
        .await;
    alone.identity_is("permission_denied").await;
    agent.set_entries(entries(&["another"]));
    alone
        .not_ready(&format!("no SVID with the hint \"{GATEWAY}\""))
        .await;
    alone.identity_is("no_such_hint").await;
    agent.set_entries(entries(&["another", GATEWAY]));
    alone.ready().await;
    alone.identity_is("ready").await;

    // An agent that comes back before the SVID has expired is a new socket file, and is heard.
    drop(agent);
    tokio::time::sleep(Duration::from_secs(1)).await;
    alone.ready().await;
    let before = alone.generation().await;
    let (agent, took) = alone
        .returning("an SVID of the new agent", async || {
            (alone.generation().await > before).then_some(())
        })
        .await;
    println!(
        "FIGURE operations: served {took:.2?} after the agent's return with a new socket file"
    );

    // One that stays away leaves the last good SVID, until that has expired.
    drop(agent);
    alone.not_ready("identity: the SVID has expired").await;
    alone.identity_is("expired").await;
    let (_agent, took) = alone
        .returning("ready", async || {
            let (status, _) = http_get(alone.health, "/readyz").await?;
            (status == 200).then_some(())
        })
        .await;
    println!("FIGURE operations: ready {took:.2?} after the agent's return with a new socket file");
    gateway.interrupt();
    assert_eq!(gateway.ended().await.code, Some(0));
}

#[tokio::test]
async fn a_broker_that_is_down_is_a_reason_and_a_robot_out_of_reach_is_none() {
    let broker = format!(
        "[mqtt.main]\naddress = \"localhost:1\"\npeers = [\"{}\"]\n",
        id("mqtt-broker")
    );
    let alone = Alone::new(&broker);
    let _agent = alone.agent(&[GATEWAY]).await;
    let _gateway = alone.start();
    alone
        .not_ready("mqtt.main: broker main is not connected")
        .await;
    let (_, body) = http_get(alone.health, "/readyz").await.unwrap();
    assert_eq!(body.lines().count(), 1, "{body}");
}

#[tokio::test]
async fn a_gateway_that_is_ending_is_not_ready_and_ends_within_its_grace() {
    let world = World::new(Duration::from_secs(3600)).await;
    world.write(&(world.config() + "\n[engine]\nshutdown_grace = \"2s\"\n"));
    let gateway = world.serve().await;
    let channel = world.channel(OPERATOR).await;
    // A caller that holds on to its stream.
    let asks = stream::once(ready(asked(MessageRequest::ListServices(String::new()))));
    let mut reflection = ServerReflectionClient::new(channel.0.clone());
    let answers = reflection
        .server_reflection_info(asks.chain(stream::pending()))
        .await;
    let mut answers = answers.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();

    until("ready", || async {
        let (status, _) = http_get(world.health, "/readyz").await?;
        (status == 200).then_some(())
    })
    .await;
    let began = Instant::now();
    gateway.signal(Signal::TERM);
    let told = until("not ready: shutdown", || async {
        let (status, body) = http_get(world.health, "/readyz").await?;
        (status == 503).then_some(body)
    })
    .await;
    assert_eq!(told, "shutdown: the gateway is shutting down\n");
    let ended = gateway.ended().await;
    let took = began.elapsed();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    println!(
        "FIGURE operations: ended {took:.2?} after SIGTERM, with a grace of 2 s and a caller that holds on"
    );
}

#[tokio::test]
async fn whoever_watches_the_health_is_told_of_the_end_and_does_not_put_it_off() {
    let world = World::new(Duration::from_secs(3600)).await;
    let gateway = world.serve().await;
    let channel = world.channel(OPERATOR).await;
    let mut watches = Vec::new();
    for service in ["", SERVICE] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let mut health = HealthClient::new(channel.0.clone());
        let mut watch = health.watch(request).await.unwrap().into_inner();
        let first = watch.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        watches.push(watch);
    }
    let began = Instant::now();
    gateway.signal(Signal::TERM);
    for watch in &mut watches {
        let last = watch.message().await.unwrap().unwrap();
        assert_eq!(last.status(), ServingStatus::NotServing);
        assert_eq!(watch.message().await.unwrap(), None);
    }
    let ended = gateway.ended().await;
    let took = began.elapsed();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(took < Duration::from_secs(5), "{took:?} of a grace of 10 s");
}

fn asked(message_request: MessageRequest) -> ServerReflectionRequest {
    ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message_request),
    }
}

#[tokio::test]
async fn health_and_reflection_answer_over_mutual_tls() {
    let world = World::new(Duration::from_secs(3600)).await;
    let _gateway = world.serve().await;
    let channel = world.channel(OPERATOR).await;
    let mut health = HealthClient::new(channel.0.clone());
    for service in ["", SERVICE] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let request = HealthCheckRequest {
        service: "another".into(),
    };
    let unknown = health.check(request).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let asks = [
        asked(MessageRequest::ListServices(String::new())),
        asked(MessageRequest::FileContainingSymbol(SERVICE.into())),
    ];
    let mut reflection = ServerReflectionClient::new(channel.0.clone());
    let answers = reflection.server_reflection_info(stream::iter(asks)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut next = async || answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = next().await else {
        panic!("no list");
    };
    assert!(list.service.iter().any(|s| s.name == SERVICE), "{list:?}");
    let Some(MessageResponse::FileDescriptorResponse(files)) = next().await else {
        panic!("no file");
    };
    let holds = |bytes: &[u8], part: &str| bytes.windows(part.len()).any(|w| w == part.as_bytes());
    assert!(holds(
        &files.file_descriptor_proto.concat(),
        "plan_effect_idempotency_key"
    ));
}
