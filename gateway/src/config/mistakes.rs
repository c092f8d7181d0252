//! Each mistake, and the one line that it is refused with.
#![allow(clippy::unwrap_used)]
use super::{
    Config,
    tests::{ROBOT, SMALL, refused, with},
};
use std::{ffi::OsString, path::Path};

/// A section that lacks nothing but where keys come from.
fn tokens(keys: &str) -> String {
    format!("[tokens]\nissuer = \"i\"\naudience = \"a\"\nmethods = [\"GetRobot\"]\n{keys}\n[audit]")
}

#[test]
fn each_mistake_in_the_file_is_one_line_that_says_where_and_what_to_do() {
    let robot = "[[robots]]";
    for (text, line) in [
        (
            with("address =", "adress ="),
            r#"robots[0].adress: unknown key; did you mean "address"?"#,
        ),
        (
            with("[audit]", "[speed]\n[audit]"),
            "speed: unknown key; known here: development, identity, grpc, health, admin, journal, audit, engine, log, tokens, policy, mqtt, robots",
        ),
        (
            with("[audit]", "[grpc]\nlisten = 5\n[audit]"),
            "grpc.listen: is integer `5`; write a text in quotes",
        ),
        (
            with("[audit]", "[grpc]\nlisten = \"localhost:1\"\n[audit]"),
            r#"grpc.listen: "localhost:1" is no IP:PORT; write it like "0.0.0.0:50051""#,
        ),
        (
            with("[audit]", "[admin]\nlisten = \"0.0.0.0:9091\"\n[audit]"),
            "admin.listen: 0.0.0.0:9091 is not on loopback, where metrics in plain HTTP may be served; use 127.0.0.1",
        ),
        (
            with("[audit]", "[health]\nlisten = \"0.0.0.0:50051\"\n[audit]"),
            "health.listen: 0.0.0.0:50051 is grpc.listen too; give each its own",
        ),
        (
            with("unix:///run/agent.sock", "/run/agent.sock"),
            r#"identity.endpoint_socket: "/run/agent.sock" is no socket, plainly written; write it like "unix:///run/spire/sockets/agent.sock""#,
        ),
        (
            with("/run/agent.sock", "/run/../a%20b.sock"),
            r#"identity.endpoint_socket: "unix:///run/../a%20b.sock" is no socket, plainly written; write it like "unix:///run/spire/sockets/agent.sock""#,
        ),
        (
            with("endpoint_socket = \"unix:///run/agent.sock\"", ""),
            "identity.endpoint_socket: missing; write the Workload API's socket or set SPIFFE_ENDPOINT_SOCKET",
        ),
        (
            with("[journal]", "hint = \"\"\n[journal]"),
            "identity.hint: is empty; write the hint or remove the key",
        ),
        (
            with(
                "[audit]",
                "[tokens]\nissuer = \"i\"\naudience = \"a\"\nmethods = [\"DispatchMision\"]\n[audit]",
            ),
            r#"tokens.methods[0]: "DispatchMision" is unknown here; did you mean "DispatchMission"?"#,
        ),
        (
            with("[audit]", &tokens("")),
            "tokens.keys_file: missing; add it, or keys_url, or keys_trust_domain",
        ),
        (
            with(
                "[audit]",
                &tokens("keys_file = \"k\"\nkeys_trust_domain = \"a.b\""),
            ),
            "tokens.keys_file: keys come from one place; keep one of keys_file, keys_url and keys_trust_domain",
        ),
        (
            with(
                "[audit]",
                &tokens("keys_file = \"k\"\nkeys_ca_file = \"c\""),
            ),
            "tokens.keys_ca_file: is for tokens.keys_url, which is not there; remove it",
        ),
        (
            with(
                "[audit]",
                &tokens("keys_file = \"k\"\nkeys_refresh = \"13h\""),
            ),
            "tokens.keys_refresh: is more than 12 h, and keys are used for a day at most; write less",
        ),
        (
            with(
                "[audit]",
                &tokens("keys_file = \"k\"").replace("issuer = \"i\"", ""),
            ),
            "tokens.issuer: missing; add it",
        ),
        (
            with("journal.sqlite", "/no/such/folder/j"),
            r#"journal.path: the folder "/no/such/folder" does not exist; make it or write another path"#,
        ),
        (
            with("audit.jsonl", "/"),
            r#"audit.path: "/" names no file; write its path"#,
        ),
        (
            with("audit.jsonl", "/tmp"),
            r#"audit.path: "/tmp" is a folder; write the path of a file"#,
        ),
        (
            with("[audit]", "[audit]\nrotate_bytes = 5"),
            "audit.rotate_bytes: is 5; write 65536 or more",
        ),
        (
            with("[audit]", "[audit]\nkeep = 0"),
            "audit.keep: is 0; write 1 or more",
        ),
        (
            with("[audit]", "keep_finished_for = \"a week\"\n[audit]"),
            r#"journal.keep_finished_for: "a week" is no time span; write it like "500ms", "10s" or "7d""#,
        ),
        (
            with("[audit]", "keep_finished_for = \"100years\"\n[audit]"),
            r#"journal.keep_finished_for: "100years" is more than ten years; write less"#,
        ),
        (
            with("[audit]", "keep_finished_at_most = 0\n[audit]"),
            "journal.keep_finished_at_most: is 0; write 1 or more",
        ),
        (
            with("[audit]", "keep_finished_at_most = 1.5\n[audit]"),
            "journal.keep_finished_at_most: is floating point `1.5`; write a whole number, 0 or more",
        ),
        (
            with("[audit]", "[engine]\nopen_missions_at_most = -1\n[audit]"),
            "engine.open_missions_at_most: is integer `-1`; write a whole number, 0 or more",
        ),
        (
            with("[audit]", "[log]\nformat = \"jsn\"\n[audit]"),
            r#"log.format: "jsn" is unknown here; did you mean "json"?"#,
        ),
        (
            with("[audit]", "[log]\nfilter = \"a=b=c\"\n[audit]"),
            r#"log.filter: "a=b=c" is no filter; write a level like "info" or pairs like "portarium_gateway=debug""#,
        ),
        (
            with("[audit]", "audit = 5\n[audit]"),
            "journal.audit: unknown key; known here: path, keep_finished_for, keep_finished_at_most",
        ),
        (
            with(SMALL, "grpc = 5"),
            "grpc: is a section of keys, not a value; write it as a table",
        ),
        (with("id = \"arm-1\"", ""), "robots[0].id: missing; add it"),
        (
            with("id = \"arm-1\"", "id = \"a/b\""),
            r#"robots[0].id: "a/b" contains '/'; letters, digits and other visible characters except / + # are allowed; write another"#,
        ),
        (
            with("id = \"arm-1\"", "id = \"a b\\n\""),
            r#"robots[0].id: "a b\n" contains ' '; letters, digits and other visible characters except / + # are allowed; write another"#,
        ),
        (
            with("id = \"arm-1\"", "id = \"a\"\nfleet = \"\""),
            r#"robots[0].fleet: "" is empty; write another"#,
        ),
        (
            format!("{SMALL}{ROBOT}{ROBOT}"),
            r#"robots[1].id: "arm-1" is robots[0] already; give each robot its own"#,
        ),
        (
            with("[\"pick\"]", "[]"),
            "robots[0].actions: is empty; name what the robot can do",
        ),
        (
            with("[\"pick\"]", "\"pick\""),
            r#"robots[0].actions: is string "pick"; write a list, ["…"]"#,
        ),
        (
            with("[\"pick\"]", "[\"robot:stop\"]"),
            r#"robots[0].actions[0]: "robot:stop" is no name of an action; write one like "navigate_to""#,
        ),
        (
            with("actions = [\"pick\"]", ""),
            "robots[0].actions: missing; add it",
        ),
        (
            with(
                "actions = [\"pick\"]",
                "actions = [\"pick\"]\ndeliver_within = \"0s\"",
            ),
            "robots[0].deliver_within: is 0; write a time of more than 0",
        ),
        (
            with(
                "actions = [\"pick\"]",
                "actions = [\"pick\"]\nredelivery = \"always\"",
            ),
            r#"robots[0].redelivery: "always" is unknown here; write one of never, idempotent"#,
        ),
        (
            with(
                "actions = [\"pick\"]",
                "actions = [\"pick\"]\nqueue = \"x\"",
            ),
            r#"robots[0].queue: is string "x"; write a whole number, 0 or more"#,
        ),
        (
            with("adapter = \"grpc\"", ""),
            "robots[0].adapter: missing; add it",
        ),
        (
            with("adapter = \"grpc\"", "adapter = \"gprc\""),
            r#"robots[0].adapter: "gprc" is unknown here; write one of mqtt, grpc"#,
        ),
        (
            with("adapter = \"grpc\"", "adapter = \"grpc\"\ntenant = \"t\""),
            "robots[0].tenant: is for adapter mqtt; remove it",
        ),
        (
            with("adapter = \"grpc\"", "adapter = \"mqtt\""),
            "robots[0].address: stands in [mqtt.NAME], not at a robot of adapter mqtt; remove it",
        ),
        (
            with("arm-1:50051", "arm-1"),
            r#"robots[0].address: "arm-1" is no gRPC target: it has no port; write host:port, for example robot-7.local:50051 or [fd00::7]:50051"#,
        ),
        (
            with("address = \"arm-1:50051\"", ""),
            "robots[0].address: missing; add it",
        ),
        (
            with("peers = [\"spiffe://a.b/arm-1\"]", ""),
            "robots[0].peers: missing; add it",
        ),
        (
            with("[\"spiffe://a.b/arm-1\"]", "[]"),
            "robots[0].peers: is empty; write at least one entry",
        ),
        (
            with("\"spiffe://a.b/arm-1\"", "\"spiffe://a.b/arm-1\", \"arm\""),
            r#"robots[0].peers[1]: "arm" is no SPIFFE ID pattern: it must begin with spiffe://, in lower case"#,
        ),
        (
            with(robot, "[mqtt.Main]\n[[robots]]"),
            "mqtt.Main: a broker's name consists of 1 to 64 of a-z, 0-9, _ and -; rename it",
        ),
        (
            with(robot, "[mqtt.main]\n[[robots]]"),
            "mqtt.main.address: missing; add it",
        ),
        (
            with(robot, "[mqtt.main]\naddress = \"m\"\n[[robots]]"),
            r#"mqtt.main.address: "m" is no HOST:PORT; write it like "robot-7.lan:50051""#,
        ),
        (
            with(robot, "[mqtt.main]\naddress = \"m:1\"\n[[robots]]"),
            "mqtt.main.peers: missing; add it",
        ),
        (
            with(
                robot,
                "[mqtt.main]\nshared_status_topic = \"yes\"\n[[robots]]",
            ),
            r#"mqtt.main.shared_status_topic: is string "yes"; write true or false"#,
        ),
        (
            SMALL.split("[[policy]]").next().unwrap().to_owned(),
            "policy: missing; add a section [[policy]], since nobody may call without a rule",
        ),
        (
            with("\"DispatchMission\"", "\"DispatchMision\""),
            r#"policy[0].methods[0]: "DispatchMision" is unknown here; did you mean "DispatchMission"?"#,
        ),
        (
            with("methods = [\"DispatchMission\"]", "methods = []"),
            "policy[0].methods: is empty; write at least one entry",
        ),
        (
            with("robots = [\"*\"]", ""),
            r#"policy[0].robots: missing; add it, ["*"] for all"#,
        ),
        (
            with("fleets = [\"*\"]", "fleets = []"),
            r#"policy[0].fleets: is empty; write ["*"] for all"#,
        ),
        (
            with("actions = [\"*\"]", ""),
            "policy[0].actions: missing; add it",
        ),
        (
            with("actions = [\"*\"]", "actions = [\"robot:stopp\"]"),
            r#"policy[0].actions[0]: "robot:stopp" is unknown here; did you mean "robot:stop"?"#,
        ),
        (
            with("spiffe://a.b/x", "spiffe://*/x"),
            r#"policy[0].peers[0]: "spiffe://*/x" is no SPIFFE ID pattern: the trust domain must be written out, without *"#,
        ),
    ] {
        assert_eq!(
            refused(&text, &[]),
            format!("gateway.toml: {line}"),
            "{text}"
        );
    }
}

