//! The text of a gateway's configuration.

use crate::{Identities, free_port, hints, spiffe_id};
use std::{fmt::Write as _, path::Path};

/// Where the gateway listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The mission service.
    pub grpc: u16,
    /// `/livez`, `/readyz`.
    pub health: u16,
    /// `/metrics`.
    pub admin: u16,
}

impl Ports {
    /// Three that nobody uses now.
    pub fn free() -> Self {
        Self {
            grpc: free_port(),
            health: free_port(),
            admin: free_port(),
        }
    }
}

/// A configuration in the making. What has no method here is written with [`Config::text`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the gateway will listen.
    pub ports: Ports,
    head: String,
    body: String,
}

/// What the operator may do, and the control plane may not.
const OPERATORS: &str =
    r#""ConfirmMission", "ResolveMission", "HoldRobot", "ReleaseRobot", "ListPeers", "#;

impl Config {
    /// Listeners on free ports; identity, journal and audit in this folder; the control plane may
    /// send and follow missions, the operator everything.
    pub fn new(dir: &Path, identities: &Identities) -> Self {
        let config = Self::allowing_nobody(dir, identities);
        config
            .policy(&spiffe_id(hints::CONTROL_PLANE), "")
            .policy(&spiffe_id(hints::OPERATOR), OPERATORS)
    }

    fn allowing_nobody(dir: &Path, identities: &Identities) -> Self {
        let identity = format!(
            "[identity]\nendpoint_socket = \"{}\"\nhint = \"{}\"\n",
            identities.endpoint(),
            hints::GATEWAY
        );
        Self::beginning(&identity, dir)
    }

    /// As [`Self::new`] in `development`: plaintext, and whoever is on this machine may call.
    pub fn development(dir: &Path) -> Self {
        Self::beginning("development = true\n", dir)
    }

    fn beginning(identity: &str, dir: &Path) -> Self {
        let ports = Ports::free();
        let Ports {
            grpc,
            health,
            admin,
        } = ports;
        let dir = dir.display();
        let head = format!(
            r#"
{identity}
[grpc]
listen = "127.0.0.1:{grpc}"
[health]
listen = "127.0.0.1:{health}"
[admin]
listen = "127.0.0.1:{admin}"
[journal]
path = "{dir}/journal.sqlite"
[audit]
path = "{dir}/audit.jsonl"
[log]
filter = "info"
"#
        );
        Self {
            ports,
            head,
            body: String::new(),
        }
    }

    fn policy(self, peer: &str, more_methods: &str) -> Self {
        self.text(&format!(
            r#"
[[policy]]
peers = ["{peer}"]
methods = [{more_methods}"DispatchMission", "CancelMission", "GetMissionStatus", "WatchMissions", "ListRobots", "GetRobot"]
robots = ["*"]
fleets = ["*"]
actions = ["*"]
"#
        ))
    }

    /// A broker of this name on a port of this machine, with the broker's identity of
    /// [`Identities`].
    pub fn broker(self, name: &str, port: u16) -> Self {
        self.broker_at(name, "localhost", port)
    }

    /// As [`Self::broker`], somewhere else.
    pub fn broker_at(self, name: &str, host: &str, port: u16) -> Self {
        self.text(&format!(
            r#"
[mqtt.{name}]
address = "{host}:{port}"
peers = ["{}"]
"#,
            spiffe_id(hints::BROKER)
        ))
    }

    /// A robot of the tenant `acme` behind the broker `main`; `more` are further lines of it.
    pub fn mqtt_robot(self, id: &str, more: &str) -> Self {
        self.robot(
            id,
            "adapter = \"mqtt\"\nbroker = \"main\"\ntenant = \"acme\"",
            more,
        )
    }

    /// A robot that serves gRPC on a port of this machine, with its own identity.
    pub fn grpc_robot(self, id: &str, port: u16, more: &str) -> Self {
        self.grpc_robot_at(id, "localhost", port, more)
    }

    /// As [`Self::grpc_robot`], somewhere else.
    pub fn grpc_robot_at(self, id: &str, host: &str, port: u16, more: &str) -> Self {
        self.grpc_robot_of(id, id, host, port, more)
    }

    /// As [`Self::grpc_robot_at`], with the identity of this hint.
    pub fn grpc_robot_of(self, hint: &str, id: &str, host: &str, port: u16, more: &str) -> Self {
        let peer = spiffe_id(hint);
        self.robot(
            id,
            &format!("adapter = \"grpc\"\naddress = \"{host}:{port}\"\npeers = [\"{peer}\"]"),
            more,
        )
    }

    fn robot(self, id: &str, place: &str, more: &str) -> Self {
        self.text(&format!(
            "\n[[robots]]\nid = \"{id}\"\nfleet = \"test\"\n{place}\nactions = [\"navigate_to\", \"dock\"]\n{more}\n"
        ))
    }

    /// Further lines, in TOML.
    pub fn text(mut self, text: &str) -> Self {
        let _ = writeln!(self.body, "{text}");
        self
    }

    /// The whole file.
    pub fn render(&self) -> String {
        format!("{}{}", self.head, self.body)
    }
}
