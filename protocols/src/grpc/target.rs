//! Where a gRPC server listens.

use super::error::GrpcError;
use hyper::http::uri::Authority;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// `host:port`, the host being a name, an IPv4 address or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    authority: Authority,
    port: u16,
    name: ServerName<'static>,
}

impl Target {
    /// Without brackets.
    pub fn host(&self) -> &str {
        let host = self.authority.host();
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(super) fn server_name(&self) -> &ServerName<'static> {
        &self.name
    }
}

impl FromStr for Target {
    type Err = GrpcError;

    fn from_str(text: &str) -> Result<Self, GrpcError> {
        let wrong = |reason| GrpcError::Target {
            text: text.to_owned(),
            reason,
        };
        if text.contains('@') {
            return Err(wrong("it has a user part"));
        }
        let authority: Authority = text.parse().map_err(|_| wrong("it is malformed"))?;
        let port = authority
            .port_u16()
            .filter(|port| *port != 0)
            .ok_or_else(|| wrong("it has no port"))?;
        let mut target = Self {
            authority,
            port,
            name: ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
        };
        target.name = ServerName::try_from(target.host().to_owned())
            .map_err(|_| wrong("its host is neither a name nor an address"))?;
        Ok(target)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.authority.as_str())
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port() {
        for (text, host) in [
            ("robot-7.local:50051", "robot-7.local"),
            ("10.0.0.7:1", "10.0.0.7"),
            ("[fd00::7]:50051", "fd00::7"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.host(), target.to_string().as_str()), (host, text));
        }
        for bad in [
            "",
            "robot",
            "robot:",
            "robot:0",
            "robot:70000",
            ":1",
            "a@b:1",
            "http://a:1",
            "a b:1",
            "fd00::7:1",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }
}
