//! What `dev` sets up around the gateway.

use super::{
    CONFIG, JOURNAL,
    broker::{self, Access, AclRule, Broker, client_id_prefix},
    robot::{
        ExecutionLog, RobotConfig, WhenBusy,
        grpc::{GrpcRobotConfig, GrpcRobots},
        mqtt::{MqttRobotConfig, MqttRobots},
    },
};
use crate::{
    config::Config,
    supervisor::{Addresses, Gateway},
};
use anyhow::Context as _;
use portarium_identity::{
    PeerPolicy, SpiffeIdPattern, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry},
};
use portarium_protocols::{
    grpc::{ALPN, Connection, Target, pb},
    ids::{RobotId, TenantId},
};
use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

/// The hints of the authority's SVIDs; each is `spiffe://portarium.robotics/ns/portarium/sa/HINT/dev`.
pub mod hints {
    /// The gateway; its SVID carries the DNS name `localhost`.
    pub const GATEWAY: &str = "robotics-gateway";
    /// The embedded broker.
    pub const BROKER: &str = "mqtt-broker";
    /// Who sends missions.
    pub const CONTROL_PLANE: &str = "control-plane";
    /// Who confirms, resolves, holds and releases.
    pub const OPERATOR: &str = "operator";
    /// The simulated robots.
    pub const ROBOT: &str = "robot";
    /// All of them.
    pub const ALL: [&str; 5] = [GATEWAY, BROKER, CONTROL_PLANE, OPERATOR, ROBOT];
}

const TRUST_DOMAIN: &str = "portarium.robotics";
const TENANT: &str = "demo";

/// The simulated robots by name.
pub(super) const MQTT_ROBOT: &str = "sim-mqtt";
pub(super) const GRPC_ROBOT: &str = "sim-grpc";

/// How long everything may take to stand.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the stage is to be.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// Where socket, journal, audit and configuration are.
    pub dir: PathBuf,
    /// The lifetime of SVIDs.
    pub svid_ttl: Duration,
    /// 50051, 9090 and 9091, or any that are free.
    pub usual_ports: bool,
}

/// Why the stage cannot be set up.
#[derive(Debug, Error)]
pub enum StageError {
    /// The folder.
    #[error("{dir}: cannot be used as state folder")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It did not stand in time.
    #[error("the simulated robots were not ready within {PATIENCE:?}: {0}")]
    NotReady(String),
}

/// An authority, a broker and the simulated robots, running.
pub struct Stage {
    options: StageOptions,
    /// Hands out the SVIDs.
    pub authority: Authority,
    broker: Broker,
    mqtt: MqttRobots,
    grpc: GrpcRobots,
}

/// `spiffe://portarium.robotics/ns/portarium/sa/HINT/dev`
pub(super) fn spiffe_id(hint: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/portarium/sa/{hint}/dev")
}

fn only(hint: &str) -> anyhow::Result<PeerPolicy> {
    Ok(PeerPolicy::new([
        spiffe_id(hint).parse::<SpiffeIdPattern>()?
    ]))
}

impl Stage {
    /// Starts authority, broker and robots.
    ///
    /// # Errors
    /// Where one of them cannot be started.
    pub async fn start(options: StageOptions) -> anyhow::Result<Self> {
        let dir = absolute(&options.dir)?;
        let options = StageOptions { dir, ..options };
        let entry = |hint: &str| Entry {
            spiffe_id: spiffe_id(hint),
            hint: hint.to_owned(),
            dns_names: match hint {
                hints::GATEWAY | hints::BROKER => vec!["localhost".to_owned()],
                _ => Vec::new(),
            },
        };
        let authority = Authority::start(AuthorityConfig {
            trust_domain: TRUST_DOMAIN.to_owned(),
            socket: options.dir.join("agent.sock"),
            svid_ttl: options.svid_ttl,
            entries: hints::ALL.map(entry).to_vec(),
        })
        .await?;
        let log = ExecutionLog::in_memory();
        let robots = identity(&options.dir, hints::ROBOT).await?;
        let broker = start_broker(&options.dir).await?;
        let tenant: TenantId = TENANT.parse()?;
        let mqtt_config = MqttRobotConfig {
            tls: Some(robots.client_tls(only(hints::BROKER)?, &[])),
            ..MqttRobotConfig::new(
                "localhost",
                broker.local_addr().port(),
                &format!(
                    "{}#{MQTT_ROBOT}",
                    client_id_prefix(&robots.ready().await.spiffe_id)
                ),
                tenant,
            )
        };
        let mqtt = MqttRobots::start(mqtt_config, vec![simulated(MQTT_ROBOT)?], &log);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let grpc_config = GrpcRobotConfig {
            tls: Some(robots.server_tls(only(hints::GATEWAY)?, ALPN)),
            watch: true,
        };
        let grpc = GrpcRobots::start(listener, grpc_config, vec![simulated(GRPC_ROBOT)?], &log)?;
        Ok(Self {
            options,
            authority,
            broker,
            mqtt,
            grpc,
        })
    }

