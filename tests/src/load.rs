//! Callers that send missions without end, and an operator who looks after robots that are held.

use crate::{Caller, mission, since};
use portarium_gateway::dev::robot::{ExecutionLog, LogEntry, LogEvent};
use portarium_protocols::{grpc::pb, mission::MissionStatus};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How long an acknowledgement may take, over outages and while a robot is held.
pub const INSISTENCE: Duration = Duration::from_secs(90);
/// How long an operator looks on before he says what he sees.
const OPERATOR_LOOKS: Duration = Duration::from_millis(1_500);
/// Callers of each robot.
const CALLERS: usize = 2;

/// An acknowledged mission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// Its robot.
    pub robot: String,
    /// Its `gateway_request_id`.
    pub request_id: String,
}

/// Two callers for each robot, who send one mission after the other and insist on each.
pub struct Load {
    caller: Arc<Caller>,
    takes: Duration,
    acknowledged: Arc<Mutex<BTreeMap<String, Acknowledged>>>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl Load {
    /// Begins. Missions take this long.
    pub fn start(caller: &Arc<Caller>, robots: &[&str], takes: Duration) -> Self {
        let mut load = Self {
            caller: caller.clone(),
            takes,
            acknowledged: Arc::default(),
            stop: CancellationToken::new(),
            workers: JoinSet::new(),
        };
        for robot in robots {
            for worker in 0..CALLERS {
                let name = format!("{robot}-{worker}");
                load.workers.spawn(send(
                    caller.clone(),
                    (*robot).to_owned(),
                    name,
                    takes,
                    load.acknowledged.clone(),
                    load.stop.clone(),
                ));
            }
        }
        load
    }

    /// Sends some of the acknowledged ones once more: they keep their names.
    pub async fn repeat_some(&self, count: usize) {
        let all = self.acknowledged.lock().unwrap().clone();
        let some = fastrand::choose_multiple(all.iter(), count);
        self.repeat(some).await;
    }

    /// Ends; returns what was acknowledged.
    pub async fn finish(&mut self) -> BTreeMap<String, Acknowledged> {
        self.stop.cancel();
        while let Some(worker) = self.workers.join_next().await {
            worker.unwrap();
        }
        self.acknowledged.lock().unwrap().clone()
    }

    /// Sends all acknowledged ones once more: they keep their names.
    pub async fn repeat_all(&self) {
        let all = self.acknowledged.lock().unwrap().clone();
        self.repeat(all.iter()).await;
    }

    async fn repeat(&self, some: impl IntoIterator<Item = (&String, &Acknowledged)>) {
        for (name, first) in some {
            let request = mission(&first.robot, name, self.takes);
            let again = self.caller.insist(&request, INSISTENCE).await;
            assert_eq!(again, first.request_id, "{name}");
        }
    }
}

async fn send(
    caller: Arc<Caller>,
    robot: String,
    worker: String,
    takes: Duration,
    acknowledged: Arc<Mutex<BTreeMap<String, Acknowledged>>>,
    stop: CancellationToken,
) {
    for n in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let name = format!("{worker}-{n:05}");
        let request: pb::DispatchMissionRequest = mission(&robot, &name, takes);
        let request_id = caller.insist(&request, INSISTENCE).await;
        let robot = robot.clone();
        acknowledged
            .lock()
            .unwrap()
            .insert(name, Acknowledged { robot, request_id });
        sleep(Duration::from_millis(fastrand::u64(..80))).await;
    }
}

/// Goes to robots that are held because of an unknown outcome, looks at what they did, and says it.
pub struct Operator {
    resolved: Arc<Mutex<BTreeSet<String>>>,
    task: JoinHandle<()>,
}

impl Operator {
    /// Begins.
    pub fn start(caller: Caller, robots: &[&str], log: &ExecutionLog) -> Self {
        let log = log.clone();
        Self::looking(caller, robots, move || log.entries())
    }

    /// Begins, with other eyes on what robots did.
    pub fn looking(
        caller: Caller,
        robots: &[&str],
        look: impl Fn() -> Vec<LogEntry> + Send + 'static,
    ) -> Self {
        let resolved = Arc::default();
        let robots = robots.iter().map(|robot| (*robot).to_owned()).collect();
        let task = tokio::spawn(resolve(caller, robots, look, Arc::clone(&resolved)));
        Self { resolved, task }
    }

    /// The missions whose outcome he had to say.
    pub fn resolved(&self) -> BTreeSet<String> {
        self.resolved.lock().unwrap().clone()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn resolve(
    caller: Caller,
    robots: Vec<String>,
    look: impl Fn() -> Vec<LogEntry> + Send + 'static,
    resolved: Arc<Mutex<BTreeSet<String>>>,
) {
    let began = Instant::now();
    let mut seen: HashMap<String, Instant> = HashMap::new();
    loop {
        sleep(Duration::from_millis(200)).await;
        for robot in &robots {
            let Ok(robot) = caller.robot(robot).await else {
                continue;
            };
            for mission in robot.unknown_mission_ids {
                let first = *seen.entry(mission.clone()).or_insert_with(Instant::now);
                if first.elapsed() < OPERATOR_LOOKS {
                    continue;
                }
                let ended = look().into_iter().find(|entry| {
                    entry.event == LogEvent::MotionEnd && entry.mission.as_str() == mission
                });
                let end = match ended.and_then(|entry| entry.outcome) {
                    Some(MissionStatus::Succeeded) => "Succeeded",
                    _ => "Failed",
                };
                if caller
                    .resolve(&mission, end)
                    .await
                    .is_ok_and(|answer| answer.accepted)
                {
                    println!(
                        "{} {mission}: outcome unknown, the operator saw {end}",
                        since(began)
                    );
                    resolved.lock().unwrap().insert(mission);
                }
            }
        }
    }
}
