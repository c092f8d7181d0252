#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;

/// The smallest configuration that is accepted, with the state in the current folder.
pub(super) const SMALL: &str = r#"
[identity]
endpoint_socket = "unix:///run/agent.sock"
[journal]
path = "journal.sqlite"
[audit]
path = "audit.jsonl"
[[policy]]
peers = ["spiffe://a.b/x"]
methods = ["DispatchMission"]
robots = ["*"]
fleets = ["*"]
actions = ["*"]
"#;

pub(super) const ROBOT: &str = r#"
[[robots]]
id = "arm-1"
adapter = "grpc"
address = "arm-1:50051"
peers = ["spiffe://a.b/arm-1"]
actions = ["pick"]
"#;

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment: Vec<(OsString, OsString)> = environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    Config::from_text(Path::new("gateway.toml"), text, &environment)
}

/// The line that a configuration is refused with.
pub(super) fn refused(text: &str, environment: &[(&str, &str)]) -> String {
    let line = load(text, environment).unwrap_err().to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

/// The small configuration with a robot, and in it one text replaced.
pub(super) fn with(from: &str, to: &str) -> String {
    let text = format!("{SMALL}{ROBOT}");
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn the_sample_is_accepted_and_shows_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let state = |name| folder.path().join(name).to_string_lossy().into_owned();
    let (journal, audit) = (state("j"), state("a"));
    let state = [
        ("PORTARIUM__JOURNAL__PATH", &*journal),
        ("PORTARIUM__AUDIT__PATH", &*audit),
    ];
    let config = load(SAMPLE, &state).unwrap();
    assert_eq!(config.reloadable.robots.len(), 2);

    // Every key that stands in a comment is its default: with all of them in force but
    // `development`, and the paths from the environment, the configuration is the same.
    let shown: String = SAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key)
                if key
                    .split_once(" = ")
                    .is_some_and(|(key, _)| !key.contains(' ')) =>
            {
                key
            }
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_ne!(shown, SAMPLE);
    let shown = load(&shown, &state).unwrap();
    assert_eq!(shown.keys_that_differ(&config), Vec::<String>::new());
    assert_eq!(shown.reloadable.robots, config.reloadable.robots);
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let config = load(&format!("{SMALL}{ROBOT}"), &[]).unwrap();
    assert_eq!(config.grpc_listen.to_string(), "0.0.0.0:50051");
    assert_eq!(config.health_listen.to_string(), "0.0.0.0:9090");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9091");
    assert_eq!(
        config.journal.keep_finished_for,
        Duration::from_secs(7 * 86_400)
    );
    assert_eq!(config.journal.keep_finished_at_most, 1_000_000);
    assert_eq!(config.audit.rotation.bytes, 64 * 1024 * 1024);
    assert_eq!(config.audit.rotation.keep, 16);
    assert_eq!(config.engine.shutdown_grace, Duration::from_secs(10));
    assert_eq!(config.engine.open_missions_at_most, 10_000);
    assert_eq!(
        config.log,
        LogConfig {
            format: LogFormat::Text,
            filter: "info".into()
        }
    );
    let [robot] = config.reloadable.robots.as_slice() else {
        panic!()
    };
    assert_eq!(robot.redelivery, Redelivery::Never);
    assert_eq!(robot.deliver_within, Duration::from_secs(60));
    assert_eq!(robot.queue, 16);
    assert_eq!(robot.fleet, None);
    assert_eq!(robot.adapter.name(), "grpc");
}

#[test]
fn the_environment_stands_before_the_file() {
    let environment = [
        ("PORTARIUM__GRPC__LISTEN", "127.0.0.1:1"),
        ("PORTARIUM__ENGINE__OPEN_MISSIONS_AT_MOST", "7"),
        ("PORTARIUM__MQTT__MAIN__ADDRESS", "other:8883"),
        ("PORTARIUM__MQTT__MAIN__SHARED_STATUS_TOPIC", "false"),
        ("PORTARIUM_SERVER", "is nobody's business here"),
    ];
    let broker = "[mqtt.main]\naddress = \"main:8883\"\npeers = [\"spiffe://a.b/broker\"]\n";
    let config = load(&format!("{SMALL}{broker}"), &environment).unwrap();
    assert_eq!(config.grpc_listen.to_string(), "127.0.0.1:1");
    assert_eq!(config.engine.open_missions_at_most, 7);
    let broker = config.brokers.values().next().unwrap();
    assert_eq!(broker.address.to_string(), "other:8883");
    assert!(!broker.shared_status_topic);
}

#[test]
fn development_needs_no_identity_and_listens_on_loopback_only() {
    let development = "development = true\n[journal]\npath = \"j\"\n[audit]\npath = \"a\"\n[mqtt.m]\naddress = \"m:1\"\n";
    let config = load(development, &[]).unwrap();
    assert!(config.development.is_some());
    for address in [
        config.grpc_listen,
        config.health_listen,
        config.admin_listen,
    ] {
        assert!(address.ip().is_loopback());
    }
    let open = [("PORTARIUM__HEALTH__LISTEN", "0.0.0.0:9090")];
    assert_eq!(
        refused(development, &open),
        "environment variable PORTARIUM__HEALTH__LISTEN: 0.0.0.0:9090 is not on loopback, where development = true may listen; use 127.0.0.1"
    );
    assert!(load(&development.replace("true", "false"), &[]).is_err());
}

#[test]
fn development_is_refused_inside_kubernetes() {
    let text = format!("development = true\n{SMALL}");
    assert!(load(&text, &[]).unwrap().development.is_some());
    assert_eq!(
        refused(&text, &[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]),
        "gateway.toml: development: is refused inside Kubernetes (KUBERNETES_SERVICE_HOST is set); remove it"
    );
}

#[test]
fn a_reload_takes_robots_and_policy() {
    let current = load(SMALL, &[]).unwrap();
    let changed = load(&format!("{SMALL}{ROBOT}"), &[]).unwrap();
    let reloaded = changed
        .reload_over(Path::new("gateway.toml"), &current)
        .unwrap();
    assert_eq!(reloaded.robots.len(), 1);
}

#[test]
fn a_reload_that_needs_a_restart_is_refused_whole_and_names_every_key() {
    let current = load(SMALL, &[]).unwrap();
    let broker =
        "[mqtt.main]\naddress = \"m:1\"\npeers = [\"spiffe://a.b/m\"]\n[log]\nfilter = \"debug\"\n";
    let text = format!("development = true\n{SMALL}{ROBOT}{broker}");
    let error = load(&text, &[])
        .unwrap()
        .reload_over(Path::new("gateway.toml"), &current);
    assert_eq!(
        error.unwrap_err().to_string(),
        "gateway.toml: nothing was reloaded: only robots and policy can change while the gateway runs; restart it for: development, grpc.listen, health.listen, log.filter, mqtt.main"
    );
}
