//! Names that mean something to brokers, logs and file systems.

use crate::siege::Siege;
use portarium_protocols::grpc::pb::{self, DispatchStatus};
use portarium_tests::{Caller, figure, hints, mission, spiffe_id, stop, until};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};
use tonic::Code;

const FORGED: &str = "x\n{\"decision\":\"allowed\",\"method\":\"ReleaseRobot\"}";

fn names() -> Vec<(&'static str, String)> {
    let plain = [
        ("a slash", "a/b"),
        ("a slash at the end", "m/"),
        ("a topic", "x/commands/y"),
        ("a plus", "+"),
        ("a hash", "#"),
        ("a filter", "a/+/#"),
        ("a system topic", "$SYS"),
        ("a shared subscription", "$share/g/t"),
        ("a NUL", "a\0b"),
        ("two dots", ".."),
        ("a dot", "."),
        ("a path", "../../etc/passwd"),
        ("a path of Windows", "..\\..\\x"),
        ("a line end", "a\nb"),
        ("a carriage return", "a\rb"),
        ("a forged line", FORGED),
        ("an escape", "\u{1b}[2J\u{1b}[31m"),
        ("a bell", "a\u{7}"),
        ("text from right to left", "a\u{202e}b"),
        ("a byte order mark", "\u{feff}a"),
        ("a space", "a b"),
        ("a no-break space", "a\u{a0}b"),
        ("nothing", ""),
    ];
    let mut names: Vec<_> = plain
        .into_iter()
        .map(|(what, name)| (what, name.to_owned()))
        .collect();
    names.push(("ten thousand characters", "x".repeat(10_000)));
    names
}

/// What [`call_all`] is refused, by method.
const REFUSED: [(&str, usize); 6] = [
    ("CancelMission", 1),
    ("DispatchMission", 3),
    ("GetMissionStatus", 1),
    ("GetRobot", 1),
    ("HoldRobot", 1),
    ("ResolveMission", 1),
];

/// The longest text of a line in the audit, in bytes.
const LONGEST: usize = 520;

/// Calls everything that takes a mission's or robot's name, with this one.
async fn call_all(caller: &Caller, what: &str, name: &str) {
    let takes = Duration::from_millis(1);
    let mut named = mission("m", "named", takes);
    named.mission_id = name.into();
    let mut robot = mission(name, "for-another-robot", takes);
    robot.robot_id = name.into();
    for request in [named, robot, stop(name, "stop-of-another-robot")] {
        let answer = caller.dispatch(&request).await.unwrap();
        assert_eq!(
            answer.status(),
            DispatchStatus::Rejected,
            "{what}: {answer:?}"
        );
        assert_eq!(answer.reject_reason, "InvalidMission", "{what}");
        assert!(answer.message.len() < 1_000, "{what}");
    }
    // A stop's own name is no reason not to stop.
    let answer = caller.dispatch(&stop("g", name)).await.unwrap();
    assert_eq!(
        answer.status(),
        DispatchStatus::Dispatched,
        "{what}: {answer:?}"
    );
    assert!(!caller.cancel(name).await.unwrap().accepted, "{what}");
    assert!(
        !caller.resolve(name, "Succeeded").await.unwrap().accepted,
        "{what}"
    );
    let unknown = [
        caller.status(name).await.map(|_| ()),
        caller.robot(name).await.map(|_| ()),
        hold(caller, name).await,
    ];
    for answer in unknown {
        assert_eq!(answer.unwrap_err().code(), Code::NotFound, "{what}");
    }
}

async fn hold(caller: &Caller, name: &str) -> Result<(), tonic::Status> {
    let request = pb::HoldRobotRequest {
        robot_id: name.into(),
        reason: FORGED.into(),
    };
    let held = caller.call(|mut client| {
        let request = request.clone();
        async move { client.hold_robot(request).await }
    });
    held.await.map(|_| ())
}

/// Each call has a line in the audit, with the name in it as far as it fits; how many were refused.
async fn audited(siege: &Siege, seen: usize, what: &str, name: &str) -> usize {
    let id = spiffe_id(hints::OPERATOR);
    let mut lines = Vec::new();
    until(&format!("a line for each call: {what}"), async || {
        lines = siege.audit().split_off(seen);
        lines.retain(|line| line["caller"] == id && line["method"] != "handshake");
        lines.len() > refusals()
    })
    .await;
    let is_refused = |line: &Value| line["decision"] == "refused";
    let mut refused = BTreeMap::<_, usize>::new();
    for line in lines.iter().filter(|line| is_refused(line)) {
        *refused.entry(line["method"].as_str().unwrap()).or_default() += 1;
        assert!(
            !line["reason"].as_str().unwrap().is_empty(),
            "{what}: {line}"
        );
    }
    assert_eq!(refused, BTreeMap::from(REFUSED), "{what}");
    let allowed: Vec<_> = lines.iter().filter(|line| !is_refused(line)).collect();
    assert_eq!(allowed.len(), 1, "{what}: {allowed:?}");
    for line in lines.iter().filter(|line| is_refused(line)) {
        let told = ["mission_id", "robot_id"].map(|field| line[field].as_str().unwrap_or_default());
        let cut = name.len() > LONGEST;
        let named = |told: &str| match told.strip_suffix('…') {
            Some(begin) if cut => name.starts_with(begin) && begin.len() > LONGEST / 2,
            _ => !cut && told == name,
        };
        assert!(told.iter().any(|told| named(told)), "{what}: {line}");
        let texts = line.as_object().unwrap().values().filter_map(Value::as_str);
        assert!(
            texts.map(str::len).all(|length| length <= LONGEST),
            "{what}: {line}"
        );
    }
    refused.values().sum()
}

/// How many calls of [`call_all`] are refused.
fn refusals() -> usize {
    REFUSED.iter().map(|(_, count)| count).sum()
}

fn files(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn names_that_mean_something_to_topics_logs_or_paths_come_nowhere() {
    let siege = Siege::begin("attack, names", &[], "").await;
    let house = &siege.house;
    let before = files(house.dir());
    let port = house.gateway.ports.grpc;
    let operator = Caller::with(&house.identities, hints::OPERATOR, port).await;
    let names = names();
    let mut refused = 0;
    for (what, name) in &names {
        let seen = siege.audit().len();
        call_all(&operator, what, name).await;
        refused += audited(&siege, seen, what, name).await;
    }
    drop(operator);

    // The robots heard of stops alone, under names of our own; no file was made.
    let known =
        |id: &str| !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let heard = house.log.entries();
    let odd: Vec<_> = heard
        .iter()
        .filter(|entry| !known(entry.mission.as_str()))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    assert!(
        heard
            .iter()
            .all(|entry| entry.mission.as_str() != "for-another-robot")
    );
    assert_eq!(files(house.dir()), before);

    // Each line of the audit is one of ours, and each of the log begins with a time.
    for line in siege.audit() {
        assert!(line["method"] != "ReleaseRobot", "{line}");
    }
    let log = house.gateway.output();
    for line in log.lines() {
        assert!(line.starts_with("20"), "{line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.len() < 4_096, "{} bytes in a line", line.len());
    }
    let calls = names.len() * 9;
    figure(
        "attack, names",
        &format!(
            "{} names in {calls} calls: {refused} refused, each with a line in the audit; 0 in topics, \
             file names or lines of their own",
            names.len()
        ),
    );
    siege.lift(16).await;
}
