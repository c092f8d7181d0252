//! Bad configuration: one clear line that names the key, and exit code 78, before anything is
//! served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{assert_contains, process, world::free_port};
use std::{fs, net::TcpListener, path::Path};
use tempfile::TempDir;

/// A configuration that is accepted but for its socket, which nobody serves.
fn good(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"
[identity]
endpoint_socket = "unix://{dir}/agent.sock"
hint = "robotics-gateway"

[grpc]
listen = "127.0.0.1:{}"

[health]
listen = "127.0.0.1:{}"

[admin]
listen = "127.0.0.1:{}"

[journal]
path = "{dir}/journal.sqlite"

[audit]
path = "{dir}/audit.jsonl"

[[policy]]
peers = ["spiffe://portarium.robotics/ns/*/sa/control-plane/*"]
methods = ["DispatchMission"]
robots = ["*"]
fleets = ["*"]
actions = ["*"]

[mqtt.main]
address = "localhost:8883"
peers = ["spiffe://portarium.robotics/ns/*/sa/mqtt-broker/*"]

[[robots]]
id = "amr-7"
adapter = "mqtt"
broker = "main"
tenant = "acme"
actions = ["navigate_to"]
"#,
        free_port(),
        free_port(),
        free_port()
    )
}

/// One way to be wrong: what is replaced by what, further environment, and what the line says.
struct Wrong {
    what: &'static str,
    from: &'static str,
    to: &'static str,
    env: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
}

const WRONG: &[Wrong] = &[
    Wrong {
        what: "an unknown key",
        from: "actions = [\"navigate_to\"]",
        to: "actions = [\"navigate_to\"]\nadress = \"x\"",
        env: &[],
        says: &["robots[0].adress", "unknown key; did you mean \"address\"?"],
    },
    Wrong {
        what: "an unknown section",
        from: "[identity]",
        to: "[opcua]\nport = 4840\n\n[identity]",
        env: &[],
        says: &["opcua", "unknown key"],
    },
    Wrong {
        what: "a bad SPIFFE ID",
        from: "spiffe://portarium.robotics/ns/*/sa/control-plane/*",
        to: "spiffe://Portarium.robotics/ns//control-plane",
        env: &[],
        says: &[
            "policy[0].peers[0]",
            "spiffe://Portarium.robotics/ns//control-plane",
        ],
    },
    Wrong {
        what: "a pattern for half a segment",
        from: "spiffe://portarium.robotics/ns/*/sa/mqtt-broker/*",
        to: "spiffe://portarium.robotics/ns/*/sa/mqtt-*/x",
        env: &[],
        says: &["mqtt.main.peers[0]", "mqtt-*"],
    },
    Wrong {
        what: "no rule",
        from: "[[policy]]\npeers = [\"spiffe://portarium.robotics/ns/*/sa/control-plane/*\"]\nmethods = [\"DispatchMission\"]\nrobots = [\"*\"]\nfleets = [\"*\"]\nactions = [\"*\"]\n",
        to: "",
        env: &[],
        says: &["policy", "missing"],
    },
    Wrong {
        what: "a folder that is not there",
        from: "/journal.sqlite",
        to: "/nowhere/journal.sqlite",
        env: &[],
        says: &["journal.path", "does not exist"],
    },
    Wrong {
        what: "a folder where a file should be",
        from: "/audit.jsonl",
        to: "",
        env: &[],
        says: &["audit.path", "is a folder"],
    },
    Wrong {
        what: "no TOML",
        from: "[grpc]",
        to: "[grpc",
        env: &[],
        says: &["line 6", "column"],
    },
    Wrong {
        what: "a robot on a broker that is not there",
        from: "broker = \"main\"",
        to: "broker = \"mian\"",
        env: &[],
        says: &["robots[0].broker", "main"],
    },
    Wrong {
        what: "metrics for everybody",
        from: "[admin]\nlisten = \"127.0.0.1:",
        to: "[admin]\nlisten = \"0.0.0.0:",
        env: &[],
        says: &["admin.listen", "loopback"],
    },
    Wrong {
        what: "a variable for a key that is unknown",
        from: "",
        to: "",
        env: &[("PORTARIUM__GRPC__LISTENS", "127.0.0.1:1")],
        says: &["PORTARIUM__GRPC__LISTENS", "did you mean \"listen\"?"],
    },
    Wrong {
        what: "a variable with a bad value",
        from: "",
        to: "",
        env: &[("PORTARIUM__GRPC__LISTEN", "everywhere")],
        says: &["PORTARIUM__GRPC__LISTEN", "everywhere"],
    },
    Wrong {
        what: "development from the environment",
        from: "",
        to: "",
        env: &[("PORTARIUM__DEVELOPMENT", "true")],
        says: &["PORTARIUM__DEVELOPMENT", "in the file"],
    },
    Wrong {
        what: "development in Kubernetes",
        from: "[identity]",
        to: "development = true\n[identity]",
        env: &[("KUBERNETES_SERVICE_HOST", "10.0.0.1")],
        says: &["development", "Kubernetes"],
    },
    Wrong {
        what: "development for everybody",
        from: "[grpc]\nlisten = \"127.0.0.1:",
        to: "[grpc]\nlisten = \"0.0.0.0:",
        env: &[],
        says: &["grpc.listen", "loopback", "development"],
    },
];

