//! Everything at once, for tests that need no special arrangement.

use crate::{Caller, Config, GatewayProcess, Identities, Mosquitto, Watch, grpc_robot, mqtt_robot};
use portarium_gateway::dev::robot::{
    ExecutionLog, LogEntry, LogEvent, RobotConfig, SimulatedRobot, grpc::GrpcRobots,
    mqtt::MqttRobots, mqtt::StatusTopics,
};
use std::{
    ffi::OsString,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A gateway with an MQTT robot `m` behind mosquitto and a gRPC robot `g`, both idempotent, all of
/// it running and in reach.
pub struct House {
    /// The binary.
    pub gateway: GatewayProcess,
    /// The control plane.
    pub caller: Arc<Caller>,
    /// What the control plane sees.
    pub watch: Watch,
    /// What the robots really do.
    pub log: ExecutionLog,
    /// The broker.
    pub broker: Mosquitto,
    /// The authority.
    pub identities: Identities,
    log_opened: Instant,
    mqtt: MqttRobots,
    grpc: GrpcRobots,
    _dir: TempDir,
}

impl House {
    /// Started and in reach.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::behind(Vec::new(), dir).await
    }

    /// As [`Self::start`], in this folder, with a gateway behind a command that becomes it.
    pub async fn behind(prefix: Vec<OsString>, dir: TempDir) -> Self {
        crate::init();
        let path = dir.path();
        let identities = Identities::start(path, &["m", "g"]).await;
        let broker = Mosquitto::start(path, &identities).await;
        let log_opened = Instant::now();
        let log = ExecutionLog::in_memory();
        let robot = |id: &str| RobotConfig::new(id.parse().unwrap());
        let own = StatusTopics::Own;
        let mqtt = mqtt_robot(&identities, broker.port, own, robot("m"), &log).await;
        let grpc = grpc_robot(&identities, robot("g"), &log).await;
        let lines = "redelivery = \"idempotent\"";
        let config = Config::new(path, &identities)
            .broker("main", broker.port)
            .mqtt_robot("m", lines)
            .grpc_robot("g", grpc.local_addr().port(), lines);
        let gateway = GatewayProcess::start_behind(prefix, path, &config).await;
        let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
        caller.robots_reachable(&["m", "g"]).await;
        Self {
            watch: Watch::start(caller.clone()),
            gateway,
            caller,
            log,
            broker,
            identities,
            log_opened,
            mqtt,
            grpc,
            _dir: dir,
        }
    }

    /// One of the robots, `m` or `g`.
    pub fn robot(&self, id: &str) -> &SimulatedRobot {
        match id {
            "m" => &self.mqtt.robots()[0],
            "g" => &self.grpc.robots()[0],
            _ => panic!("there is no robot {id}"),
        }
    }

    /// What one of the robots did.
    pub fn did(&self, robot: &str) -> Vec<LogEntry> {
        let mut entries = self.log.entries();
        entries.retain(|entry| entry.robot.as_str() == robot);
        entries
    }

    /// When an entry of the log was made.
    pub fn at(&self, entry: &LogEntry) -> Instant {
        self.log_opened + Duration::from_nanos(entry.monotonic_ns)
    }

    /// When this arrived at its robot or happened there first, once it has.
    pub fn first(&self, event: LogEvent, mission: &str) -> Option<Instant> {
        let of = |entry: &LogEntry| entry.event == event && entry.mission.as_str() == mission;
        self.log
            .entries()
            .iter()
            .find(|entry| of(entry))
            .map(|entry| self.at(entry))
    }
}
