//! Power cuts. `kill -9` keeps the page cache, so it says nothing of them: here everything that the
//! gateway does to its journal's files is written down, and at random points of that record the
//! files are rebuilt as a disk may hold them, with what was not synced dropped, kept or torn.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::{
    clock::SystemClock,
    dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics},
    journal::{Journal, Loaded, Opened, Retention},
};
use portarium_protocols::grpc::pb;
use portarium_tests::{
    Caller, Config, Disk, GatewayProcess, INSISTENCE, Identities, Mosquitto, Shim, Told, Unsynced,
    Watch, figure, grpc_robot, happened, init, long, mission, mqtt_robot, scaled, stop, until,
};
use rustix::process::Signal;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{interval, sleep},
};
use tokio_util::sync::CancellationToken;

const ROBOTS: [&str; 4] = ["m-0", "m-1", "g-0", "g-1"];
/// A robot on the side, for stops: what waits for it is cancelled.
const STOPPED: &str = "g-stopped";
/// Of each parameter of a mission: enough for the log to be copied into the file, and begun anew,
/// several times.
const BYTES: usize = 15_000;

/// A mission whose command fills pages.
fn large(robot: &str, name: &str) -> pb::DispatchMissionRequest {
    let mut request = mission(robot, name, Duration::from_millis(1));
    let parameters = request.parameters.get_or_insert_default();
    for name in ["where", "what", "why"] {
        let text = (0..BYTES).map(|_| fastrand::alphanumeric()).collect();
        parameters.fields.insert(name.into(), text);
    }
    request
}

/// Sends one mission after the other and writes down what was acknowledged.
async fn send(caller: Arc<Caller>, told: Arc<Told>, worker: String, end: CancellationToken) {
    for n in 0.. {
        if end.is_cancelled() {
            return;
        }
        let (robot, _) = worker.rsplit_once('-').unwrap();
        let name = format!("{worker}-{n:05}");
        let request_id = caller.insist(&large(robot, &name), INSISTENCE).await;
        told.note(&format!("accepted {name} {request_id}"));
    }
}

/// Stops a robot again and again and writes down which fences were called durable.
async fn send_stops(caller: Arc<Caller>, told: Arc<Told>, end: CancellationToken) {
    let mut ticks = interval(Duration::from_millis(300));
    for n in 0.. {
        ticks.tick().await;
        if end.is_cancelled() {
            return;
        }
        let Ok(answer) = caller.dispatch(&stop(STOPPED, &format!("stop-{n}"))).await else {
            continue;
        };
        if answer.stop.is_some_and(|stop| stop.fence_durable) {
            told.note(&format!("fenced {}", answer.gateway_request_id));
        }
    }
}

/// Writes down which ends of missions a watching caller has seen.
async fn follow(watch: Arc<Watch>, told: Arc<Told>) {
    let mut seen = BTreeSet::new();
    let mut ticks = interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        for (name, last) in watch.all() {
            let ended = matches!(last.status.as_str(), "Succeeded" | "Failed" | "Cancelled");
            if ended && !seen.contains(&name) {
                told.note(&format!("ended {name} {}", last.position));
                seen.insert(name);
            }
        }
    }
}

/// What has been told so far.
#[derive(Default)]
struct Promises {
    accepted: BTreeMap<String, String>,
    ended: BTreeMap<String, u64>,
    fence: u64,
}

impl Promises {
    fn add(&mut self, told: &str) {
        let words: Vec<&str> = told.split(' ').collect();
        match words[..] {
            ["accepted", name, id] => drop(self.accepted.insert(name.into(), id.into())),
            ["ended", name, position] => {
                self.ended.insert(name.into(), position.parse().unwrap());
            }
            ["fenced", id] => self.fence = self.fence.max(number(id)),
            _ => panic!("{told}"),
        }
    }