    /// The Workload API's socket.
    pub fn socket(&self) -> PathBuf {
        self.options.dir.join("agent.sock")
    }

    fn config_file(&self) -> PathBuf {
        self.options.dir.join(CONFIG)
    }

    /// The shipped gateway, on a configuration that is written into the folder.
    ///
    /// # Errors
    /// Where ports are in use, say.
    pub fn gateway(&self) -> anyhow::Result<Gateway> {
        let file = self.config_file();
        fs::write(&file, self.config()).map_err(|source| StageError::Folder {
            dir: self.options.dir.clone(),
            source,
        })?;
        let config = Config::load(&file)?;
        // With the demo, standard output tells the story.
        crate::logging::init(&config.log)?;
        Gateway::prepare(&file, config)
    }

    /// The configuration of the gateway on this stage.
    pub fn config(&self) -> String {
        let dir = self.options.dir.display();
        let [grpc, health, admin] = match self.options.usual_ports {
            true => [50051, 9090, 9091],
            false => [0, 0, 0],
        };
        let log = if self.options.usual_ports {
            "info"
        } else {
            "warn"
        };
        let broker = self.broker.local_addr().port();
        let robot = self.grpc.local_addr().port();
        let id = spiffe_id;
        format!(
            r#"# Written by `portarium-gateway dev`; edit robots and policy and send SIGHUP to try a reload.
[identity]
endpoint_socket = "unix://{dir}/agent.sock"
hint = "{gateway}"

[grpc]
listen = "127.0.0.1:{grpc}"

[health]
listen = "127.0.0.1:{health}"

[admin]
listen = "127.0.0.1:{admin}"

[journal]
path = "{dir}/{JOURNAL}"

[audit]
path = "{dir}/audit.jsonl"

[log]
filter = "{log}"

[[policy]]
peers = ["{control_plane}"]
methods = ["DispatchMission", "CancelMission", "GetMissionStatus", "WatchMissions", "ListRobots", "GetRobot"]
robots = ["*"]
fleets = ["*"]
actions = ["*"]

[[policy]]
peers = ["{operator}"]
methods = ["DispatchMission", "CancelMission", "GetMissionStatus", "WatchMissions", "ConfirmMission", "ResolveMission", "ListRobots", "GetRobot", "HoldRobot", "ReleaseRobot", "ListPeers"]
robots = ["*"]
fleets = ["*"]
actions = ["*"]

[mqtt.embedded]
address = "localhost:{broker}"
peers = ["{broker_id}"]

[[robots]]
id = "{MQTT_ROBOT}"
fleet = "sim"
adapter = "mqtt"
broker = "embedded"
tenant = "{TENANT}"
actions = ["navigate_to", "dock", "undock"]
redelivery = "idempotent"

[[robots]]
id = "{GRPC_ROBOT}"
fleet = "sim"
adapter = "grpc"
address = "localhost:{robot}"
peers = ["{robot_id}"]
actions = ["navigate_to", "dock", "undock"]
redelivery = "idempotent"
"#,
            gateway = hints::GATEWAY,
            control_plane = id(hints::CONTROL_PLANE),
            operator = id(hints::OPERATOR),
            broker_id = id(hints::BROKER),
            robot_id = id(hints::ROBOT),
        )
    }

    /// A connection to the gateway that is kept up, as the workload with this hint.
    pub(super) async fn client(
        &self,
        hint: &str,
        addresses: Addresses,
    ) -> anyhow::Result<(Connection, SvidManager)> {
        let manager = identity(&self.options.dir, hint).await?;
        let tls = manager.client_tls(only(hints::GATEWAY)?, ALPN);
        let target: Target = format!("localhost:{}", addresses.grpc.port()).parse()?;
        Ok((Connection::start(target, Some(tls), "gateway"), manager))
    }

