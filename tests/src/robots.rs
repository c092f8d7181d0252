//! Robots: in the test's own process, and as processes that can be killed.

use crate::{Identities, Place, Process, binary, hints, identities::only, soon, spiffe_id};
use portarium_gateway::dev::{
    broker::client_id_prefix,
    robot::{
        ExecutionLog, LogEntry, RobotConfig,
        grpc::{GrpcRobotConfig, GrpcRobots},
        mqtt::{MqttRobotConfig, MqttRobots, StatusTopics},
    },
};
use portarium_protocols::grpc::ALPN;
use rustix::process::Signal;
use std::{
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
};
use tokio::net::TcpListener;

/// The tenant of all MQTT robots.
const TENANT: &str = "acme";

/// A robot behind a broker, with its own identity and connection, subscribed.
pub async fn mqtt_robot(
    identities: &Identities,
    broker: u16,
    statuses: StatusTopics,
    config: RobotConfig,
    log: &ExecutionLog,
) -> MqttRobots {
    let id = config.id.to_string();
    let manager = identities.manager(&id).await;
    let client_id = client_id_prefix(&manager.ready().await.spiffe_id);
    let front = MqttRobotConfig {
        tls: Some(manager.client_tls(only(hints::BROKER), &[])),
        statuses,
        ..MqttRobotConfig::new("localhost", broker, &client_id, TENANT.parse().unwrap())
    };
    let robots = MqttRobots::start(front, vec![config], log);
    soon("the robot's subscription", robots.ready()).await;
    robots
}

/// A robot that serves gRPC with its own identity, on a free port.
pub async fn grpc_robot(
    identities: &Identities,
    config: RobotConfig,
    log: &ExecutionLog,
) -> GrpcRobots {
    let manager = identities.manager(config.id.as_str()).await;
    let front = GrpcRobotConfig {
        tls: Some(manager.server_tls(only(hints::GATEWAY), ALPN)),
        watch: true,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    GrpcRobots::start(listener, front, vec![config], log).unwrap()
}

/// A robot in a process of its own: what it did stands in a file, whatever kills it.
pub struct SimRobot {
    process: Process,
    place: Place,
    command: Vec<String>,
    dir: PathBuf,
    id: String,
    input: ChildStdin,
}

impl SimRobot {
    /// An MQTT robot; `more` are further arguments of `sim-robot`.
    pub async fn mqtt(
        dir: &Path,
        identities: &Identities,
        broker: u16,
        id: &str,
        more: &[&str],
    ) -> Self {
        let broker = format!("localhost:{broker}");
        Self::mqtt_at(Place::default(), dir, identities, &broker, id, more).await
    }

    /// As [`Self::mqtt`], somewhere else; `broker` is its address as it is seen from there.
    pub async fn mqtt_at(
        place: Place,
        dir: &Path,
        identities: &Identities,
        broker: &str,
        id: &str,
        more: &[&str],
    ) -> Self {
        let broker_id = spiffe_id(hints::BROKER);
        let arguments = [
            "mqtt",
            "--broker",
            broker,
            "--broker-id",
            &broker_id,
            "--tenant",
            TENANT,
        ];
        Self::start(place, dir, identities, id, &arguments, more).await
    }

    /// A robot that serves gRPC on this port.
    pub async fn grpc(
        dir: &Path,
        identities: &Identities,
        port: u16,
        id: &str,
        more: &[&str],
    ) -> Self {
        Self::grpc_at(Place::default(), dir, identities, port, id, more).await
    }

    /// As [`Self::grpc`], somewhere else.
    pub async fn grpc_at(
        place: Place,
        dir: &Path,
        identities: &Identities,
        port: u16,
        id: &str,
        more: &[&str],
    ) -> Self {
        let listen = format!("{}:{port}", place.listen());
        let gateway = spiffe_id(hints::GATEWAY);
        let arguments = ["grpc", "--listen", &listen, "--peer", &gateway];
        Self::start(place, dir, identities, id, &arguments, more).await
    }

    async fn start(
        place: Place,
        dir: &Path,
        identities: &Identities,
        id: &str,
        first: &[&str],
        more: &[&str],
    ) -> Self {
        let log = log_file(dir, id).display().to_string();
        let endpoint = identities.endpoint();
        let common = [
            "--robot", id, "--hint", id, "--socket", &endpoint, "--log", &log,
        ];
        let all = [first, &common, more].concat();
        let command: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let (process, input) = spawn(&place, dir, id, &command);
        let robot = Self {
            process,
            place,
            command,
            dir: dir.to_owned(),
            id: id.to_owned(),
            input,
        };
        robot.ready(1).await;
        robot
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Starts it again, without its memory, and waits until it is ready.
    pub async fn restart(&mut self) {
        let starts = self.starts();
        let (process, input) = spawn(&self.place, &self.dir, &self.id, &self.command);
        self.process = process;
        self.input = input;
        self.ready(starts + 1).await;
    }

    /// What it did, over all its starts.
    pub fn log(&self) -> Vec<LogEntry> {
        ExecutionLog::read(&log_file(&self.dir, &self.id)).unwrap()
    }

    /// Reads what it did, while the test does something else with it.
    pub fn log_reader(&self) -> impl Fn() -> Vec<LogEntry> + Clone + Send + use<> {
        let file = log_file(&self.dir, &self.id);
        move || ExecutionLog::read(&file).unwrap()
    }

    fn starts(&self) -> usize {
        let output = self.process.output();
        output.lines().filter(|line| *line == "ready").count()
    }

    async fn ready(&self, starts: usize) {
        crate::until("the robot's process", async || self.starts() >= starts).await;
    }
}

fn log_file(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.executions"))
}

fn spawn(place: &Place, dir: &Path, id: &str, arguments: &[String]) -> (Process, ChildStdin) {
    let program = binary("sim-robot");
    // It ends with its input, so it needs no other care.
    let mut command = Command::new("env");
    command.args(&place.prefix).arg(&program);
    command.args(arguments).stdin(Stdio::piped());
    let mut process = Process::spawn(command, &program, &dir.join(format!("{id}.log")));
    let input = process.input();
    (process, input)
}
