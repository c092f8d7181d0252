//! Small values of the configuration that exist only once they are right.

use std::{fmt, str::FromStr, sync::Arc};

/// The proof that the configuration says `development = true` and may: plaintext and callers
/// without identity exist only where one of these was handed in.
///
/// Nothing but the parser of the configuration makes one: out of the file, outside Kubernetes,
/// with all listeners on loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Development(());

impl Development {
    pub(super) fn proven() -> Self {
        Self(())
    }
}

/// The name that the configuration gives to an MQTT broker: 1 to 64 of `a-z`, `0-9`, `_`, `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BrokerName(Arc<str>);

impl BrokerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BrokerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for BrokerName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
        if (1..=64).contains(&text.len()) && text.chars().all(fits) {
            Ok(Self(Arc::from(text)))
        } else {
            Err("a broker's name consists of 1 to 64 of a-z, 0-9, _ and -; rename it".to_owned())
        }
    }
}

/// A host, by DNS name or IP address, and a port other than 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: Arc<str>,
    port: u16,
}

impl HostPort {
    /// The DNS name or the IP address (v6 without brackets).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let port = port.parse().ok().filter(|port| *port != 0)?;
            let host = match host.strip_prefix('[') {
                Some(v6) => v6.strip_suffix(']').filter(|v6| v6.contains(':'))?,
                None => Some(host).filter(|host| !host.contains(':'))?,
            };
            rustls::pki_types::ServerName::try_from(host).ok()?;
            Some(Self {
                host: Arc::from(host),
                port,
            })
        };
        parse()
            .ok_or_else(|| format!("{text:?} is no HOST:PORT; write it like \"robot-7.lan:50051\""))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_and_come_out_as_they_went_in() {
        for good in [
            "arm-1.cell-3:50051",
            "10.0.0.7:1",
            "[fe80::1]:8883",
            "localhost:65535",
        ] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        assert_eq!("[::1]:5".parse::<HostPort>().unwrap().host(), "::1");
        for bad in [
            "arm-1",
            "arm-1:0",
            ":1",
            "::1:5",
            "[arm]:5",
            "a b:5",
            "http://a:5",
            "a:65536",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }
}
