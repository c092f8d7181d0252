//! Strangers by the thousand who begin and do not go on, and callers who are let in and are silent.

use crate::{
    forge::with_id,
    frames::{END_HEADERS, HEADERS, SETTINGS, call, frame},
    http2::{CLOSED_WITHIN, INTRUDER, intruder},
    siege::{Siege, Vitals},
    wire::{Door, PREFACE},
};
use futures::{StreamExt as _, future::join_all, stream};
use portarium_tests::{Arrangement, House, figure, hints, spiffe_id, spread, until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::client::TlsStream;

/// As many descriptors as most systems give a process at first.
const SOFT_LIMIT: &[&str] = &["prlimit", "--nofile=1024:"];

/// And no more than these.
const HARD_LIMIT: &[&str] = &["prlimit", "--nofile=1024:1024"];

/// More than may be at the door at a time.
const STRANGERS: usize = 3_000;

/// Connections of one caller at a time.
const OF_ONE: usize = 256;

/// So many times a new caller comes meanwhile.
const COMERS: usize = 20;

/// Whoever is not in after so long was kept out.
const LET_IN_WITHIN: Duration = Duration::from_secs(20);

/// Our own limit: the strangers are ours.
pub fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

async fn besieged(name: &'static str, behind: &[&str]) -> Siege {
    raise_own_limit();
    let arrangement = Arrangement {
        workloads: &["intruder"],
        svid_ttl: Duration::from_secs(3600),
        config: INTRUDER,
        behind,
        ..Arrangement::default()
    };
    Siege::around(name, House::arranged(arrangement).await).await
}

/// How long new callers take until they are in, and how often one was sent away before: those
/// that let the gateway wait are, and a test that shares its processors with thousands of strangers
/// may answer late.
async fn newcomers(house: &House) -> (Vec<Duration>, usize) {
    let shown = with_id(
        house.identities.authority(),
        &spiffe_id(hints::CONTROL_PLANE),
    );
    let door = Door::of(house, Some(&shown));
    let (mut took, mut sent_away) = (Vec::new(), 0);
    for _ in 0..COMERS {
        let began = Instant::now();
        while let Err(error) = door.enter().await {
            assert!(began.elapsed() < LET_IN_WITHIN, "kept out: {error}");
            sent_away += 1;
        }
        took.push(began.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    (took, sent_away)
}

/// Why they are sent away.
const SLOW: &str = "TLS handshake did not end within ";

/// A ClientHello, cut off after its first bytes.
const BEGUN: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

/// Strangers who come, say this and no more, and come again when they are sent away.
struct Strangers {
    tasks: JoinSet<()>,
    came: Arc<AtomicUsize>,
}

impl Strangers {
    fn come(door: &Door, count: usize, words: &'static [u8]) -> Self {
        let came = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (door, came) = (door.clone(), came.clone());
            tasks.spawn(async move {
                loop {
                    if let Ok(mut tcp) = door.tcp().await
                        && tcp.write_all(words).await.is_ok()
                    {
                        came.fetch_add(1, Ordering::Relaxed);
                        // Until we are sent away.
                        let _ = tcp.read(&mut [0]).await;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            });
        }
        Self { tasks, came }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn handshakes_that_do_not_go_on_keep_nobody_out() {
    let name = "attack, slow handshakes";
    for (limit, behind, words) in [
        ("a soft limit of 1024", SOFT_LIMIT, &b""[..]),
        ("a hard limit of 1024", HARD_LIMIT, BEGUN),
    ] {
        let siege = besieged(name, behind).await;
        let door = Door::of(&siege.house, None);
        let seen = siege.audit().len();
        let mut strangers = Strangers::come(&door, STRANGERS, words);
        until("strangers who come again", async || {
            strangers.came.load(Ordering::Relaxed) > 2 * STRANGERS
        })
        .await;
        let (took, sent_away) = newcomers(&siege.house).await;
        let vitals = Vitals::of(&siege.house);
        let came = strangers.came.load(Ordering::Relaxed);
        // Each of them is at the door once at most, so all other times it was sent away.
        let (audited, lines) = siege.refused_handshakes(seen, SLOW, came - STRANGERS).await;
        strangers.tasks.shutdown().await;
        figure(
            name,
            &format!(
                "{STRANGERS} strangers who came {came} times, under {limit}: {} descriptors taken, \
                 {audited} audited as too slow in {lines} lines; new callers sent away {sent_away} \
                 times, in after {}",
                vitals.descriptors,
                spread(&took)
            ),
        );
        let log = siege.house.gateway.output();
        assert!(!log.contains("cannot accept"), "out of descriptors");
        siege.lift(48).await;
    }
}

/// Waits until the other end has closed.
async fn closed(mut tls: TlsStream<TcpStream>) {
    let mut bytes = [0; 1024];
    while tls.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
}

/// Waits until the audit tells of so many connections of the intruder that were cut after `seen` lines
/// since they did not begin to speak; how many it tells of.
async fn cut(siege: &Siege, seen: usize, at_least: usize) -> usize {
    let id = spiffe_id("intruder");
    let mut count = 0;
    until("connections cut, in the audit", async || {
        let lines = siege.audit().split_off(seen);
        let silent = lines.iter().filter(|line| {
            line["caller"] == id
                && line["method"] == "HTTP/2"
                && line["decision"] == "refused"
                && line["outcome"] == "cut"
                && line["reason"] == "the other end said nothing"
        });
        count = silent.count();
        count >= at_least
    })
    .await;
    count
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn half_open_connections_are_closed_and_take_no_other_callers_place() {
    let siege = besieged("attack, half-open", SOFT_LIMIT).await;
    let door = intruder(&siege.house);
    let settings = frame(SETTINGS, 0, 0, &[]);
    let headers = frame(HEADERS, 0, 1, &call("ListRobots", &[]));
    let open_call = frame(HEADERS, END_HEADERS, 1, &call("DispatchMission", &[]));
    let silent = [Vec::new(), PREFACE[..12].to_vec()];
    let begun = [
        PREFACE.to_vec(),
        [PREFACE, &settings].concat(),
        [PREFACE, &settings, &headers].concat(),
        [PREFACE, &settings, &open_call].concat(),
    ];
    // Whose pings are not answered has no line: a network that is lost looks the same.
    for (what, beginnings, at_least) in [
        ("nothing, or half a preface", &silent[..], OF_ONE),
        (
            "a preface, settings, headers or a call without an end",
            &begun,
            0,
        ),
    ] {
        let (began, seen) = (Instant::now(), siege.audit().len());
        // A few at once: those that say nothing are in for some seconds only.
        let knocks = beginnings.iter().cycle().take(OF_ONE).map(|bytes| async {
            let mut tls = door.knock().await.unwrap();
            tls.write_all(bytes).await.unwrap();
            tls.flush().await.unwrap();
            tls
        });
        let knocks = stream::iter(knocks).buffer_unordered(4);
        let all: Vec<_> = knocks.collect().await;
        // All places of this caller are taken, and none of another's.
        door.enter().await.unwrap_err();
        siege.refused_handshake(seen, "one too many").await;
        let (took, sent_away) = newcomers(&siege.house).await;
        let ended = timeout(CLOSED_WITHIN, join_all(all.into_iter().map(closed)));
        ended.await.expect(what);
        let took_until_closed = began.elapsed();
        let audited = cut(&siege, seen, at_least).await;
        figure(
            "attack, half-open",
            &format!(
                "{OF_ONE} with {what}: closed within {took_until_closed:.1?}, {audited} audited; new \
                 callers sent away {sent_away} times, in after {}",
                spread(&took)
            ),
        );
    }
    siege.lift(48).await;
}
