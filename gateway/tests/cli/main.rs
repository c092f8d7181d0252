//! The command line, as the binary, against a gateway and a Workload API on real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub
)]

mod gateway;
mod missions;
mod peers;
mod svids;
mod watches;

use gateway::{bare, ended};
use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

#[tokio::test]
async fn wrong_usage_is_exit_code_2_and_help_and_version_are_not() {
    for (words, code) in [
        ("", 2),
        ("--version", 0),
        ("--help", 0),
        ("mission dispatch --help", 0),
        ("launch", 2),
        ("run", 2),
        ("mission dispatch --robot r --action a", 2),
        (
            "mission dispatch --robot r --action a --plaintext --param x",
            2,
        ),
        (
            "mission dispatch --robot r --action a --plaintext --server gw.example:50051",
            2,
        ),
        ("mission dispatch --robot r --action a --server-id x", 2),
        ("mission resolve m --as pending --plaintext", 2),
        ("robot list --plaintext --server nowhere", 2),
        ("svid write", 2),
        ("audit verify", 2),
        ("audit verify /no/such/file", 2),
        ("audit verify --head 5f /dev/null", 2),
    ] {
        let (exit, out, err) = ended(bare(words)).await;
        assert_eq!(exit, code, "{words}: {out}{err}");
        assert!(
            !format!("{out}{err}").contains("panicked"),
            "{words}: {err}"
        );
    }
}

#[tokio::test]
async fn plaintext_is_for_this_machine_only() {
    let (exit, _, err) = ended(bare("robot list --plaintext --server gw.example:50051")).await;
    assert_eq!(exit, 2);
    assert_eq!(
        err,
        "error: --plaintext is for a gateway on this machine, and gw.example is not; name it with --server-id\n"
    );
}

#[tokio::test]
async fn a_bad_configuration_is_exit_code_78_and_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, "[grpc]\nlisten = 5\n").unwrap();
    let file = file.to_str().unwrap();
    for words in [
        format!("check-config {file}"),
        format!("run --config {file}"),
    ] {
        let (exit, out, err) = ended(bare(&words)).await;
        assert_eq!((exit, out.as_str()), (78, ""), "{words}");
        let line = format!("error: {file}: grpc.listen: is integer `5`; write a text in quotes\n");
        assert_eq!(err, line);
    }
}

#[tokio::test]
async fn a_good_configuration_is_told_to_be_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    // The authority of its issuer is not there.
    let sample = portarium_gateway::config::SAMPLE
        .replace("keys_ca_file = ", "# keys_ca_file = ")
        .replace(
            "keys_url = ",
            "keys_trust_domain = \"portarium.io\" # keys_url = ",
        );
    std::fs::write(&file, sample).unwrap();
    let mut check = bare("check-config");
    check
        .arg(&file)
        .env(
            "PORTARIUM__JOURNAL__PATH",
            folder.path().join("journal.sqlite"),
        )
        .env("PORTARIUM__AUDIT__PATH", folder.path().join("audit.jsonl"));
    let (exit, out, err) = ended(check).await;
    let line = format!(
        "{}: ok: 2 robots, 1 broker, 4 policy rules\n",
        file.display()
    );
    assert_eq!((exit, out, err), (0, line, String::new()));
}

#[tokio::test]
async fn nobody_at_the_address_is_told_in_one_line() {
    let (exit, _, err) = ended(bare("robot list --plaintext --server localhost:1")).await;
    assert_eq!(exit, 1);
    assert_eq!(
        err,
        "error: localhost:1 in plaintext: cannot connect: Connection refused (os error 111)\n"
    );
}

/// Set in the child of the test below, which is this very test once more.
const PANICS: &str = "A_TASK_PANICS";

#[tokio::test]
async fn a_panic_of_any_task_ends_the_process_with_one_line() {
    let long = Duration::from_secs(20);
    if env::var_os(PANICS).is_some() {
        portarium_gateway::cli::end_with_a_panic();
        tokio::spawn(async { panic!("as if a task of the gateway\nhad a bug") });
        tokio::time::sleep(long).await;
        // Nobody noticed.
        return;
    }
    let mut child = Command::new(env::current_exe().unwrap());
    let name = "a_panic_of_any_task_ends_the_process_with_one_line";
    child.args(["--exact", name, "--nocapture"]).env(PANICS, "");
    let began = Instant::now();
    let ended = child.output().unwrap();
    assert!(began.elapsed() < long, "{ended:?}");
    assert_eq!(ended.status.code(), Some(101), "{ended:?}");
    let err = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("error: internal error at "), "{err}");
    assert!(
        err.ends_with("as if a task of the gateway had a bug; please report it\n"),
        "{err}"
    );
}
