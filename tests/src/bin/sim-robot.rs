//! Simulated robots in a process of their own, for tests that kill processes.
//!
//! Prints `ready` when it is connected or listens. Takes commands on its standard input, one a
//! line, answers each with `ok` or `error: …`, and ends with its input or with SIGTERM.

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Parser, Subcommand};
use portarium_gateway::dev::{
    broker::client_id_prefix,
    robot::{
        Behaviour, ExecutionLog, RobotConfig, SimulatedRobot, WhenBusy,
        grpc::{GrpcRobotConfig, GrpcRobots},
        mqtt::{MqttRobotConfig, MqttRobots, StatusTopics},
    },
};
use portarium_identity::{PeerPolicy, SpiffeIdPattern, SvidConfig, SvidManager};
use portarium_protocols::{grpc::ALPN, ids::TenantId};
use std::{net::SocketAddrV4, path::PathBuf, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

/// How long a robot may take until it is ready.
const READY_TIME: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(about = "Simulated robots", after_help = COMMANDS)]
struct Cli {
    #[command(subcommand)]
    protocol: Protocol,
}

const COMMANDS: &str = "Commands on standard input, for all robots or the one named:
  vanish [ROBOT]           drop the connection and fall silent
  return [ROBOT]           come back
  forget [ROBOT]           lose the memory of missions and keys
  behaviour NAME [ROBOT]   normal, slow, refuse, fail, answer-twice, never-answer
  duration SECONDS [ROBOT] what missions take that do not say so";

#[derive(Subcommand)]
enum Protocol {
    /// Robots behind an MQTT 5 broker.
    Mqtt(Mqtt),
    /// Robots that serve gRPC.
    Grpc(Grpc),
}

