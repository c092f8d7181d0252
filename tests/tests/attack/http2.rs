//! HTTP/2 as nobody should speak it, by a caller that is let in.

use crate::{
    forge::{Shown, with_id},
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Line, PING, PRIORITY, RST_STREAM,
        SETTINGS, WINDOW_UPDATE, call, frame, header, setting, stream,
    },
    siege::Siege,
    wire::Door,
};
use portarium_tests::{House, figure, scaled, spiffe_id};
use std::time::Duration;

/// Who is let in and means ill.
pub const INTRUDER: &str = r#"
[[policy]]
peers = ["spiffe://portarium.robotics/ns/portarium/sa/intruder/*"]
methods = ["DispatchMission", "CancelMission", "GetMissionStatus", "WatchMissions", "ListRobots", "GetRobot"]
robots = ["m", "g", "x"]
fleets = ["*"]
actions = ["*"]
"#;

pub fn intruder(house: &House) -> Door {
    Door::of(house, Some(&shown(house, "intruder")))
}

pub fn shown(house: &House, name: &str) -> Shown {
    with_id(house.identities.authority(), &spiffe_id(name))
}

/// A connection that nobody keeps alive is closed after 15 s at the latest.
pub const CLOSED_WITHIN: Duration = Duration::from_secs(30);

/// What is sent again and again.
struct Flood {
    what: &'static str,
    times: usize,
    /// Whether the gateway ends the connection amid it. It stands what it does not, at no cost but
    /// its reading.
    cut: bool,
    bytes: Box<dyn FnMut(u32) -> Vec<u8> + Send>,
}

impl Flood {
    fn cut(what: &'static str, bytes: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> Self {
        Self {
            what,
            times: scaled(20_000),
            cut: true,
            bytes: Box::new(bytes),
        }
    }

    fn stood(what: &'static str, bytes: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> Self {
        Self {
            cut: false,
            ..Self::cut(what, bytes)
        }
    }
}

fn resets() -> [Flood; 3] {
    let list = call("ListRobots", &[]);
    let dispatch = call("DispatchMission", &[]);
    let opened = list.clone();
    let reset = |n| frame(RST_STREAM, 0, stream(n), &8_u32.to_be_bytes());
    [
        Flood::cut("resets right behind their requests", move |n| {
            let open = frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &list);
            [open, reset(n)].concat()
        }),
        Flood::cut("resets amid a message", move |n| {
            let open = frame(HEADERS, END_HEADERS, stream(n), &dispatch);
            let part = frame(DATA, 0, stream(n), &[0, 0, 0, 0, 64, 1, 2, 3]);
            [open, part, reset(n)].concat()
        }),
        Flood::cut("windows that make the gateway reset", move |n| {
            let open = frame(HEADERS, END_HEADERS, stream(n), &opened);
            let zero = frame(WINDOW_UPDATE, 0, stream(n), &[0; 4]);
            [open, zero].concat()
        }),
    ]
}

fn unended() -> [Flood; 3] {
    let first = |n, flags, more| match n {
        0 => frame(HEADERS, flags, 1, &call("ListRobots", &[])),
        _ => more,
    };
    [
        Flood::cut("headers without an end", move |n| {
            let more = header("x", &[b'x'; 1000]);
            first(n, 0, frame(CONTINUATION, 0, 1, &more))
        }),
        Flood::cut("empty continuations", move |n| {
            first(n, 0, frame(CONTINUATION, 0, 1, &[]))
        }),
        Flood::cut("empty data", move |n| {
            first(n, END_HEADERS, frame(DATA, 0, 1, &[]))
        }),
    ]
}

fn chatter() -> [Flood; 5] {
    let with_large = [call("ListRobots", &[]), header("x", &[b'x'; 15_000])].concat();
    [
        Flood {
            times: scaled(1_000),
            ..Flood::stood("headers of 15 kB each", move |n| {
                frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &with_large)
            })
        },
        Flood::stood("settings", |_| setting(4, 65_535)),
        Flood::stood("pings", |n| frame(PING, 0, 0, &u64::from(n).to_be_bytes())),
        Flood::stood("priorities", |n| {
            frame(PRIORITY, 0, stream(n), &[0, 0, 0, 0, 1])
        }),
        Flood::stood("frames of no kind", |n| frame(0xb0, 0, stream(n), &[0; 16])),
    ]
}