/// Runs the words in the environment, and expects one line on standard error and 78.
async fn refused(what: &str, words: &[&str], env: &[(&str, &str)]) -> String {
    let mut command = process::command(words);
    command.envs(env.iter().copied());
    let ended = process::Process::spawn(command).ended().await;
    assert_eq!(ended.code, Some(78), "{what}: {ended:?}");
    assert_eq!(ended.out, "", "{what}");
    assert_eq!(ended.err.lines().count(), 1, "{what}: {}", ended.err);
    assert!(ended.err.starts_with("error: "), "{what}: {}", ended.err);
    println!("{what}: {}", ended.err.trim_end());
    ended.err
}

fn written(dir: &TempDir, text: &str) -> String {
    let file = dir.path().join("gateway.toml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_is_wrong_is_one_line_that_names_the_key_and_exit_code_78() {
    for wrong in WRONG {
        let dir = tempfile::tempdir().unwrap();
        let mut text = good(dir.path());
        if wrong.what == "development for everybody" {
            text = format!("development = true\n{text}");
        }
        let changed = text.replacen(wrong.from, wrong.to, 1);
        assert!(wrong.from.is_empty() || changed != text, "{}", wrong.what);
        let file = written(&dir, &changed);
        let check = refused(wrong.what, &["check-config", &file], wrong.env).await;
        let run = refused(wrong.what, &["run", "--config", &file], wrong.env).await;
        assert_eq!(check, run, "{}", wrong.what);
        for part in wrong.says {
            assert_contains(&check, part);
        }
        if wrong.env.is_empty() {
            assert_contains(&check, &file);
        }
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{}: {left:?}", wrong.what);
    }
}

#[tokio::test]
async fn a_file_that_is_missing_is_named() {
    for words in [
        ["check-config", "/nowhere/gateway.toml"].as_slice(),
        &["run", "--config", "/nowhere/gateway.toml"],
    ] {
        let told = refused("a missing file", words, &[]).await;
        assert_contains(&told, "/nowhere/gateway.toml: cannot be read: ");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_key() {
    for key in ["grpc", "health", "admin"] {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let text = good(dir.path());
        let section = format!("[{key}]\nlisten = \"");
        let at = text.find(&section).unwrap() + section.len();
        let end = at + text[at..].find('"').unwrap();
        let text = format!("{}{address}{}", &text[..at], &text[end..]);
        let file = written(&dir, &text);
        let told = refused(key, &["run", "--config", &file], &[]).await;
        assert_contains(&told, &format!("{key}.listen: {address}: "));
        assert_contains(&told, "choose another port");
    }
}

#[tokio::test]
async fn an_audit_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = good(dir.path()).replace("audit.jsonl\"", "missing-link\"");
    std::os::unix::fs::symlink("/nowhere/x", dir.path().join("missing-link")).unwrap();
    let file = written(&dir, &text);
    let told = refused("audit", &["run", "--config", &file], &[]).await;
    assert_contains(&told, "audit.path: ");
    assert_contains(&told, "cannot be opened");
}

#[tokio::test]
async fn a_damaged_journal_is_no_fault_of_the_configuration_but_one_line_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(&dir, &good(dir.path()));
    fs::write(
        dir.path().join("journal.sqlite"),
        "no database, but a text of some length",
    )
    .unwrap();
    let ended = process::run(&["run", "--config", &file]).await;
    assert_eq!(
        (ended.code, ended.err.lines().count()),
        (Some(1), 1),
        "{ended:?}"
    );
    assert_contains(&ended.err, "journal.sqlite: it is damaged");
}

#[tokio::test]
async fn a_journal_that_another_gateway_has_open_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(&dir, &good(dir.path()));
    let first = process::Process::spawn(process::command(&["run", "--config", &file]));
    first.complains("not ready").await;
    let ports = [free_port(), free_port(), free_port()];
    let mut second = process::command(&["run", "--config", &file]);
    for (key, port) in ["GRPC", "HEALTH", "ADMIN"].into_iter().zip(ports) {
        second.env(
            format!("PORTARIUM__{key}__LISTEN"),
            format!("127.0.0.1:{port}"),
        );
    }
    let ended = process::Process::spawn(second).ended().await;
    assert_eq!(
        (ended.code, ended.err.lines().count()),
        (Some(1), 1),
        "{ended:?}"
    );
    assert_contains(&ended.err, "journal.sqlite");
    println!("{}", ended.err);
    // It still waits for its agent, and ends when told.
    first.interrupt();
    assert_eq!(first.ended().await.code, Some(0));
}