    /// Waits until the gateway can reach both robots.
    pub(super) async fn ready(&self, addresses: Addresses) -> anyhow::Result<()> {
        let (connection, _identity) = self.client(hints::OPERATOR, addresses).await?;
        let reached = async {
            loop {
                if all_reachable(&connection).await {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, reached).await.map_err(|_| {
            let state = connection.channel().err().map(|down| down.to_string());
            StageError::NotReady(state.unwrap_or_else(|| "see the log".into())).into()
        })
    }

    pub(super) fn banner(&self, addresses: Addresses) -> String {
        let dir = self.options.dir.display();
        let Addresses {
            grpc,
            health,
            admin,
        } = addresses;
        let id = spiffe_id(hints::GATEWAY);
        format!(
            "
portarium-gateway dev: mission service {grpc}, health http://{health}/readyz, metrics http://{admin}/metrics
broker localhost:{broker} (MQTT 5, mutual TLS), simulated robots {MQTT_ROBOT} and {GRPC_ROBOT}
state in {dir}: gateway.toml, journal.sqlite, audit.jsonl; Workload API at agent.sock

Try, in another terminal:

  export SPIFFE_ENDPOINT_SOCKET=unix://{dir}/agent.sock
  export PORTARIUM_SERVER=localhost:{port} PORTARIUM_SERVER_ID={id}

  {program} mission dispatch --hint control-plane --robot {MQTT_ROBOT} --action navigate_to --param x=4.5 --param y=2 --follow
  {program} mission watch --hint operator
  {program} mission stop --hint control-plane --robot {MQTT_ROBOT}
  {program} robot list --hint operator
  {program} svid show --hint operator

Ctrl-C ends it.",
            broker = self.broker.local_addr().port(),
            port = grpc.port(),
            program = program(),
        )
    }

    /// Ends everything.
    pub async fn close(self) {
        self.mqtt.stop().await;
        self.grpc.stop().await;
        self.broker.stop().await;
    }
}

/// This program as one can type it: started by cargo, it is on no search path.
fn program() -> String {
    let name = || "portarium-gateway".to_owned();
    let Ok(path) = std::env::current_exe() else {
        return name();
    };
    let here = std::env::current_dir().unwrap_or_default();
    let relative = path.strip_prefix(&here).unwrap_or(&path);
    relative.to_str().map_or_else(name, str::to_owned)
}

async fn all_reachable(connection: &Connection) -> bool {
    let Ok(channel) = connection.channel() else {
        return false;
    };
    let mut client = pb::mission_service_client::MissionServiceClient::new(channel);
    let listed = client.list_robots(pb::ListRobotsRequest::default()).await;
    listed.is_ok_and(|response| {
        let robots = response.into_inner().robots;
        !robots.is_empty()
            && robots
                .iter()
                .all(|robot| robot.reachable && robot.reconciled)
    })
}

fn simulated(name: &str) -> anyhow::Result<RobotConfig> {
    let id: RobotId = name.parse()?;
    Ok(RobotConfig {
        when_busy: WhenBusy::Refuse,
        duration: Duration::from_secs(2),
        ..RobotConfig::new(id)
    })
}

async fn identity(dir: &Path, hint: &str) -> anyhow::Result<SvidManager> {
    let manager = SvidManager::start(SvidConfig {
        endpoint_socket: Some(format!("unix://{}", dir.join("agent.sock").display())),
        hint: Some(hint.to_owned()),
        ..SvidConfig::default()
    })?;
    timeout(PATIENCE, manager.ready())
        .await
        .with_context(|| format!("no SVID for {hint}: {}", manager.state()))?;
    Ok(manager)
}

/// The broker, with an ACL that keeps robots to reports, presence and their commands.
async fn start_broker(dir: &Path) -> anyhow::Result<Broker> {
    let manager = identity(dir, hints::BROKER).await?;
    let peers = [hints::GATEWAY, hints::ROBOT].map(|hint| spiffe_id(hint).parse());
    let peers = peers
        .into_iter()
        .collect::<Result<Vec<SpiffeIdPattern>, _>>()?;
    let texts = |filters: &[&str]| filters.iter().map(|f| (*f).to_owned()).collect();
    let rules = vec![
        AclRule {
            who: spiffe_id(hints::GATEWAY).parse()?,
            publish: texts(&["portarium/#"]),
            subscribe: texts(&["portarium/#"]),
        },
        AclRule {
            who: spiffe_id(hints::ROBOT).parse()?,
            publish: texts(&[
                "portarium/+/missions/+/status",
                "portarium/+/robots/+/missions/+/status",
                "portarium/+/robots/+/presence",
            ]),
            subscribe: texts(&[
                "portarium/+/robots/+/commands/+",
                "portarium/+/missions/+/cancel",
            ]),
        },
    ];
    let tls = manager.server_tls(PeerPolicy::new(peers), &[]);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(Broker::start(
        listener,
        Access::Identities { tls, rules },
        broker::Limits::default(),
    )?)
}

/// The folder, made if it is not there, for its user alone.
fn absolute(dir: &Path) -> Result<PathBuf, StageError> {
    let failed = |source| StageError::Folder {
        dir: dir.to_path_buf(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    fs::canonicalize(dir).map_err(failed)
}
