//! Brokers and robots.

use super::{
    AdapterConfig, BrokerConfig, BrokerName, ConfigError, Development, Redelivery, RobotConfig,
    parse::{choice, duration},
    peers::{peer_policy, required},
    raw,
    source::Source,
};
use portarium_protocols::grpc::convert::MAX_NAME_BYTES;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    str::FromStr,
    time::Duration,
};

pub(super) fn brokers(
    source: &Source,
    raw: BTreeMap<String, raw::RawBroker>,
    development: Option<Development>,
) -> Result<BTreeMap<BrokerName, BrokerConfig>, ConfigError> {
    let broker = |(name, raw): (String, raw::RawBroker)| {
        let key = format!("mqtt.{name}");
        let name: BrokerName = name
            .parse()
            .map_err(|problem: String| source.error(&key, problem))?;
        let raw::Text(address) = required(source, &format!("{key}.address"), raw.address)?;
        let broker = BrokerConfig {
            address: parsed(source, &format!("{key}.address"), &address)?,
            peers: peer_policy(source, &format!("{key}.peers"), raw.peers, development)?,
            shared_status_topic: raw.shared_status_topic.is_none_or(|raw::Flag(flag)| flag),
        };
        Ok((name, broker))
    };
    raw.into_iter().map(broker).collect()
}

pub(super) fn robots(
    source: &Source,
    raw: Vec<raw::RawRobot>,
    brokers: &BTreeMap<BrokerName, BrokerConfig>,
    development: Option<Development>,
) -> Result<Vec<RobotConfig>, ConfigError> {
    let mut robots: Vec<RobotConfig> = Vec::with_capacity(raw.len());
    let mut seen = BTreeMap::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let place = RobotPlace { source, index: i };
        let robot = place.robot(raw, brokers, development)?;
        if let Some(first) = seen.insert(robot.id.clone(), i) {
            let problem = format!(
                "{:?} is robots[{first}] already; give each robot its own",
                robot.id.as_str()
            );
            return Err(place.error("id", problem));
        }
        robots.push(robot);
    }
    Ok(robots)
}

struct RobotPlace<'a> {
    source: &'a Source,
    index: usize,
}

