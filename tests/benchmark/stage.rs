//! Everything started: authority, broker, robots, the gateway and its rivals, each in a process of
//! its own, so that each one's CPU time can be told.

use crate::{
    callers::{Kind, Seen},
    signals::SPARE_ROBOTS,
};
use portarium_tests::{
    Config, GatewayProcess, Identities, Mosquitto, Process, binary, free_port, hints,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// SVIDs live this long, and rotate every half of it.
const TTL: Duration = Duration::from_secs(20);
/// Callers with connections that do nothing; one has at most 256.
pub const IDLE_CALLERS: [&str; 4] = ["idle-0", "idle-1", "idle-2", "idle-3"];
/// Longer than any run.
const LASTING: Duration = Duration::from_secs(24 * 3600);

pub struct Stage {
    pub gateway: GatewayProcess,
    pub bridge: Rival,
    pub broker: Mosquitto,
    pub identities: Identities,
    /// Robots that callers send to: `r-0` and so on.
    pub callers_robots: usize,
    dir: TempDir,
    _fleet: Process,
    runs: AtomicU32,
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
        let fleet = fleet(path, &identities, broker.port, robots).await;
        let certificates = path.join("bare");
        identities.write_lasting(hints::GATEWAY, LASTING, &certificates);
        let bridge = Rival::start(path, "bare-bridge", broker.port, &certificates).await;
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
            _fleet: fleet,
            runs: AtomicU32::new(0),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The callers of one run, in a process of their own.
    pub async fn callers(&self, kind: Kind, seconds: f64, more: &[(&str, String)]) -> Seen {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let port = match kind {
            Kind::Call | Kind::Bridge => self.bridge.port,
            Kind::Gateway | Kind::Flood => self.gateway.ports.grpc,
        };
        let kind = format!("{kind:?}").to_lowercase();
        let mut command = tokio::process::Command::new(binary("bench"));
        command
            .args(["callers", "--kind", &kind])
            .args(["--port", &port.to_string()])
            .args(["--socket", &self.identities.endpoint()])
            .args(["--robots", &self.callers_robots.to_string()])
            .args(["--seconds", &seconds.to_string()])
            .args(["--run", &format!("run{run}")])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        for (name, value) in more {
            command.arg(name).arg(value);
        }
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "the callers failed");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

async fn fleet(dir: &Path, identities: &Identities, broker: u16, robots: usize) -> Process {
    let program = binary("sim-robot");
    let broker = format!("localhost:{broker}");
    let broker_id = portarium_tests::spiffe_id(hints::BROKER);
    let mut command = std::process::Command::new(&program);
    command
        .args(["mqtt", "--broker", &broker, "--broker-id", &broker_id])
        .args(["--tenant", "acme", "--own-topics", "--connections", "4"])
        .args(["--robot", "r", "--robots", &robots.to_string()])
        .args(["--hint", "fleet", "--socket", &identities.endpoint()])
        .args(["--idempotent", "--deceleration", "0", "--duration", "0"])
        .stdin(Stdio::piped());
    let process = Process::spawn(command, &program, &dir.join("robots.log"));
    portarium_tests::until("the robots", async || process.output().contains("ready")).await;
    process
}

impl Rival {
    pub async fn start(dir: &Path, name: &str, broker: u16, certificates: &Path) -> Self {
        let (port, accept_port) = (free_port(), free_port());
        let process = Process::start(
            &binary("bench"),
            [
                "bare",
                "--listen",
                &port.to_string(),
                "--accept",
                &accept_port.to_string(),
                "--broker",
                &broker.to_string(),
                "--certificates",
                &certificates.display().to_string(),
                "--client-id",
                name,
            ],
            &dir.join(format!("{name}.log")),
        );
        let ready = async || process.output().contains("ready");
        portarium_tests::until("the rival", ready).await;
        Self {
            port,
            accept_port,
            process,
        }
    }
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

/// The median cost of making 4 KiB durable where the journal is.
pub fn fsync_cost(dir: &Path) -> Duration {
    let path: PathBuf = dir.join("fsync");
    let mut file = fs::File::create(&path).unwrap();
    let mut costs: Vec<Duration> = (0..200)
        .map(|_| {
            let began = Instant::now();
            std::io::Write::write_all(&mut file, &[0; 4096]).unwrap();
            file.sync_data().unwrap();
            began.elapsed()
        })
        .collect();
    fs::remove_file(path).unwrap();
    costs.sort();
    costs[costs.len() / 2]
}
