//! Messages that are too large, broken or not what they say, and names that mean something to
//! brokers, logs and file systems.

use crate::{http2::INTRUDER, siege::Siege};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{Request, body::Frame};
use portarium_tests::{Caller, figure, soon, spiffe_id};
use std::convert::Infallible;
use tonic::{Code, Status, body::Body};
use tower::Service as _;

/// One call, and what is answered.
struct Call {
    what: &'static str,
    path: String,
    encoding: Option<&'static str>,
    body: Vec<u8>,
    /// Or the caller leaves it open.
    ends: bool,
    code: Code,
    outcome: &'static str,
}

const SERVICE: &str = "/portarium.robotics.v1.MissionService/";

impl Call {
    fn dispatch(what: &'static str, body: Vec<u8>, code: Code, outcome: &'static str) -> Self {
        Self {
            what,
            path: format!("{SERVICE}DispatchMission"),
            encoding: None,
            body,
            ends: true,
            code,
            outcome,
        }
    }

    fn encoded(encoding: &'static str, what: &'static str, body: &[u8]) -> Self {
        Self {
            encoding: Some(encoding),
            ..Self::dispatch(what, message(1, body), Code::Unimplemented, "UNIMPLEMENTED")
        }
    }

    fn to(path: String, what: &'static str) -> Self {
        Self {
            path,
            ..Self::dispatch(what, message(0, &[]), Code::Unimplemented, "UNIMPLEMENTED")
        }
    }

    /// The gateway's answer.
    async fn make(&self, caller: &Caller) -> Status {
        let chunks = self.body.chunks(16_000).map(Bytes::copy_from_slice);
        let frames = stream::iter(
            chunks
                .map(Frame::data)
                .map(Ok::<_, Infallible>)
                .collect::<Vec<_>>(),
        );
        let body = if self.ends {
            Body::new(StreamBody::new(frames))
        } else {
            Body::new(StreamBody::new(frames.chain(stream::pending())))
        };
        let mut request = Request::post(&self.path).header("content-type", "application/grpc");
        if let Some(encoding) = self.encoding {
            request = request.header("grpc-encoding", encoding);
        }
        let answer = caller.channel().unwrap().call(request.body(body).unwrap());
        let answer = soon(self.what, answer).await.unwrap();
        if let Some(status) = Status::from_header_map(answer.headers()) {
            return status;
        }
        let trailers = soon(self.what, answer.into_body().collect()).await.unwrap();
        Status::from_header_map(trailers.trailers().unwrap()).unwrap()
    }
}

/// A gRPC message with its prefix.
fn message(flags: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[flags], &length[..], bytes].concat()
}

/// A length-delimited protobuf field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 128 {
        all.push(u8::try_from(length % 128).unwrap() | 128);
        length /= 128;
    }
    all.push(u8::try_from(length).unwrap());
    all.extend(bytes);
    all
}

/// `ActionParameters` with so many keys, as field 8 of a dispatch.
fn parameters(count: u32) -> Vec<u8> {
    let entry = |n: u32| {
        let key = field(1, format!("{n:x}").as_bytes());
        field(1, &[key, field(2, b"")].concat())
    };
    let entries: Vec<u8> = (0..count).flat_map(entry).collect();
    field(8, &entries)
}

fn calls() -> Vec<Call> {
    let dispatch = Call::dispatch;
    let too_large =
        |what, bytes: &[u8]| dispatch(what, message(0, bytes), Code::OutOfRange, "OUT_OF_RANGE");
    let broken = |what, body| dispatch(what, body, Code::Internal, "INTERNAL");
    let bomb = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], &[0; 60_000]].concat();
    let promise = [&[0, 255, 255, 255, 255][..], &[0; 64]].concat();
    vec![
        too_large(
            "one byte more than the limit",
            &field(2, &[b'x'; 128 * 1024 - 3]),
        ),
        too_large("ten megabytes", &field(2, &vec![b'x'; 10_000_000])),
        too_large("a million parameters", &parameters(1_000_000)),
        Call {
            body: promise,
            ends: false,
            ..too_large("four gigabytes, it says", &[])
        },
        Call::encoded("gzip", "a bomb of gzip", &bomb),
        Call::encoded("zstd", "zstd", &bomb),
        Call::encoded("../../x", "an encoding that is a path", &bomb),
        broken("compressed, without saying how", message(1, &bomb)),
        broken("a flag that is none", message(7, &bomb)),
        broken("no protobuf", message(0, &[0xff; 64])),
        broken(
            "a text that is not UTF-8",
            message(0, &field(1, &[0xff; 64])),
        ),
        broken("groups in groups", message(0, &[0x7b; 100_000])),
        broken(
            "a field longer than its message",
            message(0, &[0x0a, 0xff, 0xff, 0xff, 0x7f]),
        ),
        broken(
            "a message that breaks off",
            message(0, &field(1, b"m"))[..6].to_vec(),
        ),
        broken("no message", Vec::new()),
        Call::to(format!("{SERVICE}Reboot"), "an unknown method"),
        Call::to(
            "/other.Service/DispatchMission".into(),
            "an unknown service",
        ),
        Call::to(format!("{SERVICE}../../etc/passwd"), "a path that climbs"),
        Call::to(format!("/{}", "x".repeat(10_000)), "a path of 10 kB"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn messages_that_cannot_be_read_are_refused_and_audited() {
    let siege = Siege::begin("attack, messages", &["intruder"], INTRUDER).await;
    let port = siege.house.gateway.ports.grpc;
    let intruder = Caller::with(&siege.house.identities, "intruder", port).await;
    let id = spiffe_id("intruder");
    let calls = calls();
    for call in &calls {
        let seen = siege.audit().len();
        let status = call.make(&intruder).await;
        assert_eq!(status.code(), call.code, "{}: {status:?}", call.what);
        let line = siege
            .audited(seen, call.what, |line| {
                line["caller"] == id && line["decision"] == "refused"
            })
            .await;
        assert_eq!(line["outcome"], call.outcome, "{}: {line}", call.what);
        assert_eq!(
            line["reason"].as_str().unwrap_or_default(),
            status.message()
        );
        let known = call.path == format!("{SERVICE}DispatchMission");
        let method = if known {
            "DispatchMission"
        } else {
            "not known"
        };
        assert_eq!(line["method"], method, "{}", call.what);
    }
    drop(intruder);
    figure(
        "attack, messages",
        &format!("{} kinds, 0 reached the engine, each audited", calls.len()),
    );
    siege.lift(48).await;
}