/// Single things that break the protocol: the connection or the stream ends, whatever follows.
fn mistakes() -> Vec<(&'static str, Vec<u8>)> {
    let open = |n| frame(HEADERS, END_HEADERS, stream(n), &call("ListRobots", &[]));
    let bomb = {
        // One entry in the table, named again four thousand times: 16 kB that mean 16 MB.
        let mut block = call("ListRobots", &[]);
        let mut entry = header("x", &[b'x'; 4000]);
        entry[0] = 0x40;
        block.extend(entry);
        block.extend(std::iter::repeat_n(0xbe, 4000));
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
    };
    vec![
        ("a bomb of headers", bomb),
        (
            "a frame larger than allowed",
            [open(0), frame(DATA, 0, 1, &[0; 20_000])].concat(),
        ),
        ("data on a stream that is not open", frame(DATA, 0, 1, b"x")),
        (
            "a stream with an even number",
            frame(HEADERS, END_HEADERS, 2, &call("ListRobots", &[])),
        ),
        (
            "a window of more than 2^31",
            frame(WINDOW_UPDATE, 0, 0, &i32::MAX.to_be_bytes()),
        ),
        (
            "settings of the wrong length",
            frame(SETTINGS, 0, 0, &[0; 5]),
        ),
        ("an impossible window in settings", setting(4, u32::MAX)),
        ("an impossible frame size in settings", setting(5, 1)),
        ("a ping of the wrong length", frame(PING, 0, 0, &[0; 7])),
        (
            "a continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
        ),
        (
            "headers that do not parse",
            frame(HEADERS, END_HEADERS, 1, &[0xff; 64]),
        ),
        (
            "an index that is none",
            frame(HEADERS, END_HEADERS, 1, &[0xfe]),
        ),
        (
            "HTTP/1.1",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
        ("TLS in TLS", vec![22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]),
    ]
}

/// Waits for the line that says that the intruder's connection was cut.
async fn cut(siege: &Siege, seen: usize, what: &str) {
    let id = spiffe_id("intruder");
    let line = siege
        .audited(seen, what, |line| {
            line["caller"] == id && line["method"] == "HTTP/2"
        })
        .await;
    assert_eq!(line["decision"], "refused", "{what}");
    assert!(
        line["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty()),
        "{what}: {line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn floods_of_frames_end_their_own_connection_at_most() {
    let siege = Siege::begin("attack, frames", &[], INTRUDER).await;
    let door = intruder(&siege.house);
    let floods = resets().into_iter().chain(unended()).chain(chatter());
    let mut sent_of = Vec::new();
    for mut flood in floods {
        let seen = siege.audit().len();
        let mut line = Line::open(&door).await.unwrap();
        let sent = line.flood(flood.times, &mut flood.bytes).await;
        let heard = line.close().await;
        assert_eq!(
            !heard.goaways.is_empty(),
            flood.cut,
            "{}: {heard:?}",
            flood.what
        );
        assert_eq!(sent < flood.times, flood.cut, "{}: {sent}", flood.what);
        if flood.cut {
            cut(&siege, seen, flood.what).await;
        }
        sent_of.push(format!("{} {sent}", flood.what));
    }
    figure(
        "attack, frames",
        &format!("sent until cut, or all: {}", sent_of.join(", ")),
    );
    siege.lift(16).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_breaks_the_protocol_ends_its_connection() {
    let siege = Siege::begin("attack, broken HTTP/2", &[], INTRUDER).await;
    let door = intruder(&siege.house);
    let mistakes = mistakes();
    for (what, bytes) in &mistakes {
        let seen = siege.audit().len();
        let mut line = Line::open(&door).await.unwrap();
        // The other end may close amid it.
        let _ = line.send(bytes).await;
        let heard = line.closed(CLOSED_WITHIN).await;
        assert!(!heard.goaways.is_empty(), "{what}: {heard:?}");
        cut(&siege, seen, what).await;
    }
    figure(
        "attack, broken HTTP/2",
        &format!("{} ways, each cut", mistakes.len()),
    );
    siege.lift(16).await;
}