#[test]
fn a_robot_of_an_unknown_broker_is_told_which_ones_there_are() {
    let mqtt = "[[robots]]\nid = \"r\"\nadapter = \"mqtt\"\nbroker = \"mian\"\nactions = [\"a\"]\n";
    let broker = "[mqtt.main]\naddress = \"m:1\"\npeers = [\"spiffe://a.b/m\"]\n";
    assert_eq!(
        refused(&format!("{SMALL}{mqtt}"), &[]),
        "gateway.toml: robots[0].broker: there is no broker \"mian\"; add a section [mqtt.mian]"
    );
    assert_eq!(
        refused(&format!("{SMALL}{broker}{mqtt}"), &[]),
        "gateway.toml: robots[0].broker: there is no broker \"mian\"; known are main"
    );
    assert_eq!(
        refused(
            &format!("{SMALL}{broker}{}", mqtt.replace("mian", "main")),
            &[]
        ),
        "gateway.toml: robots[0].tenant: missing; add it"
    );
}

#[test]
fn each_mistake_in_the_environment_names_the_variable() {
    for (name, value, line) in [
        (
            "PORTARIUM__GRPC__LISTN",
            "127.0.0.1:1",
            r#"unknown key; did you mean "listen"?"#,
        ),
        (
            "PORTARIUM__GRPC",
            "x",
            "is a section of keys, not a value; write it as a table",
        ),
        (
            "PORTARIUM__GRPC__LISTEN",
            "x",
            r#""x" is no IP:PORT; write it like "0.0.0.0:50051""#,
        ),
        (
            "PORTARIUM__GRPC__LISTEN__",
            "x",
            "names no key; write PORTARIUM__SECTION__KEY or remove it",
        ),
        (
            "PORTARIUM__",
            "x",
            "names no key; write PORTARIUM__SECTION__KEY or remove it",
        ),
        (
            "PORTARIUM__grpc__LISTEN",
            "x",
            "is not all upper case; write it so or remove it",
        ),
        (
            "PORTARIUM__ROBOTS__0__ID",
            "x",
            "lists stand in the file only; write it there and remove the variable",
        ),
        (
            "PORTARIUM__MQTT__MAIN__PEERS",
            "x",
            "lists stand in the file only; write it there and remove the variable",
        ),
        (
            "PORTARIUM__DEVELOPMENT",
            "true",
            "development mode cannot be switched on in the environment; write development = true in the file, or remove the variable",
        ),
        (
            "PORTARIUM__DEVELOPMENT",
            "false",
            "development mode cannot be switched on in the environment; write development = true in the file, or remove the variable",
        ),
        (
            "PORTARIUM__ENGINE__OPEN_MISSIONS_AT_MOST",
            "many",
            r#"is string "many"; write a whole number, 0 or more"#,
        ),
    ] {
        assert_eq!(
            refused(SMALL, &[(name, value)]),
            format!("environment variable {name}: {line}")
        );
    }
    let both = [
        ("PORTARIUM__GRPC", "x"),
        ("PORTARIUM__GRPC__LISTEN", "127.0.0.1:1"),
    ];
    assert_eq!(
        refused(SMALL, &both),
        "environment variable PORTARIUM__GRPC: names a section, not a key; remove it"
    );
}

