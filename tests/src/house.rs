//! Everything at once, for tests that need no special arrangement.

use crate::{Caller, Config, GatewayProcess, Identities, Mosquitto, Watch, grpc_robot, mqtt_robot};
use portarium_gateway::dev::robot::{
    ExecutionLog, LogEntry, LogEvent, RobotConfig, SimulatedRobot, grpc::GrpcRobots,
    mqtt::MqttRobots, mqtt::StatusTopics,
};
use std::{
    ffi::OsString,
    path::Path,
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
    dir: TempDir,
}

/// What is other than usual in a [`House`].
pub struct Arrangement<'a> {
    /// Workloads beside the usual ones, by hint.
    pub workloads: &'a [&'a str],
    /// How long SVIDs live.
    pub svid_ttl: Duration,
    /// Further lines of the configuration.
    pub config: &'a str,
    /// Further lines right behind the broker's.
    pub broker: &'a str,
    /// The gateway stands behind this command, which becomes it.
    pub behind: &'a [&'a str],
}

impl Default for Arrangement<'_> {
    fn default() -> Self {
        Self {
            workloads: &[],
            svid_ttl: Duration::from_secs(10),
            config: "",
            broker: "",
            behind: &[],
        }
    }
}

impl House {
    /// Started and in reach.
    pub async fn start() -> Self {
        Self::arranged(Arrangement::default()).await
    }

    /// As [`Self::start`], with something that is other than usual.
    pub async fn arranged(arrangement: Arrangement<'_>) -> Self {
        let prefix = arrangement.behind.iter().map(OsString::from).collect();
        Self::built(prefix, tempfile::tempdir().unwrap(), arrangement).await
    }

    /// As [`Self::start`], in this folder, with a gateway behind a command that becomes it.
    pub async fn behind(prefix: Vec<OsString>, dir: TempDir) -> Self {
        Self::built(prefix, dir, Arrangement::default()).await
    }

    async fn built(prefix: Vec<OsString>, dir: TempDir, arrangement: Arrangement<'_>) -> Self {
        crate::init();
        let path = dir.path();
        let workloads = [&["m", "g"], arrangement.workloads].concat();
        let identities = Identities::living(path, &workloads, arrangement.svid_ttl).await;
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
            .text(arrangement.broker)
            .mqtt_robot("m", lines)
            .grpc_robot("g", grpc.local_addr().port(), lines)
            .text(arrangement.config);
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
            dir,
        }
    }

    /// Where all of it keeps its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
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
