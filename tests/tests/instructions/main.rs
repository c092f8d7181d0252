//! How many instructions the hot path takes, counted by valgrind. Unlike times they are nearly the
//! same in each run and on each machine, so that a change which slows it does not go unseen.
//!
//! Counted are, of the binary as the tests have it (dev profile, without optimisation): the mission
//! service behind HTTP/2 (messages, identity, policy, audit), the engine and the journal with its
//! SQLite. What the kernel does for them is not, nor are TLS, HTTP/2 and the adapters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub
)]

mod path;

use path::{Path, TIMES};
use portarium_tests::figure;
use std::{env, process::Command};
use tokio::runtime::{Builder, Runtime};

/// Instructions of one of each. After a change that is meant to change them, or with another
/// compiler, copy what the failing test prints.
const EXPECTED: [(&str, u64); 3] = [
    ("a_dispatch", 1_036_429),
    ("a_status_update", 246_861),
    ("a_stop", 1_213_631),
];

/// So far, in percent, a count may be off.
const TOLERANCE: u64 = 10;

#[test]
#[ignore = "needs valgrind: run by tests/run"]
fn the_hot_path_takes_as_many_instructions_as_it_did() {
    let counted = EXPECTED.map(|(part, _)| (part, count(part)));
    let mut off = false;
    for ((part, expected), (_, counted)) in EXPECTED.into_iter().zip(counted) {
        figure(
            "instructions",
            &format!("{part}: {counted}, expected {expected}"),
        );
        off |= expected.abs_diff(counted) * 100 > expected * TOLERANCE;
    }
    assert!(
        !off,
        "more than {TOLERANCE} % off. Find out why (valgrind --tool=callgrind, callgrind_annotate); where it is \
         meant, or the compiler is another one, these are the new counts for {}:\n{counted:#?}",
        file!()
    );
}

/// Runs the work below under valgrind, which counts while the function of this name runs.
fn count(part: &str) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--collect-atstart=no")
        // With older ways of naming a hash follows.
        .arg(format!("--toggle-collect=*::{part}"))
        .arg(format!("--toggle-collect=*::{part}::h????????????????"))
        .arg(env::current_exe().unwrap())
        .args(["--exact", "the_work_that_is_counted", "--ignored"])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let line = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = line.unwrap_or_else(|| panic!("nothing was counted: {said}"));
    let counted: u64 = number.trim().parse().unwrap();
    assert!(counted > 0, "{part} is not found: {said}");
    counted / TIMES
}

#[test]
#[ignore = "is run under valgrind by the other one"]
fn the_work_that_is_counted() {
    // All of it on this thread, which is the one that is counted.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut path = runtime.block_on(Path::new());
    a_dispatch(&runtime, &mut path);
    a_status_update(&runtime, &mut path);
    a_stop(&runtime, &mut path);
    runtime.block_on(path.end());
}

// Valgrind knows them by their names.

#[inline(never)]
fn a_dispatch(runtime: &Runtime, path: &mut Path) {
    runtime.block_on(path.dispatches());
}

#[inline(never)]
fn a_status_update(runtime: &Runtime, path: &mut Path) {
    runtime.block_on(path.status_updates());
}

#[inline(never)]
fn a_stop(runtime: &Runtime, path: &mut Path) {
    runtime.block_on(path.stops());
}