#[test]
fn a_variable_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let odd = (
        OsString::from("PORTARIUM__GRPC__LISTEN"),
        OsString::from_vec(vec![0xff]),
    );
    let error = Config::from_text(Path::new("g"), SMALL, &[odd]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment variable PORTARIUM__GRPC__LISTEN: is no UTF-8; write it as such or remove it"
    );
}

#[test]
fn what_is_no_toml_is_refused_with_line_and_column() {
    let line = refused("[grpc]\nlisten = \n", &[]);
    assert_eq!(
        line,
        "gateway.toml: line 2, column 10: string values must be quoted, expected literal string"
    );
    let line = refused("[grpc]\n[grpc]\n", &[]);
    assert_eq!(line, "gateway.toml: line 2, column 2: duplicate key");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let line = Config::load(Path::new("/no/such.toml"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        line,
        "/no/such.toml: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn the_key_does_not_come_over_tcp_because_the_environment_says_so() {
    let text = with("endpoint_socket = \"unix:///run/agent.sock\"", "");
    for socket in ["tcp://10.0.0.1:8081", "/run/agent.sock", "unix:agent.sock"] {
        let line = refused(&text, &[("SPIFFE_ENDPOINT_SOCKET", socket)]);
        assert_eq!(
            line,
            format!(
                "environment variable SPIFFE_ENDPOINT_SOCKET: {socket:?} is no Unix socket, plainly written; set it like \"unix:///run/spire/sockets/agent.sock\""
            )
        );
    }
}