#[derive(Args)]
struct Mqtt {
    /// HOST:PORT of the broker.
    #[arg(long)]
    broker: String,
    /// Who the broker is: a SPIFFE ID or a pattern.
    #[arg(long, required_unless_present = "plaintext")]
    broker_id: Option<SpiffeIdPattern>,
    /// Whose topics these are.
    #[arg(long)]
    tenant: TenantId,
    /// Connections that the robots share.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Write statuses to each robot's own branch of the topics.
    #[arg(long)]
    own_topics: bool,
    /// Whole seconds until the broker says that a lost robot is offline.
    #[arg(long, default_value_t = 1)]
    will_delay: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Grpc {
    /// Where to listen.
    #[arg(long)]
    listen: String,
    /// Who may call: SPIFFE IDs or patterns.
    #[arg(long, required_unless_present = "plaintext")]
    peer: Vec<SpiffeIdPattern>,
    /// Serve the bare contract, without WatchMissions.
    #[arg(long)]
    no_watch: bool,
    /// Each robot on an IP address of its own, from that of --listen on.
    #[arg(long)]
    own_addresses: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// The robot's name; with --robots the beginning of their names (NAME-0, NAME-1, …).
    #[arg(long)]
    robot: String,
    /// How many robots.
    #[arg(long)]
    robots: Option<usize>,
    /// Execute an idempotency key at most once.
    #[arg(long)]
    idempotent: bool,
    /// Queue missions while busy, rather than refuse them.
    #[arg(long)]
    queue: bool,
    /// How they behave at first.
    #[arg(long, default_value = "normal")]
    behaviour: Behaviour,
    /// Seconds that a mission takes which does not say so by its parameter `duration`.
    #[arg(long, default_value = "0.2", value_parser = seconds)]
    duration: Duration,
    /// Seconds until it stands still.
    #[arg(long, default_value = "0.02", value_parser = seconds)]
    deceleration: Duration,
    /// Append what they really do to this file.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Force each line of the log to the disk.
    #[arg(long, requires = "log")]
    fsync: bool,
    /// The Workload API's socket; SPIFFE_ENDPOINT_SOCKET otherwise.
    #[arg(long)]
    socket: Option<String>,
    /// The hint of the SVID to use.
    #[arg(long)]
    hint: Option<String>,
    /// Without TLS, for development.
    #[arg(long)]
    plaintext: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|e| e.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

impl Common {
    fn robot_configs(&self) -> anyhow::Result<Vec<RobotConfig>> {
        let names: Vec<_> = match self.robots {
            None => vec![self.robot.clone()],
            Some(count) => (0..count).map(|n| format!("{}-{n}", self.robot)).collect(),
        };
        ensure!(!names.is_empty(), "--robots must be 1 or more");
        let config = |name: String| {
            Ok(RobotConfig {
                id: name.parse().with_context(|| format!("--robot {name:?}"))?,
                idempotent: self.idempotent,
                when_busy: if self.queue {
                    WhenBusy::Queue
                } else {
                    WhenBusy::Refuse
                },
                deceleration: self.deceleration,
                duration: self.duration,
            })
        };
        names.into_iter().map(config).collect()
    }

    fn execution_log(&self) -> anyhow::Result<ExecutionLog> {
        Ok(match &self.log {
            Some(path) => ExecutionLog::open(path, self.fsync)?,
            None => ExecutionLog::in_memory(),
        })
    }

    async fn identity(&self) -> anyhow::Result<Option<SvidManager>> {
        if self.plaintext {
            return Ok(None);
        }
        let manager = SvidManager::start(SvidConfig {
            endpoint_socket: self.socket.clone(),
            hint: self.hint.clone(),
            ..SvidConfig::default()
        })?;
        if timeout(READY_TIME, manager.ready()).await.is_err() {
            bail!("no SVID within {READY_TIME:?}: {}", manager.state());
        }
        Ok(Some(manager))
    }
}

/// What keeps the robots running.
enum Running {
    Mqtt(Vec<MqttRobots>),
    Grpc(Vec<GrpcRobots>),
}

impl Running {
    fn robots(&self) -> Vec<SimulatedRobot> {
        match self {
            Self::Mqtt(all) => all.iter().flat_map(|some| some.robots()).cloned().collect(),
            Self::Grpc(all) => all.iter().flat_map(|some| some.robots()).cloned().collect(),
        }
    }

    async fn stop(self) {
        match self {
            Self::Mqtt(all) => {
                for some in all {
                    some.stop().await;
                }
            }
            Self::Grpc(all) => {
                for some in all {
                    some.stop().await;
                }
            }
        }
    }
}

async fn start_mqtt(args: &Mqtt) -> anyhow::Result<Running> {
    let (host, port) = args
        .broker
        .rsplit_once(':')
        .context("--broker must be HOST:PORT")?;
    let port = port.parse().context("--broker must be HOST:PORT")?;
    let log = args.common.execution_log()?;
    let identity = args.common.identity().await?;
    let prefix = match &identity {
        Some(identity) => client_id_prefix(&identity.ready().await.spiffe_id),
        None => "sim-robot".to_owned(),
    };
    let policy = PeerPolicy::new(args.broker_id.clone());
    let robots = args.common.robot_configs()?;
    let each = robots.len().div_ceil(args.connections.max(1));
    let mut running = Vec::new();
    for (some, n) in robots.chunks(each).zip(0..) {
        let client_id = format!("{prefix}~{}~{}~{n}", args.tenant, args.common.robot);
        let config = MqttRobotConfig {
            tls: identity
                .as_ref()
                .map(|identity| identity.client_tls(policy.clone(), &[])),
            statuses: if args.own_topics {
                StatusTopics::Own
            } else {
                StatusTopics::Shared
            },
            will_delay: Duration::from_secs(args.will_delay),
            ..MqttRobotConfig::new(host, port, &client_id, args.tenant.clone())
        };
        running.push(MqttRobots::start(config, some.to_vec(), &log));
    }
    for some in &running {
        let ready = timeout(READY_TIME, some.ready()).await;
        ready.with_context(|| format!("not subscribed within {READY_TIME:?}"))?;
    }
    Ok(Running::Mqtt(running))
}

async fn start_grpc(args: &Grpc) -> anyhow::Result<Running> {
    let log = args.common.execution_log()?;
    let identity = args.common.identity().await?;
    let policy = PeerPolicy::new(args.peer.iter().cloned());
    let config = GrpcRobotConfig {
        tls: identity.map(|identity| identity.server_tls(policy, ALPN)),
        watch: !args.no_watch,
    };
    let first: SocketAddrV4 = args.listen.parse().context("--listen must be IP:PORT")?;
    let robots = args.common.robot_configs()?;
    let each = if args.own_addresses { 1 } else { robots.len() };
    let mut running = Vec::new();
    for (some, ip) in robots.chunks(each).zip(first.ip().to_bits()..) {
        let address = SocketAddrV4::new(ip.into(), first.port());
        let listener = TcpListener::bind(address).await.context("--listen")?;
        running.push(GrpcRobots::start(
            listener,
            config.clone(),
            some.to_vec(),
            &log,
        )?);
    }
    Ok(Running::Grpc(running))
}

/// Does what a line says.
fn obey(line: &str, robots: &[SimulatedRobot]) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let mut word = || words.next();
    let command = word().ok_or("a command is expected")?;
    let value = if matches!(command, "behaviour" | "duration") {
        word()
    } else {
        None
    };
    let named = word();
    if let Some(extra) = word() {
        return Err(format!("{extra:?} is too much"));
    }
    let chosen = robots
        .iter()
        .filter(|robot| named.is_none_or(|name| robot.id().as_str() == name));
    let chosen: Vec<_> = chosen.collect();
    if chosen.is_empty() {
        return Err("no such robot".into());
    }
    let act: Box<dyn Fn(&SimulatedRobot)> = match (command, value) {
        ("vanish", _) => Box::new(SimulatedRobot::vanish),
        ("return", _) => Box::new(SimulatedRobot::come_back),
        ("forget", _) => Box::new(SimulatedRobot::forget),
        ("behaviour", Some(name)) => {
            let behaviour = name.parse()?;
            Box::new(move |robot| robot.set_behaviour(behaviour))
        }
        ("duration", Some(text)) => {
            let duration = seconds(text)?;
            Box::new(move |robot| robot.set_duration(duration))
        }
        _ => return Err("no such command, or its value is missing; see --help".into()),
    };
    chosen.into_iter().for_each(act);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    portarium_identity::install_crypto_provider();
    let running = match Cli::parse().protocol {
        Protocol::Mqtt(args) => {
            let running = start_mqtt(&args).await?;
            set_behaviour(&running, args.common.behaviour);
            running
        }
        Protocol::Grpc(args) => {
            let running = start_grpc(&args).await?;
            set_behaviour(&running, args.common.behaviour);
            running
        }
    };
    println!("ready");
    let robots = running.robots();
    let mut lines = input();
    let mut terminated = signal(SignalKind::terminate())?;
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = terminated.recv() => None,
        };
        let Some(line) = line else { break };
        match obey(&line, &robots) {
            Ok(()) => println!("ok"),
            Err(reason) => println!("error: {reason}"),
        }
    }
    running.stop().await;
    Ok(())
}

/// The lines of standard input. They are read on a thread that the process does not wait for.
fn input() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn set_behaviour(running: &Running, behaviour: Behaviour) {
    for robot in running.robots() {
        robot.set_behaviour(behaviour);
    }
}
