//! Keys of the issuer that do not come: nothing waits for them, least of all a stop.

use super::{AUDIENCE, HOUR, ISSUER, Issuer, Shown, cli::run, try_once};
use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, grpc::GrpcRobots};
use portarium_tests::{
    Caller, Config, GatewayProcess, Identities, figure, grpc_robot, hints, init, soon, status_of,
    stop, until,
};
use serde_json::json;
use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::Code;

/// Serves keys, or misbehaves; counts who asks.
struct KeyServer {
    port: u16,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

#[derive(Clone)]
enum Says {
    Keys(String),
    Nothing,
    Endless,
}

impl KeyServer {
    async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (says, asked) = (Arc::new(Mutex::new(says)), Arc::new(AtomicUsize::new(0)));
        let (now, count) = (says.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Relaxed);
                let says = now.lock().unwrap().clone();
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    match says {
                        Says::Keys(keys) => {
                            let length = keys.len();
                            let head =
                                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                            let _ = stream.write_all((head + &keys).as_bytes()).await;
                        }
                        Says::Nothing => tokio::time::sleep(HOUR).await,
                        Says::Endless => {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                            while stream.write_all(&[b' '; 65_536]).await.is_ok() {}
                        }
                    }
                });
            }
        });
        Self { port, says, asked }
    }

    fn line(&self) -> String {
        format!(
            "keys_url = \"http://127.0.0.1:{}/keys\"\nkeys_refresh = \"200ms\"",
            self.port
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_come_hold_up_no_call_and_no_stop_and_those_that_came_stay() {
    let issuer = Issuer::new();
    let server = KeyServer::start(Says::Nothing).await;
    init();
    let dir = tempfile::tempdir().unwrap();
    let identities = Identities::living(dir.path(), &["g"], HOUR).await;
    let log = ExecutionLog::in_memory();
    let robot = grpc_robot(&identities, RobotConfig::new("g".parse().unwrap()), &log).await;
    let config = Config::new(dir.path(), &identities)
        .grpc_robot("g", robot.local_addr().port(), "")
        .text(&format!(
            "[tokens]\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\nmethods = [\"DispatchMission\"]\n{}\n",
            server.line()
        ));
    let gateway = GatewayProcess::launch(dir.path(), &config);
    let manager = identities.manager(hints::CONTROL_PLANE).await;
    let shown = Arc::<Shown>::default();
    let caller = soon(
        "a connection",
        Caller::showing(Some(shown.clone() as _), &manager, gateway.ports.grpc),
    )
    .await;
    shown.show(issuer.mint(&manager.current().unwrap().thumbprint, json!({})));
    caller.robots_reachable(&["g"]).await;

    let timed = async |what: &str| {
        let began = Instant::now();
        caller.accepted(&stop("g", what)).await;
        let stopped = began.elapsed();
        let began = Instant::now();
        let tried = try_once(&caller, &format!("m-{what}")).await;
        (tried, stopped.max(began.elapsed()))
    };
    let (none, mut slowest) = timed("silent").await;
    assert_eq!(none.unwrap_err().code(), Code::Unavailable);
    // So that stops are let through to it.
    let (ready, why) = status_of(gateway.ports.health).await;
    assert_eq!(ready, 200, "{why}");
    assert!(
        why.contains("degraded: tokens: no keys of the issuer"),
        "{why}"
    );

    *server.says.lock().unwrap() = Says::Keys(issuer.keys());
    let shows = async |expected: bool, what: &str| {
        until(what, async || {
            status_of(gateway.ports.health).await.1.contains(what) == expected
        })
        .await;
    };
    shows(false, "degraded: tokens").await;
    let (good, _) = timed("keys").await;
    good.unwrap();
    for (what, says) in [("huge", Says::Endless), ("slow", Says::Nothing)] {
        *server.says.lock().unwrap() = says;
        let before = server.asked.load(Relaxed);
        until("the keys are asked for", async || {
            server.asked.load(Relaxed) > before + 1
        })
        .await;
        let (good, took) = timed(what).await;
        good.unwrap();
        slowest = slowest.max(took);
        shows(
            true,
            "degraded: tokens: the keys of the issuer of access tokens cannot be renewed",
        )
        .await;
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    figure(
        "tokens",
        &format!(
            "keys that are silent, huge or slow: no call and no stop took longer than {slowest:.1?}"
        ),
    );
}

/// A gateway whose key file is not there, and its robot.
async fn without_a_key_file(more: &str) -> (tempfile::TempDir, Identities, Config, GrpcRobots) {
    init();
    let dir = tempfile::tempdir().unwrap();
    let identities = Identities::living(dir.path(), &["g"], HOUR).await;
    let log = ExecutionLog::in_memory();
    let robot = grpc_robot(&identities, RobotConfig::new("g".parse().unwrap()), &log).await;
    let keys = dir.path().join("keys.json");
    let config = Config::new(dir.path(), &identities)
        .grpc_robot("g", robot.local_addr().port(), "")
        .text(&format!(
            "[tokens]\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\nmethods = [\"DispatchMission\"]\nkeys_refresh = \"200ms\"\nkeys_file = \"{}\"\n{more}\n",
            keys.display()
        ));
    (dir, identities, config, robot)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_its_key_file_starts_and_takes_stops_and_is_told_of_it() {
    let (dir, identities, config, _robot) = without_a_key_file("").await;
    let gateway = GatewayProcess::start(dir.path(), &config).await;
    let (_, why) = status_of(gateway.ports.health).await;
    assert!(why.contains("keys.json: No such file"), "{why}");
    let shown = Arc::<Shown>::default();
    let manager = identities.manager(hints::CONTROL_PLANE).await;
    let caller = Caller::showing(Some(shown.clone() as _), &manager, gateway.ports.grpc).await;
    caller.robots_reachable(&["g"]).await;
    caller.accepted(&stop("g", "without-keys")).await;

    let file = dir.path().join("gateway.toml").display().to_string();
    let (code, _, why) = run(&["check-config", &file], &[]);
    assert_eq!(code, Some(78), "{why}");
    assert!(why.contains("tokens.keys_file: "), "{why}");

    let issuer = Issuer::new();
    fs::write(dir.path().join("keys.json"), issuer.keys()).unwrap();
    shown.show(issuer.mint(&manager.current().unwrap().thumbprint, json!({})));
    until("the keys are there", async || {
        try_once(&caller, "m").await.is_ok()
    })
    .await;
    let (code, _, why) = run(&["check-config", &file], &[]);
    assert_eq!(code, Some(0), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_stops_need_a_token_as_well_a_gateway_without_keys_is_not_ready() {
    let (dir, _identities, config, _robot) = without_a_key_file("stops = true").await;
    let gateway = GatewayProcess::launch(dir.path(), &config);
    let mut why = String::new();
    until("a reason", async || {
        let (status, told) = soon("health", status_of(gateway.ports.health)).await;
        why = told;
        status == 503 && why.contains("tokens: no keys of the issuer")
    })
    .await;
    assert!(!why.contains("degraded: tokens"), "{why}");
}
