//! The MQTT adapter against a real broker over mutual TLS, with an embedded authority.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod mqtt_support;

use mqtt_support::{Gateway, Mosquitto, Robot, command, free_port, robot, stop, until};
use portarium_identity::{
    PeerPolicy, SpiffeId, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry, MintSpec},
};
use portarium_protocols::{
    adapter::{Adapter, DispatchError, Handover, Link, StopAnswer},
    mqtt::{Broker, MqttConfig, client_id_base},
};
use std::{fmt::Write as _, fs, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;

const MINUTE: Duration = Duration::from_secs(60);
const DOMAIN: &str = "portarium.test";

/// What each identity may do; mosquitto takes the CN, the first DNS name, as the user.
const ACL: &str = "\
user gateway.test
topic write portarium/t1/robots/r1/commands/+
topic write portarium/t1/missions/+/cancel
topic readwrite portarium/t1/robots/+/missions/+/status
topic readwrite portarium/t1/missions/+/status
topic read portarium/t1/robots/+/presence

user robot.test
topic read portarium/t1/robots/+/commands/+
topic read portarium/t1/missions/+/cancel
topic write portarium/t1/robots/r1/missions/+/status
topic write portarium/t1/robots/r1/presence
";

fn id(name: &str) -> String {
    format!("spiffe://{DOMAIN}/ns/test/sa/{name}")
}

fn entry(name: &str, dns_names: &[&str]) -> Entry {
    Entry {
        spiffe_id: id(name),
        hint: name.into(),
        dns_names: dns_names.iter().map(|n| (*n).to_owned()).collect(),
    }
}

/// An authority, a broker that knows it, and a folder for both.
struct Site {
    folder: TempDir,
    authority: Authority,
    broker: Mosquitto,
}

impl Site {
    async fn start(svid_ttl: Duration) -> Self {
        portarium_identity::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::start(AuthorityConfig {
            trust_domain: DOMAIN.into(),
            socket: folder.path().join("agent.sock"),
            svid_ttl,
            entries: vec![
                entry("gateway", &["gateway.test"]),
                entry("robot", &["robot.test"]),
                entry("nameless", &[]),
            ],
        })
        .await
        .unwrap();
        let settings = broker_settings(&authority, folder.path());
        let broker = Mosquitto::start_with(free_port(), &settings);
        Self {
            folder,
            authority,
            broker,
        }
    }

    async fn manager(&self, hint: &str) -> SvidManager {
        let socket = self.folder.path().join("agent.sock");
        let manager = SvidManager::start(SvidConfig {
            endpoint_socket: Some(format!("unix://{}", socket.display())),
            hint: Some(hint.into()),
            ..SvidConfig::default()
        })
        .unwrap();
        manager.ready().await;
        manager
    }

    async fn robot(&self) -> Robot {
        let tls = self
            .manager("robot")
            .await
            .client_tls(admit(&id("broker")), &[]);
        let (config, _) = tls.config().unwrap();
        let transport = rumqttc::Transport::Tls(rumqttc::TlsConfiguration::Rustls(config));
        Robot::with_transport(self.broker.port, "t1", "r1", transport).await
    }

    /// A gateway's configuration with the SVID of that hint, for a broker of that identity.
    async fn config(&self, hint: &str, broker: &str) -> MqttConfig {
        let manager = self.manager(hint).await;
        MqttConfig {
            broker: Broker {
                host: "127.0.0.1".into(),
                port: self.broker.port,
            },
            tls: Some(manager.client_tls(admit(&id(broker)), &[])),
            plaintext_lease: None,
            client_id_base: client_id_base(&SpiffeId::new(id(hint)).unwrap()),
            robots: vec![robot("r1", "t1"), robot("r2", "t1")],
            shared_status_topic: true,
        }
    }
}

fn admit(pattern: &str) -> PeerPolicy {
    PeerPolicy::new([pattern.parse().unwrap()])
}

fn broker_settings(authority: &Authority, folder: &Path) -> String {
    let mut spec = MintSpec::svid(id("broker"), Duration::from_secs(3_600));
    spec.dns_names = vec!["localhost".into()];
    let minted = authority.mint(&spec).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let chain = minted.chain_der.iter();
    let chain: String = chain.map(|der| pem("CERTIFICATE", der)).collect();
    let bundle = authority.bundle();
    let bundle: String = bundle.iter().map(|der| pem("CERTIFICATE", der)).collect();
    format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nacl_file {}\n\
         require_certificate true\nuse_identity_as_username true\n",
        write("ca.pem", bundle),
        write("broker.pem", chain),
        write("broker.key", pem("PRIVATE KEY", &minted.key_pkcs8_der)),
        write("acl", ACL.into()),
    )
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits = three
            .iter()
            .fold(0_u32, |bits, b| bits << 8 | u32::from(*b))
            << (8 * (3 - three.len()));
        for n in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * n) & 63) as usize];
            text.push(if n > three.len() { '=' } else { digit.into() });
        }
    }
    let mut lines = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        writeln!(lines, "{}", str::from_utf8(line).unwrap()).unwrap();
    }
    lines + &format!("-----END {label}-----\n")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn svids_of_ten_seconds_rotate_under_missions_and_cost_none() {
    let site = Site::start(Duration::from_secs(10)).await;
    let robot = Arc::new(site.robot().await);
    let mut gateway = Gateway::from(site.config("gateway", "broker").await, 1_024).await;
    let before = gateway.adapter.stats();
    let missions = gateway
        .carry_missions(&robot, |stats| {
            stats.commands.renewals >= 2 && stats.stops.renewals >= 2
        })
        .await;
    let after = gateway.adapter.stats();
    println!("{missions} missions, {before:?}, {after:?}");
    assert_eq!((after.commands.reconnects, after.stops.reconnects), (0, 0));
    assert!(after.commands.generation > before.commands.generation);
    assert!(after.stops.generation > before.stops.generation);
    let stops = usize::try_from(after.stops.published).unwrap();
    assert_eq!(stops, missions, "each stop went over its own lane");
    assert!(!gateway.saw_link_down(), "a rotation is no outage");
    gateway.adapter.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_the_brokers_acl_refuses_was_not_sent_and_costs_the_others_nothing() {
    let site = Site::start(Duration::from_secs(3_600)).await;
    let robot = site.robot().await;
    let gateway = Gateway::from(site.config("gateway", "broker").await, 1_024).await;
    let allowed = gateway.adapter.dispatch(command("r1", "m1"), MINUTE);
    let refused = gateway.adapter.dispatch(command("r2", "m2"), MINUTE);
    let stop = gateway.adapter.stop(stop("r1", "s1"));
    let (allowed, refused, stop) = tokio::join!(allowed, refused, stop);
    assert_eq!(allowed, Ok(Handover::Sent));
    assert_eq!(stop, Ok(StopAnswer::Requested));
    match refused {
        Err(DispatchError::Unreachable { reason }) => assert!(reason.contains("ACL"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(robot.commands_until("m1").await.iter().all(|m| m != "m2"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_broker_of_another_identity_hears_nothing_and_the_link_says_why() {
    let site = Site::start(Duration::from_secs(3_600)).await;
    let gateway = Gateway::launch(site.config("gateway", "other-broker").await, 16);
    let r1 = "r1".parse().unwrap();
    let told = async || match gateway.adapter.link(&r1) {
        Link::Down { reason } => reason.contains("mutual TLS failed"),
        Link::Up => panic!("up"),
    };
    until("the reason", told).await;
    let sent = gateway.adapter.dispatch(command("r1", "m1"), MINUTE).await;
    assert!(
        matches!(sent, Err(DispatchError::Unreachable { .. })),
        "{sent:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn an_identity_that_the_broker_does_not_know_is_told_what_to_do() {
    let site = Site::start(Duration::from_secs(3_600)).await;
    let gateway = Gateway::launch(site.config("nameless", "broker").await, 16);
    let r1 = "r1".parse().unwrap();
    let told = async || match gateway.adapter.link(&r1) {
        Link::Down { reason } => reason.contains("first DNS name"),
        Link::Up => panic!("up"),
    };
    until("the hint", told).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_withdrawn_entry_closes_both_connections_and_its_return_brings_them_back() {
    let site = Site::start(Duration::from_secs(3_600)).await;
    let mut gateway = Gateway::from(site.config("gateway", "broker").await, 1_024).await;
    gateway.until_link(true).await;
    let entries = vec![entry("gateway", &["gateway.test"])];
    site.authority.set_entries(Vec::new());
    let began = std::time::Instant::now();
    until("both connections' end", async || {
        let stats = gateway.adapter.stats();
        !stats.commands.connected && !stats.stops.connected
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    gateway.until_link(false).await;
    site.authority.set_entries(entries);
    gateway.until_link(true).await;
}
