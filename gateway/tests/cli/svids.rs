//! The identity commands.

use crate::gateway::{World, bare, ended};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

const OPERATOR: &str = "spiffe://portarium.robotics/ns/portarium/sa/operator/dev";

#[tokio::test]
async fn show_tells_all_about_the_svid() {
    let world = World::new().await;
    let (exit, out, err) = world.says("svid show").await;
    assert_eq!((exit, err.as_str()), (0, ""));
    let value = |label: &str| {
        let line = out.lines().find(|line| line.starts_with(label));
        line.unwrap_or_else(|| panic!("{label} is missing in {out}"))[label.len()..].trim()
    };
    assert_eq!(value("id"), OPERATOR);
    assert_eq!(value("hint"), "operator");
    assert_eq!(value("DNS names"), "localhost, operator.svc");
    assert_eq!(value("generation"), "1");
    assert_eq!(value("bundles of"), "portarium.robotics");
    assert!(value("serial").chars().all(|c| c.is_ascii_hexdigit()));
    assert!(
        value("not after").contains("59m") || value("not after").contains("1h"),
        "{out}"
    );

    let (_, out, _) = world.says("svid show --json").await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["spiffe_id"], OPERATOR);
    assert_eq!(told["trust_domains"][0], "portarium.robotics");
}

#[tokio::test]
async fn without_a_socket_show_fails_in_time_and_says_why() {
    let began = Instant::now();
    let (exit, out, err) = ended(bare("svid show --socket /no/agent.sock")).await;
    assert_eq!((exit, out.as_str()), (1, ""));
    assert!(
        err.starts_with("error: no SVID within 4s: the Workload API socket does not exist"),
        "{err}"
    );
    assert!(began.elapsed() < Duration::from_secs(7));

    let mut empty = bare("svid show");
    empty.env("SPIFFE_ENDPOINT_SOCKET", "");
    for command in [bare("svid show"), empty] {
        let (exit, _, err) = ended(command).await;
        assert_eq!(exit, 1);
        assert_eq!(
            err,
            "error: no Workload API socket is named; give --socket or set SPIFFE_ENDPOINT_SOCKET\n"
        );
    }
}

#[tokio::test]
async fn several_svids_and_no_hint_is_told_with_the_hints() {
    let world = World::new().await;
    let socket = world.socket();
    let (exit, _, err) = ended(bare(&format!("svid show --socket {}", socket.display()))).await;
    assert_eq!(exit, 1);
    assert!(
        err.contains("\"operator\"") && err.lines().count() == 1,
        "{err}"
    );
}

#[tokio::test]
async fn watch_tells_each_rotation() {
    let world = World::new().await;
    let mut child = world
        .command("svid watch")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for generation in 1..4 {
        let line = timeout(Duration::from_secs(10), lines.next_line())
            .await
            .unwrap()
            .unwrap();
        let line = line.unwrap();
        let start = format!("generation {generation}: {OPERATOR} serial ");
        assert!(line.starts_with(&start), "{line}");
        world.authority.rotate();
    }
}

#[tokio::test]
async fn a_process_that_holds_a_key_leaves_no_core_dump() {
    let world = World::new().await;
    let mut child = world
        .command("svid watch")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().is_some());
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id().unwrap())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let words: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core:?}");
}

fn read(folder: &Path) -> [String; 3] {
    let folder = fs::canonicalize(folder.join("..current")).unwrap();
    ["svid.pem", "key.pem", "bundle.pem"].map(|f| fs::read_to_string(folder.join(f)).unwrap())
}

#[tokio::test]
async fn write_leaves_files_that_belong_together() {
    let world = World::new().await;
    let dir = world.folder.path().join("svids");
    let (exit, out, err) = world
        .says(&format!("svid write --once --dir {}", dir.display()))
        .await;
    assert_eq!((exit, err.as_str()), (0, ""));
    assert!(
        out.starts_with(&format!("generation 1: {OPERATOR} ")),
        "{out}"
    );
    let [svid, key, bundle] = read(&dir);
    assert!(svid.starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert!(bundle.starts_with("-----BEGIN CERTIFICATE-----\n") && bundle != svid);
    assert_eq!(fs::read_to_string(dir.join("key.pem")).unwrap(), key);
    assert!(!format!("{out}{err}").contains("PRIVATE"));
}

#[tokio::test]
async fn write_follows_rotations_until_it_is_asked_to_end() {
    let world = World::new().await;
    let dir = world.folder.path().join("svids");
    let words = format!("svid write --dir {}", dir.display());
    let mut child = world
        .command(&words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen: Vec<[String; 3]> = Vec::new();
    for _ in 0..4 {
        timeout(Duration::from_secs(10), lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let files = read(&dir);
        assert!(
            !seen
                .iter()
                .any(|before| before[0] == files[0] || before[1] == files[1])
        );
        seen.push(files);
        world.authority.rotate();
    }
    let (exit, _, err) = world.says(&words).await;
    assert_eq!(exit, 1);
    assert!(err.contains("another process writes SVIDs into"), "{err}");

    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = timeout(Duration::from_secs(10), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn write_leaves_nothing_of_an_identity_that_was_withdrawn() {
    let world = World::new().await;
    let dir = world.folder.path().join("svids");
    let mut child = world
        .command(&format!("svid write --dir {}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(out.next_line().await.unwrap().is_some());
    assert!(dir.join("key.pem").exists());
    world.authority.set_entries(Vec::new());
    let removed = async {
        while let Some(line) = err.next_line().await.unwrap() {
            if line == "its files are removed" {
                return;
            }
        }
    };
    timeout(Duration::from_secs(10), removed).await.unwrap();
    for file in ["key.pem", "svid.pem", "bundle.pem", "..current", "..gen-1"] {
        assert!(!dir.join(file).exists(), "{file}");
    }
}
