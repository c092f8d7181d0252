//! The adapters that the configuration asks for, and the engine's view of its robots.

use crate::{
    config::{AdapterConfig, BrokerName, Config, Redelivery, RobotConfig},
    engine::RobotSpec,
    metrics::AdapterSample,
    peers::{Direction, Side},
};
use anyhow::Context as _;
use portarium_identity::{Snapshot, SvidManager};
use portarium_protocols::{
    adapter::{Adapter, UpdateSender},
    grpc::{GrpcAdapter, GrpcRobot, Target},
    mqtt::{Broker, MqttAdapter, MqttConfig, MqttRobot, client_id_base},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::timeout;

/// What a development gateway calls itself towards robots.
const DEVELOPMENT_ID: &str = "portarium-gateway-development";

/// The longest that adapters may take their leave.
const LEAVE: Duration = Duration::from_secs(3);

/// All adapters, one for each broker and one for all gRPC robots.
pub(super) struct Adapters {
    brokers: BTreeMap<BrokerName, Arc<MqttAdapter>>,
    grpc: Arc<GrpcAdapter>,
    gateway_id: String,
}

/// The robots by adapter.
pub(super) struct Shares {
    /// In the order of the brokers.
    mqtt: Vec<Vec<MqttRobot>>,
    grpc: Vec<GrpcRobot>,
}

impl Adapters {
    pub(super) fn start(
        config: &Config,
        identity: Option<(&SvidManager, &Snapshot)>,
        updates: &UpdateSender,
    ) -> anyhow::Result<Self> {
        let robots = &config.reloadable.robots;
        let gateway_id = match identity {
            Some((_, snapshot)) => snapshot.spiffe_id.to_string(),
            None => DEVELOPMENT_ID.to_owned(),
        };
        let mut brokers = BTreeMap::new();
        for (name, broker) in &config.brokers {
            let mqtt = MqttConfig {
                broker: Broker {
                    host: broker.address.host().to_owned(),
                    port: broker.address.port(),
                },
                tls: identity.map(|(manager, _)| manager.client_tls(broker.peers.clone(), &[])),
                plaintext_lease: None,
                client_id_base: match identity {
                    Some((_, snapshot)) => client_id_base(&snapshot.spiffe_id),
                    None => DEVELOPMENT_ID.to_owned(),
                },
                robots: mqtt_robots(robots, name, &gateway_id),
                shared_status_topic: broker.shared_status_topic,
            };
            let adapter = MqttAdapter::start(mqtt, updates.clone())
                .with_context(|| format!("broker {name} cannot be set up"))?;
            brokers.insert(name.clone(), adapter);
        }
        let manager = identity.map(|(manager, _)| manager.clone());
        let grpc = GrpcAdapter::start(grpc_robots(robots)?, manager, updates.clone())
            .context("gRPC robots cannot be set up")?;
        Ok(Self {
            brokers,
            grpc: Arc::new(grpc),
            gateway_id,
        })
    }

    /// The engine's view of these robots.
    pub(super) fn specs(&self, robots: &[RobotConfig]) -> Vec<RobotSpec> {
        robots.iter().map(|robot| self.spec(robot)).collect()
    }

    fn spec(&self, robot: &RobotConfig) -> RobotSpec {
        let (address, adapter): (_, Option<Arc<dyn Adapter>>) = match &robot.adapter {
            AdapterConfig::Mqtt { broker, tenant } => (
                format!("mqtt {broker} {tenant}"),
                self.brokers.get(broker).map(|adapter| adapter.clone() as _),
            ),
            AdapterConfig::Grpc { address, .. } => (
                format!("grpc {}:{}", address.host(), address.port()),
                Some(self.grpc.clone() as _),
            ),
        };
        RobotSpec {
            id: robot.id.clone(),
            fleet: robot.fleet.clone(),
            adapter_name: robot.adapter.name(),
            address,
            actions: robot.actions.clone(),
            idempotent: robot.redelivery == Redelivery::Idempotent,
            deliver_within: robot.deliver_within,
            queue: robot.queue,
            adapter,
        }
    }

    /// What each adapter gets of these robots.
    pub(super) fn shares(&self, robots: &[RobotConfig]) -> anyhow::Result<Shares> {
        let of_broker = |name: &BrokerName| mqtt_robots(robots, name, &self.gateway_id);
        Ok(Shares {
            mqtt: self.brokers.keys().map(of_broker).collect(),
            grpc: grpc_robots(robots)?,
        })
    }

    /// Gives each adapter its share. Fails only where two robots have one id.
    pub(super) fn replace(&self, shares: Shares) -> anyhow::Result<()> {
        for ((name, adapter), robots) in self.brokers.iter().zip(shares.mqtt) {
            adapter
                .replace_robots(robots)
                .with_context(|| format!("broker {name}"))?;
        }
        self.grpc.replace_robots(shares.grpc);
        Ok(())
    }

    /// Each broker that cannot be used now.
    pub(super) fn brokers(&self) -> impl Iterator<Item = (&BrokerName, bool)> {
        self.brokers.iter().map(|(name, adapter)| {
            let stats = adapter.stats();
            (name, stats.commands.connected && stats.stops.connected)
        })
    }

    /// Whom the gateway has connected to.
    pub(super) fn peers(&self) -> Vec<Side> {
        let side = |adapter, peers| Side {
            direction: Direction::South,
            adapter,
            peers,
        };
        let brokers = self.brokers.iter();
        let brokers = brokers.map(|(name, broker)| side(format!("mqtt.{name}"), broker.peers()));
        let grpc = side("grpc".to_owned(), self.grpc.peers());
        brokers.chain([grpc]).collect()
    }

    pub(super) fn samples(&self) -> Vec<AdapterSample> {
        let brokers = self.brokers.iter().map(|(name, adapter)| {
            let stats = adapter.stats();
            AdapterSample {
                adapter: format!("mqtt.{name}"),
                connected: stats.commands.connected && stats.stops.connected,
                svid_generation: stats.commands.generation.min(stats.stops.generation),
            }
        });
        let grpc = self.grpc.stats();
        let grpc = (grpc.robots > 0).then(|| AdapterSample {
            adapter: "grpc".to_owned(),
            connected: grpc.connected,
            svid_generation: grpc.generation,
        });
        brokers.chain(grpc).collect()
    }

    /// Waits until a task of an adapter ends by itself, and names it.
    pub(super) async fn ended(&self) -> String {
        let mut tasks: Vec<_> = self
            .brokers
            .iter()
            .map(|(name, adapter)| {
                Box::pin(async move { format!("{} of broker {name}", adapter.ended().await) })
            })
            .collect();
        if tasks.is_empty() {
            return std::future::pending().await;
        }
        let (first, ..) = futures::future::select_all(tasks.drain(..)).await;
        first
    }

    pub(super) async fn shutdown(&self) {
        self.grpc.shutdown();
        let leaving = self.brokers.values().map(|adapter| adapter.shutdown());
        if timeout(LEAVE, futures::future::join_all(leaving))
            .await
            .is_err()
        {
            tracing::warn!("a broker took too long to let go; its connection is dropped");
        }
    }
}

fn mqtt_robots(robots: &[RobotConfig], name: &BrokerName, gateway_id: &str) -> Vec<MqttRobot> {
    let of_broker = robots.iter().filter_map(|robot| match &robot.adapter {
        AdapterConfig::Mqtt { broker, tenant } if broker == name => Some(MqttRobot {
            robot_id: robot.id.clone(),
            tenant: tenant.clone(),
            fleet: robot.fleet.clone(),
            gateway_id: gateway_id.to_owned(),
        }),
        _ => None,
    });
    of_broker.collect()
}

fn grpc_robots(robots: &[RobotConfig]) -> anyhow::Result<Vec<GrpcRobot>> {
    let mut of_grpc = Vec::new();
    for robot in robots {
        if let AdapterConfig::Grpc {
            address,
            peers,
            jwt_audience,
        } = &robot.adapter
        {
            let target: Target = format_target(address.host(), address.port())
                .parse()
                .with_context(|| format!("robot {}: address", robot.id))?;
            of_grpc.push(GrpcRobot {
                robot_id: robot.id.clone(),
                target,
                peers: peers.clone(),
                jwt_audience: jwt_audience.clone(),
            });
        }
    }
    Ok(of_grpc)
}

fn format_target(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
