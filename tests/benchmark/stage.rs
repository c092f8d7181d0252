//! Everything started: authority, broker, robots, the gateway and its rivals, each in a process of
//! its own, so that each one's CPU time can be told.

use crate::{callers::Kind, sides::Side, signals::SPARE_ROBOTS};
use portarium_tests::{
    Config, GatewayProcess, Identities, Mosquitto, Process, binary, free_port, hints, spiffe_id,
};
use serde::de::DeserializeOwned;
use std::{fs, path::Path, process::Stdio, time::Duration};
use tempfile::TempDir;

/// SVIDs live this long, and rotate every half of it.
const TTL: Duration = Duration::from_secs(20);
/// Callers with connections that do nothing; one has at most 256.
pub const IDLE_CALLERS: [&str; 4] = ["idle-0", "idle-1", "idle-2", "idle-3"];
/// Longer than any run.
pub const LASTING: Duration = Duration::from_secs(24 * 3600);

pub struct Stage {
    pub gateway: GatewayProcess,
    pub bridge: Rival,
    pub broker: Mosquitto,
    pub identities: Identities,
    /// Robots that callers send to: `r-0` and so on.
    pub callers_robots: usize,
    dir: TempDir,
    _fleets: [Process; 2],
}

/// A rival as a process.
pub struct Rival {
    pub port: u16,
    /// Where it does nothing but handshakes.
    pub accept_port: u16,
    pub process: Process,
}

impl Stage {
    /// With this many robots behind the broker for callers, and some more for signals.
    pub async fn start(callers_robots: usize) -> Self {
        let robots = callers_robots + SPARE_ROBOTS;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let identities =
            Identities::living(path, &[&["fleet"], &IDLE_CALLERS[..]].concat(), TTL).await;
        let broker = Mosquitto::start(path, &identities).await;
        let fleets = [
            fleet(path, &identities, broker.port, "acme", robots).await,
            fleet(path, &identities, broker.port, "bare", callers_robots).await,
        ];
        let certificates = path.join("bare");
        identities.write_lasting(hints::GATEWAY, LASTING, &certificates);
        let port = broker.port.to_string();
        let to = ["mqtt", "--tenant", "bare", "--broker", &port];
        let bridge = Rival::start(path, "bare-bridge", &certificates, &to).await;
        let mut config = Config::new(path, &identities).broker("main", broker.port);
        let idle = IDLE_CALLERS.map(|hint| format!("{:?}", portarium_tests::spiffe_id(hint)));
        config = config.text(&format!(
            "[[policy]]\npeers = [{}]\nmethods = [\"ListRobots\"]\nrobots = [\"none\"]\nfleets = [\"*\"]\nactions = [\"*\"]",
            idle.join(", ")
        ));
        for n in 0..robots {
            config = config.mqtt_robot(&format!("r-{n}"), "redelivery = \"idempotent\"");
        }
        let gateway = GatewayProcess::start(path, &config).await;
        Self {
            gateway,
            bridge,
            broker,
            identities,
            callers_robots,
            dir,
            _fleets: fleets,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Robots for callers, of another tenant.
    pub async fn fleet(&self, tenant: &str) -> Process {
        let (path, broker) = (self.path(), self.broker.port);
        fleet(path, &self.identities, broker, tenant, self.callers_robots).await
    }

    /// The gateway, or the bare bridge with its bare call.
    pub fn side(&self, kind: Kind) -> Side {
        let (port, process) = match kind {
            Kind::Call | Kind::Bridge => (self.bridge.port, self.bridge.process.pid()),
            Kind::Gateway | Kind::Flood => (self.gateway.ports.grpc, self.gateway.pid()),
        };
        Side {
            kind,
            port,
            process,
            socket: Some(self.identities.endpoint()),
            robots: self.callers_robots,
        }
    }
}

async fn fleet(
    dir: &Path,
    identities: &Identities,
    broker: u16,
    tenant: &str,
    count: usize,
) -> Process {
    let broker_id = spiffe_id(hints::BROKER);
    let socket = identities.endpoint();
    let more = [
        "--hint",
        "fleet",
        "--socket",
        &socket,
        "--broker-id",
        &broker_id,
    ];
    mqtt_robots(dir, broker, tenant, &more, count).await
}

/// Robots of a tenant behind a broker, `r-0` and so on, in a process of their own.
pub async fn mqtt_robots(
    dir: &Path,
    broker: u16,
    tenant: &str,
    more: &[&str],
    count: usize,
) -> Process {
    let broker = format!("localhost:{broker}");
    let place = [
        &["mqtt", "--broker", &broker, "--tenant", tenant][..],
        &["--own-topics", "--connections", "4"],
        more,
    ];
    robots(dir, tenant, &place.concat(), count).await
}

/// Robots that are done with a mission at once.
pub async fn robots(dir: &Path, name: &str, place: &[&str], count: usize) -> Process {
    let program = binary("sim-robot");
    let mut command = std::process::Command::new(&program);
    command
        .args(place)
        .args(["--robot", "r", "--robots", &count.to_string()])
        .args(["--idempotent", "--queue"])
        .args(["--deceleration", "0", "--duration", "0"])
        .stdin(Stdio::piped());
    let log = dir.join(format!("robots-{name}.log"));
    let process = Process::spawn(command, &program, &log);
    portarium_tests::until("the robots", async || process.output().contains("ready")).await;
    process
}

impl Rival {
    /// `to`: where the robots are.
    pub async fn start(dir: &Path, name: &str, certificates: &Path, to: &[&str]) -> Self {
        let (port, accept_port) = (free_port(), free_port());
        let log = dir.join(format!("{name}.log"));
        // It may be started again.
        let _ = fs::remove_file(&log);
        let (listen, accept) = (port.to_string(), accept_port.to_string());
        let certificates = certificates.display().to_string();
        let itself = [
            &["bare", "--listen", &listen, "--accept", &accept][..],
            &["--certificates", &certificates],
            to,
        ];
        let process = Process::start(&binary("bench"), itself.concat(), &log);
        let ready = async || process.output().contains("ready");
        portarium_tests::until("the rival", ready).await;
        Self {
            port,
            accept_port,
            process,
        }
    }
}

/// A role of this program, to be run as a process of its own.
pub fn role(name: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(binary("bench"));
    command
        .arg(name)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    command
}

/// Runs a role to its end, and reads what it printed.
pub async fn printed<T: DeserializeOwned>(role: &mut tokio::process::Command) -> T {
    let output = role.output().await.unwrap();
    assert!(output.status.success(), "{role:?} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// User and system time of a process.
pub fn cpu_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}

/// Resident memory of a process, in bytes.
pub fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() * 1024
}
