//! A gateway that stands still past the end of its SVID.

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig};
use portarium_tests::{
    Caller, Config, Entered, GatewayProcess, INSISTENCE, Identities, Stranger, audit, figure,
    grpc_robot, hints, init, mission, scaled, since, soon, status_of, until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, task::JoinSet, time::sleep};
use tokio_rustls::client::TlsStream;

/// How long SVIDs live.
const LIFE: Duration = Duration::from_secs(10);

/// How long after waking up all has to be well again.
const SOON: Duration = Duration::from_secs(2);

/// Whoever comes meanwhile waits in the listener's queue, or behind its first bytes: with an SVID that
/// ends before the gateway wakes up. And who was connected is still.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "on the embedded authority, or on SPIRE: run by tests/run"]
async fn a_gateway_that_stood_still_past_its_svid_neither_presents_nor_accepts_what_has_ended() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::living(dir, &["g"], LIFE).await;
    let log = ExecutionLog::in_memory();
    let robot = RobotConfig::new("g".parse().unwrap());
    let robot = grpc_robot(&identities, robot, &log).await;
    let own = identities.manager(hints::GATEWAY).await;
    let control_plane = identities.manager(hints::CONTROL_PLANE).await;
    let config = Config::new(dir, &identities).grpc_robot("g", robot.local_addr().port(), "");
    let gateway = GatewayProcess::start(dir, &config).await;
    let port = gateway.ports.grpc;
    let caller = Caller::control_plane(&identities, port).await;
    caller.robots_reachable(&["g"]).await;

    for round in 0..scaled(1) {
        // Some have come and said nothing yet.
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        sleep(Duration::from_millis(200)).await;
        let held = control_plane.current().unwrap();
        // And one is in, and does not mind the time.
        let mut stays = Stranger::holding(&held).stay(port).await.unwrap();
        gateway.signal(Signal::STOP);
        // Each thread stops at its next turn: what it sends until then is good.
        until("the gateway to stand still", async || {
            stands_still(gateway.pid())
        })
        .await;
        let stopped = Instant::now();
        let last = own.current().unwrap().not_after.max(held.not_after);
        let mut waiting = JoinSet::new();
        for stream in silent {
            let stranger = Stranger::holding(&held);
            waiting.spawn(async move { stranger.enter_on(stream).await });
        }
        for _ in 0..8 {
            let stranger = Stranger::holding(&held);
            waiting.spawn(async move { stranger.enter(port).await });
        }
        let over = last + Duration::from_secs(2);
        sleep(over.duration_since(SystemTime::now()).unwrap()).await;

        let woke = SystemTime::now();
        gateway.signal(Signal::CONT);
        let began = Instant::now();
        let stood = since(stopped);
        let cut = tokio::spawn(async move { ended(&mut stays).await });
        until("readiness", async || {
            status_of(gateway.ports.health).await.0 == 200
        })
        .await;
        let ready = began.elapsed();
        caller.robots_reachable(&["g"]).await;
        let name = format!("after-{round}");
        let request = mission("g", &name, Duration::from_millis(20));
        caller.insist(&request, INSISTENCE).await;
        let served = began.elapsed();
        let closed = soon("the old connection's end", cut).await.unwrap() - began;

        let came: Vec<Entered> = waiting.join_all().await;
        let presented: Vec<_> = came.iter().filter_map(|came| came.not_after).collect();
        let ended = presented.iter().filter(|end| **end < woke).count();
        let entered = came.iter().filter(|came| came.entered.is_ok()).count();
        let audit = audit(&gateway.audit_file());
        let told = audit.iter().filter(|line| is_refusal(line)).count();
        figure(
            "suspend",
            &format!(
                "stood still for {stood}: {} handshakes had waited, {} were shown an SVID, {ended} \
                 of them one that had ended, {entered} got in with one that had; one that was \
                 connected is cut after {closed:.1?}, ready after {ready:.1?}, a mission after {served:.1?}; \
                 {told} lines in the audit",
                came.len(),
                presented.len(),
            ),
        );
        assert_eq!((ended, entered), (0, 0), "{came:#?}");
        assert!(told > 0, "{audit:#?}");
        assert!(closed < SOON && ready < SOON, "{closed:?}, {ready:?}");
    }
}

/// Whether all threads of a process are stopped.
fn stands_still(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.into_iter().all(|thread| {
        let status = fs::read_to_string(thread.unwrap().path().join("status"));
        status.is_ok_and(|status| status.contains("\nState:\tT"))
    })
}

/// Reads whatever comes, and says when it ended.
async fn ended(stream: &mut TlsStream<TcpStream>) -> Instant {
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    Instant::now()
}

fn is_refusal(line: &Value) -> bool {
    line["method"] == "handshake" && line["decision"] == "refused"
}