#[tokio::test]
async fn a_development_gateway_says_so_and_takes_calls_of_this_machine_without_identity() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("development = true\n{}", good(dir.path()));
    let grpc = text.split("[grpc]\nlisten = \"").nth(1).unwrap();
    let grpc = grpc.split('"').next().unwrap().to_owned();
    let file = written(&dir, &text);
    let check = process::run(&["check-config", &file]).await;
    assert_eq!(check.code, Some(0), "{check:?}");
    assert_contains(&check.out, "development = true: plaintext");
    let gateway = process::Process::spawn(process::command(&["run", "--config", &file]));
    gateway.complains("development = true: plaintext").await;
    gateway.complains("serving missions").await;
    let words = ["robot", "list", "--plaintext", "--server", &grpc];
    let listed = process::run(&words).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    // Its broker is not there, which is told and ends nothing.
    assert_contains(&listed.out, "out of reach");
    gateway.interrupt();
    assert_eq!(gateway.ended().await.code, Some(0));
}

#[tokio::test]
async fn a_good_configuration_and_the_sample_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(&dir, &good(dir.path()));
    let ended = process::run(&["check-config", &file]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    assert_contains(&ended.out, "ok: 1 robot, 1 broker, 1 policy rule");

    // What a machine may not have: its state folder, and the authority of who issues tokens.
    let file = written(&dir, portarium_gateway::config::SAMPLE);
    let mut command = process::command(&["check-config", &file]);
    let state = dir.path();
    command.env("PORTARIUM__JOURNAL__PATH", state.join("journal.sqlite"));
    command.env("PORTARIUM__AUDIT__PATH", state.join("audit.jsonl"));
    let authority = state.join("issuer-ca.pem");
    let own = rcgen::generate_simple_self_signed(["issuer.portarium.io".to_owned()]).unwrap();
    fs::write(&authority, own.cert.pem()).unwrap();
    command.env("PORTARIUM__TOKENS__KEYS_CA_FILE", authority);
    let ended = process::Process::spawn(command).ended().await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    assert_contains(&ended.out, "ok: 2 robots, 1 broker, 4 policy rules");
}
