//! Robots that lie, flood, or say what nobody understands.

use crate::{
    forge::{Shown, VALID},
    siege::Siege,
};
use portarium_identity::authority::MintSpec;
use portarium_tests::{
    Arrangement, House, figure, happened, journal, mission, scaled, spiffe_id, until,
};
use rumqttc::{
    Transport,
    v5::{
        AsyncClient, Event, Incoming, MqttOptions,
        mqttbytes::{QoS, v5::PubAckReason},
    },
};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// The robot that is not what it should be. No report is believed on the topic that all share.
const LIAR: &str = r#"
shared_status_topic = false

[[robots]]
id = "x"
fleet = "test"
adapter = "mqtt"
broker = "main"
tenant = "acme"
actions = ["navigate_to"]
"#;

/// A client of the broker with the robot's own identity, which says anything.
struct Robot {
    client: AsyncClient,
    events: JoinHandle<()>,
    acknowledged: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

impl Robot {
    async fn connected(house: &House, name: &str) -> Self {
        let minted = house.identities.authority().mint(&MintSpec {
            dns_names: vec![name.into()],
            ..MintSpec::svid(spiffe_id(name), VALID)
        });
        let shown = Shown::from(minted.unwrap());
        let mut roots = RootCertStore::empty();
        for authority in house.identities.authority().bundle() {
            roots.add(CertificateDer::from(authority)).unwrap();
        }
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(shown.chain, shown.key)
            .unwrap();
        let mut options = MqttOptions::new(format!("{name}-lies"), "localhost", house.broker.port);
        options.set_transport(Transport::tls_with_config(tls.into()));
        options.set_max_packet_size(Some(1_000_000));
        let (client, mut events) = AsyncClient::new(options, 1_000);
        let (acknowledged, refused) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (acks, refusals) = (acknowledged.clone(), refused.clone());
        let events = tokio::spawn(async move {
            loop {
                if let Event::Incoming(Incoming::PubAck(ack)) = events.poll().await.unwrap() {
                    acks.fetch_add(1, Ordering::Relaxed);
                    if ack.reason == PubAckReason::NotAuthorized {
                        refusals.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Self {
            client,
            events,
            acknowledged,
            refused,
        }
    }

    async fn say(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        let topic = format!("portarium/acme/{topic}");
        let said = self
            .client
            .publish(topic, QoS::AtLeastOnce, false, payload.into());
        said.await.unwrap();
    }

    /// Waits until the broker has answered so many.
    async fn heard(&self, count: usize) {
        until("the broker's acknowledgements", async || {
            self.acknowledged.load(Ordering::Relaxed) >= count
        })
        .await;
    }
}

impl Drop for Robot {
    fn drop(&mut self) {
        self.events.abort();
    }
}

/// The audit's lines on what was not believed, and how many words they tell of.
fn audited(siege: &Siege) -> (Vec<Value>, usize) {
    let mut lines = siege.audit();
    lines.retain(|line| line["method"] == "report");
    let words = lines
        .iter()
        .map(|line| line["suppressed"].as_u64().unwrap_or(1));
    let words = words.sum::<u64>() as usize;
    (lines, words)
}

fn status(status: &str, detail: &str) -> String {
    format!(
        r#"{{"schemaVersion":1,"sentAt":"2026-01-02T03:04:05.678Z","payload":{{"status":"{status}","detail":"{detail}"}}}}"#
    )
}

async fn besieged(name: &'static str) -> Siege {
    let arrangement = Arrangement {
        workloads: &["x"],
        svid_ttl: Duration::from_secs(3600),
        broker: LIAR,
        ..Arrangement::default()
    };
    Siege::around(name, House::arranged(arrangement).await).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn no_robot_is_believed_on_the_mission_of_another() {
    let name = "attack, a robot that lies";
    let siege = besieged(name).await;
    let house = &siege.house;
    // `g` is stopped all the time; `x` itself has a mission that it may report on.
    let (lies, victim) = (scaled(500), "long-victim");
    house
        .caller
        .accepted(&mission("x", victim, Duration::ZERO))
        .await;
    let robot = Robot::connected(house, "x").await;
    let other = Robot::connected(house, "m").await;
    for _ in 0..lies {
        // On the shared topic, on the branch of another, and on its own.
        other
            .say(
                &format!("missions/{victim}/status"),
                status("succeeded", ""),
            )
            .await;
        other
            .say(
                &format!("robots/x/missions/{victim}/status"),
                status("succeeded", ""),
            )
            .await;
        other
            .say(
                &format!("robots/m/missions/{victim}/status"),
                status("succeeded", ""),
            )
            .await;
        other.say("robots/x/presence", "{}").await;
    }
    other.heard(lies * 4).await;
    assert_eq!(
        other.refused.load(Ordering::Relaxed),
        lies * 2,
        "refused by the broker"
    );
    // Its own robot's word comes behind all of that, and is the first that counts.
    robot
        .say(
            &format!("robots/x/missions/{victim}/status"),
            status("executing", "true"),
        )
        .await;
    house.watch.reaches(victim, "Executing").await;
    let rows = journal(&house.gateway.journal_file());
    assert_eq!(rows[victim].status, 2, "executing");
    robot
        .say(
            &format!("robots/x/missions/{victim}/status"),
            status("succeeded", ""),
        )
        .await;
    house.watch.reaches(victim, "Succeeded").await;
    // Those that the broker let through are audited, most of them in a few lines.
    until("the audit of all lies", async || audited(&siege).1 >= lies).await;
    let (lines, audited) = audited(&siege);
    assert_eq!(audited, lies);
    let wanted = ("m".into(), victim.into());
    let named = |line: &Value| (line["caller"].clone(), line["mission_id"].clone()) == wanted;
    assert!(lines.iter().filter(|line| named(line)).count() >= 20);
    let log = house.gateway.output();
    let told = log
        .lines()
        .filter(|line| line.contains("mission of another robot"))
        .count();
    assert!(told < 5, "{told} lines in the log");
    figure(
        name,
        &format!(
            "lies on four topics: believed {}, {} refused by the broker, {audited} audited in {} lines, \
             {told} lines in the log",
            happened(0, lies * 4),
            lies * 2,
            lines.len(),
        ),
    );
    drop((robot, other));
    siege.lift(32).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_robot_that_floods_fills_neither_the_journal_nor_the_log() {
    let name = "attack, a robot that floods";
    let siege = besieged(name).await;
    let house = &siege.house;
    let words = scaled(20_000);
    house
        .caller
        .accepted(&mission("x", "flooded", Duration::ZERO))
        .await;
    let robot = Robot::connected(house, "x").await;
    let began = Instant::now();
    for n in 0..words {
        let word = status(["executing", "waiting_preemption"][n % 2], &n.to_string());
        robot.say("robots/x/missions/flooded/status", word).await;
    }
    robot.heard(words).await;
    let took = began.elapsed();
    // The end of it is heard all the same.
    robot
        .say(
            "robots/x/missions/flooded/status",
            status("succeeded", "at last"),
        )
        .await;
    house.watch.reaches("flooded", "Succeeded").await;
    let rows = journal(&house.gateway.journal_file())["flooded"].states;
    figure(
        name,
        &format!("{words} changes of one mission in {took:.1?}: {rows} rows in the journal"),
    );
    assert!(rows < 1_000, "{rows} rows");
    drop(robot);
    siege.lift(32).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_a_robot_says_that_is_no_message_is_dropped() {
    let name = "attack, a robot that talks nonsense";
    let siege = besieged(name).await;
    let house = &siege.house;
    house
        .caller
        .accepted(&mission("x", "nonsense", Duration::ZERO))
        .await;
    let robot = Robot::connected(house, "x").await;
    robot
        .say(
            "robots/x/missions/nonsense/status",
            status("executing", "true"),
        )
        .await;
    house.watch.reaches("nonsense", "Executing").await;
    let before = journal(&house.gateway.journal_file())["nonsense"].states;
    let long = "x".repeat(100_000);
    let nonsense: Vec<(&str, Vec<u8>)> = vec![
        ("no JSON", b"executing".to_vec()),
        ("no UTF-8", vec![0xff; 100]),
        ("a NUL", status("succeeded\\u0000", "").into_bytes()),
        (
            "another version",
            status("succeeded", "").replace(":1,", ":2,").into_bytes(),
        ),
        (
            "a version that is none",
            status("succeeded", "").replace(":1,", ":-1,").into_bytes(),
        ),
        ("an unknown status", status("exploded", "").into_bytes()),
        (
            "half a message",
            status("succeeded", "").as_bytes()[..60].to_vec(),
        ),
        (
            "two messages",
            status("succeeded", "").repeat(2).into_bytes(),
        ),
        ("100 kB", status("succeeded", &long).into_bytes()),
        ("brackets in brackets", vec![b'['; 60_000]),
        ("objects in objects", br#"{"a":"#.repeat(10_000)),
        (
            "a key twice",
            status("succeeded", "")
                .replace("\"detail\"", "\"status\"")
                .into_bytes(),
        ),
        (
            "a number as status",
            status("succeeded", "")
                .replace("\"succeeded\"", "1e999")
                .into_bytes(),
        ),
        ("an array", b"[1]".to_vec()),
    ];
    let count = nonsense.len();
    let mut said = 0;
    for (_, payload) in nonsense {
        for topic in ["robots/x/missions/nonsense/status", "robots/x/presence"] {
            robot.say(topic, payload.clone()).await;
            said += 1;
        }
    }
    for topic in [
        "robots/x/missions/..\u{202e}/status".to_owned(),
        format!("robots/x/missions/{}/status", "y".repeat(10_000)),
        "robots/x/missions//status".to_owned(),
    ] {
        robot.say(&topic, status("succeeded", "")).await;
        said += 1;
    }
    robot.heard(said).await;
    robot
        .say(
            "robots/x/missions/nonsense/status",
            status("executing", "\\u001b[31m\\nforged"),
        )
        .await;
    until("its last word", async || {
        let last = house.watch.last("nonsense").unwrap();
        last.detail == "[31mforged"
    })
    .await;
    let after = journal(&house.gateway.journal_file())["nonsense"].states;
    assert_eq!(after, before + 1, "the last word alone");
    until("the audit of all nonsense", async || {
        audited(&siege).1 >= said
    })
    .await;
    let (lines, audited) = audited(&siege);
    assert_eq!(audited, said);
    assert!(lines.iter().all(|line| line["decision"] == "refused"));
    let log = house.gateway.output();
    assert!(log.lines().all(|line| !line.chars().any(char::is_control)));
    figure(
        name,
        &format!(
            "{count} kinds on two topics, 3 topics of no mission: 0 believed, {audited} audited in {} lines",
            lines.len()
        ),
    );
    drop(robot);
    siege.lift(32).await;
}