impl RobotPlace<'_> {
    fn key(&self, key: &str) -> String {
        format!("robots[{}].{key}", self.index)
    }

    fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        self.source.error(&self.key(key), problem)
    }

    fn robot(
        &self,
        raw: raw::RawRobot,
        brokers: &BTreeMap<BrokerName, BrokerConfig>,
        development: Option<Development>,
    ) -> Result<RobotConfig, ConfigError> {
        let source = self.source;
        let raw::Text(id) = required(source, &self.key("id"), raw.id.clone())?;
        let redelivery = [
            ("never", Redelivery::Never),
            ("idempotent", Redelivery::Idempotent),
        ];
        let queue = raw.queue.map_or(16, |raw::Count(number)| number);
        Ok(RobotConfig {
            id: parsed(source, &self.key("id"), &id)?,
            fleet: match &raw.fleet {
                Some(raw::Text(fleet)) => Some(parsed(source, &self.key("fleet"), fleet)?),
                None => None,
            },
            actions: self.actions(raw.actions.clone())?,
            redelivery: match &raw.redelivery {
                Some(raw::Text(text)) => {
                    choice(source, &self.key("redelivery"), text, &redelivery)?
                }
                None => Redelivery::Never,
            },
            deliver_within: duration(
                source,
                &self.key("deliver_within"),
                raw.deliver_within.clone(),
                Duration::from_secs(60),
            )?,
            queue: usize::try_from(queue)
                .map_err(|_| self.error("queue", format!("{queue} is too large; write less")))?,
            adapter: self.adapter(raw, brokers, development)?,
        })
    }

    fn actions(&self, raw: Option<Vec<raw::Text>>) -> Result<BTreeSet<String>, ConfigError> {
        let actions = required(self.source, &self.key("actions"), raw)?;
        if actions.is_empty() {
            return Err(self.error("actions", "is empty; name what the robot can do"));
        }
        for (i, raw::Text(action)) in actions.iter().enumerate() {
            if let Err(problem) = action_name(action) {
                return Err(self.error(&format!("actions[{i}]"), problem));
            }
        }
        Ok(actions
            .into_iter()
            .map(|raw::Text(action)| action)
            .collect())
    }

    fn adapter(
        &self,
        raw: raw::RawRobot,
        brokers: &BTreeMap<BrokerName, BrokerConfig>,
        development: Option<Development>,
    ) -> Result<AdapterConfig, ConfigError> {
        #[derive(Clone, Copy)]
        enum Kind {
            Mqtt,
            Grpc,
        }
        let raw::Text(name) = required(self.source, &self.key("adapter"), raw.adapter)?;
        let kinds = [("mqtt", Kind::Mqtt), ("grpc", Kind::Grpc)];
        match choice(self.source, &self.key("adapter"), &name, &kinds)? {
            Kind::Mqtt => {
                let foreign = [
                    ("address", raw.address.is_some()),
                    ("peers", raw.peers.is_some()),
                ];
                let only_grpc = [("jwt_audience", raw.jwt_audience.is_some())];
                self.refuse_foreign(&only_grpc, "is for adapter grpc; remove it")?;
                self.refuse_foreign(
                    &foreign,
                    "stands in [mqtt.NAME], not at a robot of adapter mqtt; remove it",
                )?;
                self.mqtt(raw.broker, raw.tenant, brokers)
            }
            Kind::Grpc => {
                let foreign = [
                    ("broker", raw.broker.is_some()),
                    ("tenant", raw.tenant.is_some()),
                ];
                self.refuse_foreign(&foreign, "is for adapter mqtt; remove it")?;
                let raw::Text(address) = required(self.source, &self.key("address"), raw.address)?;
                Ok(AdapterConfig::Grpc {
                    address: parsed(self.source, &self.key("address"), &address)?,
                    peers: peer_policy(self.source, &self.key("peers"), raw.peers, development)?,
                    jwt_audience: self.jwt_audience(raw.jwt_audience)?,
                })
            }
        }
    }

    fn mqtt(
        &self,
        broker: Option<raw::Text>,
        tenant: Option<raw::Text>,
        brokers: &BTreeMap<BrokerName, BrokerConfig>,
    ) -> Result<AdapterConfig, ConfigError> {
        let raw::Text(broker) = required(self.source, &self.key("broker"), broker)?;
        let Some(broker) = brokers.keys().find(|name| name.as_str() == broker) else {
            let problem = if brokers.is_empty() {
                format!("there is no broker {broker:?}; add a section [mqtt.{broker}]")
            } else {
                let names: Vec<&str> = brokers.keys().map(BrokerName::as_str).collect();
                format!(
                    "there is no broker {broker:?}; known are {}",
                    names.join(", ")
                )
            };
            return Err(self.error("broker", super::error::one_line(&problem)));
        };
        let raw::Text(tenant) = required(self.source, &self.key("tenant"), tenant)?;
        Ok(AdapterConfig::Mqtt {
            broker: broker.clone(),
            tenant: parsed(self.source, &self.key("tenant"), &tenant)?,
        })
    }

    fn jwt_audience(&self, raw: Option<raw::Text>) -> Result<Option<String>, ConfigError> {
        match raw {
            Some(raw::Text(text)) if text.is_empty() => {
                Err(self.error("jwt_audience", "is empty; write what the robot is called"))
            }
            text => Ok(text.map(|raw::Text(text)| text)),
        }
    }

    fn refuse_foreign(&self, keys: &[(&str, bool)], problem: &str) -> Result<(), ConfigError> {
        match keys.iter().find(|(_, present)| *present) {
            Some((key, _)) => Err(self.error(key, problem)),
            None => Ok(()),
        }
    }
}

/// Whether a text can be the name of an action.
pub(super) fn action_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty; write the name of an action".to_owned());
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(format!(
            "is longer than {MAX_NAME_BYTES} bytes; write a shorter name"
        ));
    }
    if text.starts_with("robot:") || text == "*" {
        return Err(format!(
            "{text:?} is no name of an action; write one like \"navigate_to\""
        ));
    }
    match text.chars().find(|c| c.is_control() || c.is_whitespace()) {
        Some(c) => Err(format!(
            "{text:?} contains {c:?}; write a name of visible characters"
        )),
        None => Ok(()),
    }
}

/// A text that is parsed by its type, whose error says what is wrong.
pub(super) fn parsed<T>(source: &Source, key: &str, text: &str) -> Result<T, ConfigError>
where
    T: FromStr<Err: Display>,
{
    text.parse().map_err(|error| {
        let error = T::Err::to_string(&error);
        // Identifiers' errors go on after the text; all others quote it themselves.
        let problem = if error.starts_with("is ") || error.starts_with("contains ") {
            format!("{text:?} {error}; write another")
        } else {
            error
        };
        source.error(key, problem)
    })
}
