//! `dev`, as its banner says.

use crate::common::{Process, assert_contains, process, until, world::free_port};
use std::{
    fs,
    net::TcpListener,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::Command,
};

/// `dev` on ports of its own, as its advice says.
fn dev(words: &[&str], grpc: &str) -> Command {
    let mut command = process::command(&[&["dev"], words].concat());
    command
        .env("PORTARIUM__GRPC__LISTEN", grpc)
        .env(
            "PORTARIUM__HEALTH__LISTEN",
            format!("127.0.0.1:{}", free_port()),
        )
        .env("PORTARIUM__ADMIN__LISTEN", "127.0.0.1:0");
    command
}

#[tokio::test]
async fn dev_tells_commands_that_work_and_ends_promptly_on_ctrl_c() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let dev = Process::spawn(dev(
        &["--state-dir", state.to_str().unwrap()],
        "127.0.0.1:0",
    ));
    dev.says("Ctrl-C ends it").await;
    let banner = dev.out();
    let exports = banner
        .lines()
        .filter_map(|line| line.trim().strip_prefix("export "));
    let exports: Vec<(String, String)> = exports
        .flat_map(|line| line.split(' '))
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(exports.len(), 3, "{banner}");
    let shown = banner.lines().filter_map(|line| {
        let (program, words) = line.trim().split_once(' ')?;
        program.ends_with("portarium-gateway").then_some(words)
    });
    let mut tried = 0;
    for words in shown.filter(|line| line.contains("--hint") && !line.contains("watch")) {
        let words: Vec<_> = words.split(' ').collect();
        let mut command = process::command(&words);
        command.envs(exports.clone());
        let ended = Process::spawn(command).ended().await;
        assert_eq!(
            (ended.code, ended.err.as_str()),
            (Some(0), ""),
            "{words:?}: {ended:?}"
        );
        tried += 1;
    }
    assert_eq!(tried, 4, "{banner}");
    for file in [
        "gateway.toml",
        "journal.sqlite",
        "audit.jsonl",
        "agent.sock",
    ] {
        assert!(state.join(file).exists(), "{file}");
    }
    let began = Instant::now();
    dev.interrupt();
    let ended = dev.ended().await;
    let took = began.elapsed();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    println!("FIGURE cli: dev ends {took:.2?} after Ctrl-C");
}

#[tokio::test]
async fn the_demo_shows_missions_rotations_a_cancel_and_a_stop_and_all_went_well() {
    let demo = Process::spawn(process::command(&["dev", "--demo"]));
    let demo = demo.ended().await;
    // Nothing that would make one doubt is told either.
    assert_eq!((demo.code, demo.err.as_str()), (Some(0), ""), "{demo:?}");
    let table = demo.out.split("CAME TO").nth(1).unwrap();
    for (mission, robot, end) in [
        ("journey-mqtt", "sim-mqtt", "Succeeded"),
        ("journey-grpc", "sim-grpc", "Succeeded"),
        ("cancelled-while-waiting", "sim-mqtt", "Cancelled"),
        ("journey-stopped", "sim-grpc", "Cancelled"),
        ("stop", "sim-grpc", "Succeeded"),
    ] {
        let row = [mission, robot, end, end];
        let found = table
            .lines()
            .any(|line| line.split_whitespace().eq(row.iter().copied()));
        assert!(found, "{row:?}: {table}");
    }
    println!("FIGURE cli: the demo takes {:.1?}", demo.took);
}

#[tokio::test]
async fn the_demo_is_judged_though_nobody_reads_it_any_longer() {
    let mut command = process::command(&["dev", "--demo"]);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut demo = command.spawn().unwrap();
    let mut read = BufReader::new(demo.stdout.take().unwrap()).lines();
    assert!(read.next_line().await.unwrap().is_some());
    drop(read);
    let mut told = String::new();
    let mut err = demo.stderr.take().unwrap();
    err.read_to_string(&mut told).await.unwrap();
    let ended = demo.wait().await.unwrap();
    assert_eq!((ended.code(), told.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn ctrl_c_while_dev_starts_ends_it_and_leaves_no_folder_behind() {
    let dir = tempfile::tempdir().unwrap();
    let entries = || fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let mut command = dev(&[], "127.0.0.1:0");
    command.env("TMPDIR", dir.path());
    let dev = Process::spawn(command);
    until("its socket is there", || async {
        let socket = entries().any(|folder| folder.join("agent.sock").exists());
        socket.then_some(())
    })
    .await;
    dev.interrupt();
    let ended = dev.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let left: Vec<_> = entries().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_demo_takes_no_folder_with_the_state_of_an_earlier_run() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("journal.sqlite"), "").unwrap();
    let words = ["--demo", "--state-dir", dir.path().to_str().unwrap()];
    let demo = Process::spawn(dev(&words, "127.0.0.1:0")).ended().await;
    assert_eq!(demo.code, Some(1), "{demo:?}");
    assert_contains(&demo.err, "name another folder, or none");
    assert!(demo.took < Duration::from_secs(5), "{demo:?}");
}

#[tokio::test]
async fn dev_with_a_port_in_use_says_what_to_do_about_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = Process::spawn(dev(&[], &address)).ended().await;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(78), ""),
        "{ended:?}"
    );
    let last = ended.err.lines().last().unwrap();
    assert_contains(last, &address);
    assert_contains(last, "PORTARIUM__GRPC__LISTEN=127.0.0.1:0");
    println!("{last}");
}
