//! From the raw tree to types, section by section, with the checks across them.

use super::{
    AuditConfig, Config, ConfigError, Development, EngineConfig, JournalConfig, LogConfig,
    LogFormat, Reloadable,
    error::{Place, did_you_mean},
    peers, raw, robots,
    source::Source,
    tokens,
};
use crate::audit::Rotation;
use portarium_identity::SvidConfig;
use std::{
    ffi::{OsStr, OsString},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use tracing_subscriber::EnvFilter;

const STATE_FOLDER: &str = "/var/lib/portarium-gateway";
const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Lines are written together up to about this size; smaller files would hold one batch each.
const LEAST_ROTATION: usize = 64 * 1024;

/// Longer times are typing errors, and would overflow clocks.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

type Environment<'a> = &'a [(OsString, OsString)];

pub(super) fn config(
    source: &Source,
    mut raw: raw::Raw,
    environment: Environment<'_>,
) -> Result<Config, ConfigError> {
    let development = development(source, raw.development, environment)?;
    let reach = if development.is_some() {
        Ipv4Addr::LOCALHOST
    } else {
        Ipv4Addr::UNSPECIFIED
    };
    let listen = |key, raw: raw::RawListener, ip: Ipv4Addr, port| {
        listener(
            source,
            key,
            raw.listen,
            SocketAddr::new(IpAddr::V4(ip), port),
        )
    };
    let grpc_listen = listen("grpc.listen", raw.grpc, reach, 50051)?;
    let health_listen = listen("health.listen", raw.health, reach, 9090)?;
    let admin_listen = listen("admin.listen", raw.admin, Ipv4Addr::LOCALHOST, 9091)?;
    listeners(
        source,
        development,
        grpc_listen,
        health_listen,
        admin_listen,
    )?;

    let brokers = robots::brokers(source, raw.mqtt, development)?;
    let denied = peers::patterns(
        source,
        "identity.deny",
        raw.identity.deny.take().unwrap_or_default(),
    )?;
    let robots = robots::robots(source, raw.robots, &brokers, development)?;
    let identity = identity(source, raw.identity, development, environment)?;
    Ok(Config {
        development,
        tokens: tokens::tokens(source, raw.tokens, &identity, development)?,
        identity,
        grpc_listen,
        health_listen,
        admin_listen,
        journal: journal(source, raw.journal)?,
        audit: audit(source, raw.audit)?,
        engine: engine(source, raw.engine)?,
        log: log(source, raw.log)?,
        brokers,
        reloadable: Reloadable {
            robots,
            policy: peers::policy(source, raw.policy, development)?,
            denied,
        },
    })
}

fn variable<'a>(environment: Environment<'a>, name: &str) -> Option<&'a OsStr> {
    let found = environment
        .iter()
        .find(|(key, value)| key == name && !value.is_empty());
    found.map(|(_, value)| value.as_os_str())
}

fn development(
    source: &Source,
    flag: Option<raw::Flag>,
    environment: Environment<'_>,
) -> Result<Option<Development>, ConfigError> {
    match flag {
        Some(raw::Flag(true)) if variable(environment, "KUBERNETES_SERVICE_HOST").is_some() => {
            Err(source.error(
                "development",
                "is refused inside Kubernetes (KUBERNETES_SERVICE_HOST is set); remove it",
            ))
        }
        Some(raw::Flag(true)) => Ok(Some(Development::proven())),
        _ => Ok(None),
    }
}

fn listener(
    source: &Source,
    key: &str,
    text: Option<raw::Text>,
    default: SocketAddr,
) -> Result<SocketAddr, ConfigError> {
    let Some(raw::Text(text)) = text else {
        return Ok(default);
    };
    text.parse().map_err(|_| {
        source.error(
            key,
            format!("{text:?} is no IP:PORT; write it like \"{default}\""),
        )
    })
}