    /// What of it a journal does not have.
    fn broken(&self, journal: &Journal, loaded: &Loaded) -> Vec<String> {
        let missions: BTreeMap<&str, _> = loaded
            .missions
            .iter()
            .map(|mission| (mission.mission_id.as_str(), mission))
            .collect();
        let mut broken = Vec::new();
        for (name, id) in &self.accepted {
            match missions.get(name.as_str()) {
                None => broken.push(format!("{name} was acknowledged and is lost")),
                Some(found) if journal.request_id(found.number) != *id => {
                    broken.push(format!("{name} was acknowledged as {id}"));
                }
                Some(_) => {}
            }
        }
        for (name, position) in &self.ended {
            let found = missions.get(name.as_str()).map(|found| &found.ended);
            if !found.is_some_and(|ended| ended.as_ref().is_ok_and(|at| at == position)) {
                broken.push(format!("{name} had ended at {position}: {found:?}"));
            }
        }
        let rows = &loaded.robots;
        let row = rows.iter().find(|row| row.robot_id.as_str() == STOPPED);
        let fence = row.and_then(|row| row.fence).unwrap_or(0);
        if fence < self.fence {
            broken.push(format!("a fence was at {}, and is at {fence}", self.fence));
        }
        broken
    }
}

/// The number in a `gateway_request_id`.
fn number(request_id: &str) -> u64 {
    let (_, number) = request_id.rsplit_once('-').unwrap();
    number.parse().unwrap()
}

fn open(path: &Path) -> Opened {
    let retention = Retention {
        keep_for: Duration::from_secs(1_000_000),
        at_most: usize::MAX,
    };
    Journal::open(path, retention, &SystemClock)
        .unwrap_or_else(|error| panic!("{}", portarium_identity::error_chain(&error)))
}

