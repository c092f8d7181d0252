//! `dev`, as its banner says.

use crate::common::{Process, assert_contains, process, world::free_port};
use std::{
    net::TcpListener,
    time::{Duration, Instant},
};
use tokio::process::Command;

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