fn listeners(
    source: &Source,
    development: Option<Development>,
    grpc: SocketAddr,
    health: SocketAddr,
    admin: SocketAddr,
) -> Result<(), ConfigError> {
    let all = [
        ("grpc.listen", grpc),
        ("health.listen", health),
        ("admin.listen", admin),
    ];
    for (key, address) in all {
        let loopback = address.ip().is_loopback();
        if !loopback && key == "admin.listen" {
            let problem = format!(
                "{address} is not on loopback, where metrics in plain HTTP may be served; use 127.0.0.1"
            );
            return Err(source.error(key, problem));
        }
        if !loopback && development.is_some() {
            let problem = format!(
                "{address} is not on loopback, where development = true may listen; use 127.0.0.1"
            );
            return Err(source.error(key, problem));
        }
    }
    for (i, (key, address)) in all.iter().enumerate() {
        let same = |other: &&(&str, SocketAddr)| other.1 == *address && address.port() != 0;
        if let Some((other, _)) = all[..i].iter().find(same) {
            return Err(source.error(key, format!("{address} is {other} too; give each its own")));
        }
    }
    Ok(())
}

fn identity(
    source: &Source,
    raw: raw::RawIdentity,
    development: Option<Development>,
    environment: Environment<'_>,
) -> Result<SvidConfig, ConfigError> {
    let key = "identity.endpoint_socket";
    let endpoint_socket = raw.endpoint_socket.map(|raw::Text(text)| text);
    match &endpoint_socket {
        Some(socket) if !is_plain_socket(socket) => {
            let problem = format!(
                "{socket:?} is no socket, plainly written; write it like \"unix:///run/spire/sockets/agent.sock\""
            );
            return Err(source.error(key, problem));
        }
        None if development.is_none() => match variable(environment, SOCKET_VARIABLE) {
            None => {
                let problem =
                    "missing; write the Workload API's socket or set SPIFFE_ENDPOINT_SOCKET";
                return Err(source.error(key, problem));
            }
            // SPIFFE allows tcp:// too, over which the key would come in plaintext.
            Some(socket) if !socket.to_str().is_some_and(is_plain_socket) => {
                return Err(ConfigError::Key {
                    place: Place::Variable(SOCKET_VARIABLE.to_owned()),
                    problem: format!(
                        "{socket:?} is no Unix socket, plainly written; set it like \"unix:///run/spire/sockets/agent.sock\""
                    ),
                });
            }
            Some(_) => {}
        },
        Some(_) | None => {}
    }
    let hint = raw.hint.map(|raw::Text(text)| text);
    if hint.as_ref().is_some_and(String::is_empty) {
        return Err(source.error(
            "identity.hint",
            "is empty; write the hint or remove the key",
        ));
    }
    let usual = SvidConfig::default().renew_before;
    let renew_before = duration(source, "identity.renew_before", raw.renew_before, usual)?;
    Ok(SvidConfig {
        endpoint_socket,
        hint,
        renew_before,
    })
}

/// What the Workload API client takes: it would decode and normalise anything else in the path,
/// and look for another file than the one named.
fn is_plain_socket(socket: &str) -> bool {
    let Some(path) = socket.strip_prefix("unix:") else {
        return false;
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '%' | '?' | '#');
    let dots = |part: &str| part == "." || part == "..";
    path.starts_with('/') && path.chars().all(plain) && !path.split('/').any(dots)
}

fn journal(source: &Source, raw: raw::RawJournal) -> Result<JournalConfig, ConfigError> {
    let week = 7 * DAY;
    let (keep_for, keep_at_most) = ("journal.keep_finished_for", "journal.keep_finished_at_most");
    Ok(JournalConfig {
        path: state_file(source, "journal.path", raw.path, "journal.sqlite")?,
        keep_finished_for: duration(source, keep_for, raw.keep_finished_for, week)?,
        keep_finished_at_most: count(source, keep_at_most, raw.keep_finished_at_most, 1_000_000)?,
    })
}