/// A gateway under load, killed and told to end in between, on a journal whose every change is
/// written down.
async fn record(shim: &Shim, dir: &Path, bytes: u64) {
    let all = [&ROBOTS[..], &[STOPPED]].concat();
    let identities = Identities::start(dir, &all).await;
    let broker = Mosquitto::start(dir, &identities).await;
    let log = ExecutionLog::in_memory();
    let mut config = Config::new(dir, &identities).broker("main", broker.port);
    let (mut mqtt, mut grpc) = (Vec::new(), Vec::new());
    for id in all {
        let robot = RobotConfig::new(id.parse().unwrap());
        let lines = "redelivery = \"idempotent\"";
        if id.starts_with('m') {
            let own = StatusTopics::Own;
            mqtt.push(mqtt_robot(&identities, broker.port, own, robot, &log).await);
            config = config.mqtt_robot(id, lines);
        } else {
            let robot = grpc_robot(&identities, robot, &log).await;
            config = config.grpc_robot(id, robot.local_addr().port(), lines);
            grpc.push(robot);
        }
    }
    let prefix = shim.prefix(&dir.join("journal.sqlite"));
    let mut gateway = GatewayProcess::start_behind(prefix, dir, &config).await;
    let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    caller.robots_reachable(&ROBOTS).await;
    let watch = Arc::new(Watch::start(caller.clone()));
    let told = Arc::new(Told::to(&shim.record()));
    let end = CancellationToken::new();
    let mut workers = JoinSet::new();
    for robot in ROBOTS {
        for worker in 0..2 {
            let name = format!("{robot}-{worker}");
            workers.spawn(send(caller.clone(), told.clone(), name, end.clone()));
        }
    }
    workers.spawn(send_stops(caller.clone(), told.clone(), end.clone()));
    let follower = tokio::spawn(follow(watch, told));
    while std::fs::metadata(shim.record()).unwrap().len() < bytes {
        sleep(Duration::from_millis(fastrand::u64(500..2_000))).await;
        if fastrand::u8(..3) == 0 {
            gateway.signal(Signal::TERM);
            gateway.wait(Duration::from_secs(12)).await;
        } else {
            gateway.kill();
        }
        gateway.restart().await;
    }
    end.cancel();
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    gateway.signal(Signal::TERM);
    gateway.wait(Duration::from_secs(12)).await;
    follower.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_was_told_survives_a_power_cut_at_any_moment() {
    init();
    let points = scaled(100);
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::build(dir.path()).recording();
    record(&shim, dir.path(), if long() { 150 } else { 50 } << 20).await;

    let mut disk = Disk::before(&shim.record());
    let mut cuts: Vec<usize> = (0..points)
        .map(|_| fastrand::usize(..=disk.events()))
        .collect();
    cuts.sort_unstable();
    let (mut promises, mut lost) = (Promises::default(), Vec::new());
    let mut counts: BTreeMap<Unsynced, usize> = BTreeMap::new();
    let mut uncertain = 0;
    for cut in cuts {
        disk.advance(cut);
        disk.told().iter().for_each(|told| promises.add(told));
        uncertain += usize::from(disk.uncertain() > 0);
        let unsynced = match fastrand::u8(..4) {
            0 => Unsynced::Dropped,
            1 => Unsynced::Kept,
            _ => Unsynced::Torn,
        };
        *counts.entry(unsynced).or_default() += 1;
        let rebuilt = tempfile::tempdir().unwrap();
        let path = disk.rebuild(rebuilt.path(), unsynced);
        let opened = open(&path);
        let broken = promises.broken(&opened.journal, &opened.loaded);
        if let Some(first) = broken.first() {
            lost.push(format!(
                "event {cut}, {unsynced:?}: {first} (of {})",
                broken.len()
            ));
        }
    }
    figure(
        "power",
        &format!(
            "{points} cuts {counts:?} in {} events, {uncertain} of them with something not synced, the log copied into the file {} times: journal opened every time; something acknowledged lost {}; at the end {} missions acknowledged, {} told as ended, fence at {}",
            disk.events(),
            disk.copies(),
            happened(lost.len(), points),
            promises.accepted.len(),
            promises.ended.len(),
            promises.fence,
        ),
    );
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(uncertain * 5 > points, "{uncertain}");
    assert!(promises.accepted.len() > 200 && promises.fence > 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by tests/run"]
async fn what_a_gateway_had_not_synced_when_it_died_is_synced_before_the_next_one_speaks_of_it() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &["g"]).await;
    let log = ExecutionLog::in_memory();
    let robot = RobotConfig::new("g".parse().unwrap());
    let robot = grpc_robot(&identities, robot, &log).await;
    let config = Config::new(dir, &identities).grpc_robot("g", robot.local_addr().port(), "");
    let shim = Shim::build(dir).recording();
    let prefix = shim.prefix(&dir.join("journal.sqlite"));
    let mut gateway = GatewayProcess::start_behind(prefix, dir, &config).await;
    let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    caller.robots_reachable(&["g"]).await;

    shim.syncs_take(Duration::from_secs(1));
    let written = || std::fs::metadata(shim.record()).unwrap().len();
    let before = written();
    let request = mission("g", "doubtful", Duration::from_millis(10));
    let asked = tokio::spawn({
        let (caller, request) = (caller.clone(), request.clone());
        async move { caller.dispatch(&request).await }
    });
    until("the mission in the log", async || written() > before + 4096).await;
    sleep(Duration::from_millis(200)).await;
    gateway.kill();
    asked.await.unwrap().unwrap_err();
    gateway.restart().await;
    let told = Told::to(&shim.record());
    let request_id = caller.insist(&request, INSISTENCE).await;
    told.note(&format!("accepted doubtful {request_id}"));
    gateway.kill();

    let mut disk = Disk::before(&shim.record());
    let mut promises = Promises::default();
    for event in 0..=disk.events() {
        disk.advance(event);
        if let Some(told) = disk.told().first() {
            promises.add(told);
            break;
        }
    }
    let rebuilt = tempfile::tempdir().unwrap();
    let opened = open(&disk.rebuild(rebuilt.path(), Unsynced::Dropped));
    let broken = promises.broken(&opened.journal, &opened.loaded);
    assert_eq!((promises.accepted.len(), broken), (1, Vec::new()));
}
