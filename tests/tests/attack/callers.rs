//! Callers who are let in and take as much as they can.

use crate::{
    doorstep::raise_own_limit,
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, Line, call, frame, setting, stream},
    http2::{INTRUDER, intruder},
    siege::{Siege, Vitals},
};
use portarium_identity::SvidManager;
use portarium_protocols::grpc::pb::DispatchStatus;
use portarium_tests::{Caller, figure, mission, spiffe_id, spread, stop, until};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Builder, task::JoinSet, time::sleep};

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(8);

/// Connections that flood, and calls at a time on each: more than one caller may have.
const CONNECTIONS: usize = 16;
const CALLS: usize = 160;

/// A robot that nobody is behind.
const EMPTY_ROBOT: &str = r#"
[[robots]]
id = "x"
fleet = "test"
adapter = "mqtt"
broker = "main"
tenant = "acme"
actions = ["navigate_to"]
"#;

async fn besieged(name: &'static str) -> Siege {
    raise_own_limit();
    Siege::begin(name, &["intruder"], &format!("{INTRUDER}{EMPTY_ROBOT}")).await
}

/// How often each answer came.
type Told = Arc<Mutex<BTreeMap<String, usize>>>;

/// Anything, as fast as answers come.
async fn flood(caller: Arc<Caller>, until: Instant, told: Told) {
    while Instant::now() < until {
        let name = format!("flood-{:x}", fastrand::u64(..));
        let answer = match fastrand::u8(..4) {
            0 => caller.status(&name).await.map(|_| "a status".to_owned()),
            1 => caller
                .cancel(&name)
                .await
                .map(|_| "nothing to cancel".to_owned()),
            2 => caller.robot("x").await.map(|_| "a robot".to_owned()),
            _ => {
                let asked = mission("x", &name, Duration::from_millis(1));
                let answer = caller.dispatch(&asked).await;
                answer.map(|answer| answer.status().as_str_name().to_owned())
            }
        };
        let what = answer.unwrap_or_else(|status| format!("{:?}", status.code()));
        *told.lock().unwrap().entry(what).or_default() += 1;
    }
}

/// On a thread of its own: those who measure shall not wait behind those who flood.
fn flood_from_a_thread(manager: &SvidManager, port: u16, told: &Told) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let end = Instant::now() + FLOOD;
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let caller = Arc::new(Caller::of(manager, port).await);
            (0..CALLS).for_each(|_| {
                tasks.spawn(flood(caller.clone(), end, Arc::clone(told)));
            });
        }
        tasks.join_all().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_caller_who_floods_holds_up_neither_others_nor_its_own_stops() {
    let name = "attack, a caller who floods";
    let siege = besieged(name).await;
    let port = siege.house.gateway.ports.grpc;
    let told = Arc::default();
    let manager = siege.house.identities.manager("intruder").await;
    let flooding = thread::spawn({
        let told = Arc::clone(&told);
        move || flood_from_a_thread(&manager, port, &told)
    });
    let own = Caller::with(&siege.house.identities, "intruder", port).await;
    let mut stops = Vec::new();
    while !flooding.is_finished() {
        let began = Instant::now();
        let name = format!("own-stop-{}", stops.len());
        let answer = own.dispatch(&stop("x", &name)).await.unwrap();
        assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
        stops.push(began.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    flooding.join().unwrap();
    drop(own);
    let told = told.lock().unwrap().clone();
    let all: usize = told.values().sum();
    assert!(told.contains_key("ResourceExhausted"), "{told:?}");
    figure(
        name,
        &format!(
            "{all} calls in {FLOOD:?}: {told:?}; its own stops answered in {}",
            spread(&stops)
        ),
    );
    siege.lift(64).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn calls_without_an_end_take_a_callers_share_and_no_more() {
    let name = "attack, calls without an end";
    let siege = besieged(name).await;
    let door = intruder(&siege.house);
    let headers = call("DispatchMission", &[]);
    let before = Vitals::of(&siege.house).resident_mib;
    let seen = siege.audit().len();
    let mut lines = Vec::new();
    for _ in 0..200 {
        let mut line = Line::open(&door).await.unwrap();
        for n in 0..28 {
            // 100 kB, it says; 2 kB of it come.
            let begun = [&[0, 0, 1, 0x86, 0xa0][..], &[0; 2_000]].concat();
            let open = frame(HEADERS, END_HEADERS, stream(n), &headers);
            let both = [open, frame(DATA, 0, stream(n), &begun)].concat();
            line.send(&both).await.unwrap();
        }
        lines.push(line);
    }
    let id = spiffe_id("intruder");
    siege
        .audited(seen, "more than a caller's share", |line| {
            line["caller"] == id && line["outcome"] == "RESOURCE_EXHAUSTED"
        })
        .await;
    // The sender does not answer pings, so all of it ends by itself; this is the largest it gets.
    let peak = Vitals::of(&siege.house).resident_mib;
    let mut refused = 0;
    for line in lines {
        let heard = line.close().await;
        refused += heard.others;
    }
    figure(
        name,
        &format!(
            "5,600 on 200 connections: {} MiB more at most; {refused} frames of answers",
            peak - before
        ),
    );
    assert!(peak < before + 128, "{before} MiB before, {peak} MiB");
    siege.lift(128).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn watchers_that_do_not_read_hold_up_nobody_and_take_little() {
    let name = "attack, watchers that do not read";
    let siege = besieged(name).await;
    let door = intruder(&siege.house);
    let seen = siege.audit().len();
    let watch = |n| {
        let open = frame(HEADERS, END_HEADERS, stream(n), &call("WatchMissions", &[]));
        // From the very first mission on.
        [open, frame(DATA, END_STREAM, stream(n), &[0; 5])].concat()
    };
    let mut lines = Vec::new();
    // With windows of nothing, and with the usual ones that nobody opens again.
    for window in [0, 65_535] {
        for _ in 0..4 {
            let mut line = Line::deaf(&door, &setting(4, window)).await.unwrap();
            for n in 0..17 {
                line.send(&watch(n)).await.unwrap();
            }
            lines.push(line);
        }
    }
    let id = spiffe_id("intruder");
    siege
        .audited(seen, "one watch too many", |line| {
            line["caller"] == id && line["outcome"] == "RESOURCE_EXHAUSTED"
        })
        .await;
    // And answers that nobody takes.
    for _ in 0..16 {
        let mut line = Line::deaf(&door, &setting(4, 0)).await.unwrap();
        for n in 0..1_000 {
            let open = frame(HEADERS, END_HEADERS, stream(n), &call("ListRobots", &[]));
            line.send(&[open, frame(DATA, END_STREAM, stream(n), &[0; 5])].concat())
                .await
                .unwrap();
        }
        lines.push(line);
    }
    let sockets = Vitals::of(&siege.house).descriptors;
    // Nobody answers pings either.
    until("all of them closed", async || {
        Vitals::of(&siege.house).descriptors + lines.len() <= sockets
    })
    .await;
    let watches = siege.audit().into_iter().skip(seen).filter(|line| {
        line["caller"] == id && line["method"] == "WatchMissions" && line["decision"] == "allowed"
    });
    let watches = watches.count();
    assert_eq!(watches, 128, "watches of one caller");
    figure(
        name,
        &format!("{watches} watches and 16,000 answers that nobody read, all closed"),
    );
    drop(lines);
    siege.lift(64).await;
}