fn audit(source: &Source, raw: raw::RawAudit) -> Result<AuditConfig, ConfigError> {
    let (bytes, keep) = ("audit.rotate_bytes", "audit.keep");
    let rotate_bytes = count(source, bytes, raw.rotate_bytes, 64 * 1024 * 1024)?;
    if rotate_bytes < LEAST_ROTATION {
        let problem = format!("is {rotate_bytes}; write {LEAST_ROTATION} or more");
        return Err(source.error(bytes, problem));
    }
    Ok(AuditConfig {
        path: state_file(source, "audit.path", raw.path, "audit.jsonl")?,
        rotation: Rotation {
            bytes: rotate_bytes as u64,
            keep: count(source, keep, raw.keep, 16)?,
        },
    })
}

fn engine(source: &Source, raw: raw::RawEngine) -> Result<EngineConfig, ConfigError> {
    let grace = Duration::from_secs(10);
    let (shutdown, open) = ("engine.shutdown_grace", "engine.open_missions_at_most");
    Ok(EngineConfig {
        shutdown_grace: duration(source, shutdown, raw.shutdown_grace, grace)?,
        open_missions_at_most: count(source, open, raw.open_missions_at_most, 10_000)?,
    })
}

fn log(source: &Source, raw: raw::RawLog) -> Result<LogConfig, ConfigError> {
    let choices = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = match raw.format {
        Some(raw::Text(text)) => choice(source, "log.format", &text, &choices)?,
        None => LogFormat::Text,
    };
    let filter = raw
        .filter
        .map_or_else(|| "info".to_owned(), |raw::Text(text)| text);
    if EnvFilter::try_new(&filter).is_err() {
        let problem = format!(
            "{filter:?} is no filter; write a level like \"info\" or pairs like \"portarium_gateway=debug\""
        );
        return Err(source.error("log.filter", problem));
    }
    Ok(LogConfig { format, filter })
}

/// The path of a file whose folder is there already: a typing error must not make a new state.
fn state_file(
    source: &Source,
    key: &str,
    path: Option<raw::Text>,
    name: &str,
) -> Result<PathBuf, ConfigError> {
    let path = path.map_or_else(
        || PathBuf::from(STATE_FOLDER).join(name),
        |raw::Text(path)| path.into(),
    );
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) => folder.to_owned(),
        None => return Err(source.error(key, format!("{path:?} names no file; write its path"))),
    };
    if path.is_dir() {
        return Err(source.error(
            key,
            format!("{path:?} is a folder; write the path of a file"),
        ));
    }
    if !folder.is_dir() {
        let problem =
            format!("the folder {folder:?} does not exist; make it or write another path");
        return Err(source.error(key, problem));
    }
    Ok(path)
}

pub(super) fn duration(
    source: &Source,
    key: &str,
    text: Option<raw::Text>,
    default: Duration,
) -> Result<Duration, ConfigError> {
    let Some(raw::Text(text)) = text else {
        return Ok(default);
    };
    match humantime::parse_duration(&text) {
        Ok(duration) if duration.is_zero() => {
            Err(source.error(key, "is 0; write a time of more than 0"))
        }
        Ok(duration) if duration > LONGEST => {
            Err(source.error(key, format!("{text:?} is more than ten years; write less")))
        }
        Ok(duration) => Ok(duration),
        Err(_) => Err(source.error(
            key,
            format!("{text:?} is no time span; write it like \"500ms\", \"10s\" or \"7d\""),
        )),
    }
}

fn count(
    source: &Source,
    key: &str,
    number: Option<raw::Count>,
    default: usize,
) -> Result<usize, ConfigError> {
    match number {
        None => Ok(default),
        Some(raw::Count(0)) => Err(source.error(key, "is 0; write 1 or more")),
        Some(raw::Count(number)) => usize::try_from(number)
            .map_err(|_| source.error(key, format!("{number} is too large; write less"))),
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    source: &Source,
    key: &str,
    text: &str,
    choices: &[(&'static str, T)],
) -> Result<T, ConfigError> {
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let hint = match did_you_mean(text, words.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("write one of {}", words.join(", ")),
    };
    Err(source.error(key, format!("{text:?} is unknown here; {hint}")))
}
