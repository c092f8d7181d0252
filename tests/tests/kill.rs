//! `kill -9` of the gateway under load.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::{ExecutionLog, LogEvent, RobotConfig, mqtt::StatusTopics};
use portarium_protocols::mission::MissionStatus;
use portarium_tests::{
    Caller, Config, Fate, GatewayProcess, Identities, Mosquitto, Watch, fates, figure, grpc_robot,
    hints, init, mission, mqtt_robot, scaled,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

const IDEMPOTENT: [&str; 2] = ["idem-0", "idem-1"];
const ONCE: [&str; 2] = ["once-0", "once-1"];
const GRPC: [&str; 2] = ["grpc-0", "grpc-1"];

/// How long an acknowledgement may take, over kills and restarts and while a robot is held.
const INSISTENCE: Duration = Duration::from_secs(90);
/// How long an operator looks on before he says what he sees.
const OPERATOR_LOOKS: Duration = Duration::from_millis(1_500);

/// Acknowledged missions and their `gateway_request_id`.
type Acknowledged = Arc<Mutex<BTreeMap<String, (String, String)>>>;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_was_acknowledged_survives_the_gateways_death_at_any_moment() {
    init();
    let kills = scaled(20);
    let all = [IDEMPOTENT, ONCE, GRPC].concat();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &all).await;
    let broker = Mosquitto::start(dir, &identities).await;
    let log = ExecutionLog::in_memory();
    let mut config = Config::new(dir, &identities).broker("main", broker.port);
    let (mut mqtt, mut grpc) = (Vec::new(), Vec::new());
    for (id, idempotent) in IDEMPOTENT
        .map(|id| (id, true))
        .into_iter()
        .chain(ONCE.map(|id| (id, false)))
    {
        let robot = RobotConfig {
            idempotent,
            ..RobotConfig::new(id.parse().unwrap())
        };
        mqtt.push(mqtt_robot(&identities, broker.port, StatusTopics::Own, robot, &log).await);
        config = config.mqtt_robot(id, redelivery(idempotent));
    }
    for id in GRPC {
        let robot = grpc_robot(&identities, RobotConfig::new(id.parse().unwrap()), &log).await;
        config = config.grpc_robot(id, robot.local_addr().port(), redelivery(true));
        grpc.push(robot);
    }
    let mut gateway = GatewayProcess::start(dir, &config).await;
    let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    let operator = Arc::new(Caller::with(&identities, hints::OPERATOR, gateway.ports.grpc).await);
    caller.robots_reachable(&all).await;
    let watch = Watch::start(caller.clone());

    let (stop, acknowledged) = (CancellationToken::new(), Acknowledged::default());
    let mut load = JoinSet::new();
    for (robot, worker) in all.iter().flat_map(|robot| [(*robot, 0), (*robot, 1)]) {
        load.spawn(send(
            caller.clone(),
            robot,
            worker,
            acknowledged.clone(),
            stop.clone(),
        ));
    }
    let unknown = Arc::new(Mutex::new(BTreeSet::new()));
    let resolving = tokio::spawn(resolve(operator, all.clone(), log.clone(), unknown.clone()));

    let began = Instant::now();
    for round in 0..kills {
        sleep(Duration::from_millis(fastrand::u64(50..800))).await;
        gateway.kill();
        sleep(Duration::from_millis(fastrand::u64(..200))).await;
        gateway.relaunch();
        // Every third time it dies again while it is still finding its way.
        if round % 3 != 2 {
            gateway.ready().await;
            compare_some(&caller, &acknowledged).await;
        }
    }
    let time = began.elapsed();
    gateway.ready().await;
    stop.cancel();
    while let Some(worker) = load.join_next().await {
        worker.unwrap();
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    let names: Vec<_> = acknowledged.keys().cloned().collect();
    watch.ended(&names, INSISTENCE).await;
    resolving.abort();
    for (name, (robot, first)) in &acknowledged {
        let again = caller.insist(&request(robot, name), INSISTENCE).await;
        assert_eq!(&again, first, "{name}");
    }

    assert!(log.is_complete());
    let unknown = unknown.lock().unwrap().clone();
    let verdict = fates(&names, &log.entries(), &watch.all());
    let of_idempotent = unknown.iter().filter(|name| !name.starts_with("once"));
    figure(
        "kill",
        &format!(
            "{kills} kills in {:.0} s, {} missions acknowledged: {:?}; of unknown outcome {} (of idempotent robots {}); {} calls failed and were made again under the same keys",
            time.as_secs_f64(),
            names.len(),
            verdict.counts,
            unknown.len(),
            of_idempotent.clone().count(),
            caller.failed()
        ),
    );
    verdict.assert_good();
    assert_eq!(of_idempotent.count(), 0, "{unknown:?}");
    assert_eq!(watch.backwards(), 0);
    assert!(
        verdict.count(Fate::Done) > names.len() * 9 / 10,
        "{verdict:?}"
    );
    assert!(
        names.len() > kills * 5,
        "{} missions are no load",
        names.len()
    );
}

fn redelivery(idempotent: bool) -> &'static str {
    if idempotent {
        "redelivery = \"idempotent\""
    } else {
        "redelivery = \"never\""
    }
}

/// The same content for the same name, always.
fn request(robot: &str, name: &str) -> portarium_protocols::grpc::pb::DispatchMissionRequest {
    mission(robot, name, Duration::from_millis(40))
}

async fn send(
    caller: Arc<Caller>,
    robot: &'static str,
    worker: usize,
    acknowledged: Acknowledged,
    stop: CancellationToken,
) {
    for n in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let name = format!("{robot}-{worker}-{n:05}");
        let id = caller.insist(&request(robot, &name), INSISTENCE).await;
        acknowledged
            .lock()
            .unwrap()
            .insert(name, (robot.to_owned(), id));
        sleep(Duration::from_millis(fastrand::u64(..80))).await;
    }
}

/// What was acknowledged before a kill has the same name after it.
async fn compare_some(caller: &Caller, acknowledged: &Acknowledged) {
    let all = acknowledged.lock().unwrap().clone();
    let some = fastrand::choose_multiple(all.iter(), 5);
    for (name, (robot, first)) in some {
        let again = caller.insist(&request(robot, name), INSISTENCE).await;
        assert_eq!(&again, first, "{name}");
    }
}

/// An operator who goes to a robot that is held, looks, and says what he saw.
async fn resolve(
    operator: Arc<Caller>,
    robots: Vec<&'static str>,
    log: ExecutionLog,
    unknown: Arc<Mutex<BTreeSet<String>>>,
) {
    let mut since: HashMap<String, Instant> = HashMap::new();
    loop {
        sleep(Duration::from_millis(200)).await;
        for robot in &robots {
            let Ok(robot) = operator.robot(robot).await else {
                continue;
            };
            for mission in robot.unknown_mission_ids {
                let first = *since.entry(mission.clone()).or_insert_with(Instant::now);
                if first.elapsed() < OPERATOR_LOOKS {
                    continue;
                }
                let ended = log.entries().into_iter().find(|entry| {
                    entry.event == LogEvent::MotionEnd && entry.mission.as_str() == mission
                });
                let seen = match ended.and_then(|entry| entry.outcome) {
                    Some(MissionStatus::Succeeded) => "Succeeded",
                    _ => "Failed",
                };
                if operator.resolve(&mission, seen).await.is_ok() {
                    println!("{mission}: outcome unknown, the operator saw {seen}");
                    unknown.lock().unwrap().insert(mission);
                }
            }
        }
    }
}
