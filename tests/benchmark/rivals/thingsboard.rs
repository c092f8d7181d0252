//! PyPI's `thingsboard-gateway`, from REST to MQTT.
//!
//! It is made for telemetry: what is posted to it is answered at once and published some time
//! later, in packs. It can wait for an answer (`responseExpected`), but does so with a blocking
//! sleep in its only thread, and takes whichever answer comes first, mostly another's. So what
//! counts is one way, up to the arrival at a subscriber. Its TLS to the broker is 1.2 and its REST
//! server asks nobody for a certificate, so both are plaintext here.

use crate::{
    Effort,
    stage::{cpu_time, printed, resident, role},
    table::{Bound, Table},
};
use portarium_tests::{Mosquitto, Process, free_port, until_within};
use rumqttc::v5::{
    AsyncClient, Event, EventLoop, MqttOptions,
    mqttbytes::{QoS, v5::Packet},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

const CALLERS: usize = 64;
/// It takes ten seconds and more to start.
const BOOT: Duration = Duration::from_secs(120);

pub(super) async fn measure(table: &mut Table, effort: Effort) {
    table.part("rivals, thingsboard-gateway, REST to MQTT one way, plaintext, 64 callers");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let broker = Mosquitto::plaintext(path).await;
    let rest = free_port();
    configure(path, broker.port, rest);
    let (mut rates, mut cpus, mut residents) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.runs {
        // It is started for each run, since a run leaves it with a backlog.
        let gateway = start(path);
        let seen = posts(broker.port, rest, gateway.pid(), effort.seconds).await;
        rates.push(seen.arrived as f64 / seen.seconds);
        cpus.push(seen.cpu * 1e6 / seen.arrived as f64);
        residents.push(resident(gateway.pid()) as f64 / (1024.0 * 1024.0));
    }
    table.row("thingsboard-gateway", &rates, "missions/s", Bound::None);
    table.row(
        "thingsboard-gateway, CPU per mission",
        &cpus,
        "µs",
        Bound::None,
    );
    table.row(
        "thingsboard-gateway, resident",
        &residents,
        "MB",
        Bound::None,
    );
}

/// Without limits of rates, without pauses between packs, and without its log.
fn configure(dir: &Path, broker: u16, rest: u16) {
    let mut thingsboard = json!({
        "host": "127.0.0.1",
        "port": broker,
        "remoteConfiguration": false,
        "statistics": {"enable": false},
        "security": {"type": "accessToken", "accessToken": "bench"},
        "qos": 1,
        "minPackSendDelayMS": 0,
    });
    for limit in ["", "dp", "messages", "deviceMessages", "device", "deviceDp"] {
        let name = if limit.is_empty() {
            "rateLimits".into()
        } else {
            format!("{limit}RateLimits")
        };
        thingsboard[name] = "0:0,".into();
    }
    let gateway = json!({
        "thingsboard": thingsboard,
        "storage": {"type": "memory", "read_records_count": 1000, "max_records_count": 100_000},
        "grpc": {"enabled": false},
        "connectors": [{"name": "rest", "type": "rest", "configuration": "rest.json"}],
    });
    let telemetry = |key| json!({"type": "string", "key": key, "value": format!("${{{key}}}")});
    let rest = json!({
        "server": {"host": "127.0.0.1", "port": rest.to_string(), "SSL": false},
        "requestsMapping": {},
        "mapping": [{
            "endpoint": "/missions",
            "HTTPMethods": ["POST"],
            "security": {"type": "anonymous"},
            "converter": {
                "type": "json",
                "deviceInfo": {
                    "deviceNameExpressionSource": "request",
                    "deviceNameExpression": "${robotId}",
                    "deviceProfileExpressionSource": "constant",
                    "deviceProfileExpression": "robot",
                },
                "attributes": [],
                "timeseries": [telemetry("missionId"), telemetry("actionName")],
            },
        }],
    });
    let logs = json!({"version": 1, "root": {"level": "ERROR", "handlers": []}});
    for (name, value) in [("tb_gateway", gateway), ("rest", rest), ("logs", logs)] {
        fs::write(dir.join(format!("{name}.json")), value.to_string()).unwrap();
    }
}

fn start(dir: &Path) -> Process {
    let settings = format!("TB_GW_CONFIG_DIR={}", dir.display());
    let prefix = ["env".into(), "-C".into(), dir.into(), settings.into()];
    let program = super::peers("thingsboard/bin/thingsboard-gateway");
    let none: [&str; 0] = [];
    Process::start_behind(&prefix, &program, none, &dir.join("thingsboard.log"))
}

/// Callers, and what stands for the platform behind it, in a process of their own.
#[derive(Debug, Clone, clap::Args)]
pub struct Posts {
    #[arg(long)]
    broker: u16,
    #[arg(long)]
    rest: u16,
    /// Whose CPU time is told.
    #[arg(long)]
    process: u32,
    #[arg(long)]
    seconds: f64,
}

/// What arrived, in what time, and what CPU time that took; both in seconds.
#[derive(Serialize, Deserialize)]
struct Seen {
    arrived: u64,
    seconds: f64,
    cpu: f64,
}

async fn posts(broker: u16, rest: u16, process: u32, seconds: f64) -> Seen {
    let mut posts = role("posts");
    posts
        .args(["--broker", &broker.to_string()])
        .args(["--rest", &rest.to_string()])
        .args(["--process", &process.to_string()])
        .args(["--seconds", &seconds.to_string()]);
    printed(&mut posts).await
}

/// Posts as fast as it is answered, and prints what arrived.
pub async fn run(posts: Posts) {
    let arrived = Arc::<AtomicU64>::default();
    let (client, events) =
        AsyncClient::new(MqttOptions::new("platform", "127.0.0.1", posts.broker), 100);
    client.subscribe("v1/#", QoS::AtLeastOnce).await.unwrap();
    tokio::spawn(platform(client, events, arrived.clone()));
    // It takes REST requests before it is connected; the first one that arrives tells.
    until_within(BOOT, "the REST server", async || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", posts.rest)).await else {
            return false;
        };
        post(&mut BufReader::new(&mut stream), 0, 0).await.is_ok()
    })
    .await;
    until_within(BOOT, "the first of them", async || {
        arrived.load(Ordering::Acquire) > 0
    })
    .await;
    let over = Arc::<AtomicBool>::default();
    let callers: JoinSet<()> = (0..CALLERS)
        .map(|n| call(posts.rest, n, over.clone()))
        .collect();
    sleep(Duration::from_secs(1)).await;
    let (begin, before) = (Instant::now(), arrived.load(Ordering::Acquire));
    let cpu_before = cpu_time(posts.process);
    sleep(Duration::from_secs_f64(posts.seconds)).await;
    let seen = Seen {
        arrived: arrived.load(Ordering::Acquire) - before,
        seconds: begin.elapsed().as_secs_f64(),
        cpu: (cpu_time(posts.process) - cpu_before).as_secs_f64(),
    };
    over.store(true, Ordering::Release);
    callers.join_all().await;
    println!("{}", serde_json::to_string(&seen).unwrap());
}

async fn call(port: u16, n: usize, over: Arc<AtomicBool>) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut stream = BufReader::new(stream);
    for turn in 1.. {
        if over.load(Ordering::Acquire) {
            return;
        }
        post(&mut stream, n, turn).await.unwrap();
    }
}

/// One request, and its whole answer.
async fn post<S>(stream: &mut BufReader<S>, n: usize, turn: u64) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mission = json!({
        "robotId": format!("r-{n}"),
        "missionId": format!("m-{n}-{turn}"),
        "actionName": "navigate_to",
    });
    let (mission, kind) = (mission.to_string(), "application/json");
    let length = mission.len();
    let request = format!(
        "POST /missions HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{mission}"
    );
    stream.write_all(request.as_bytes()).await?;
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length]).await?;
    Ok(())
}

/// Says that there are no limits, and counts what arrives.
async fn platform(client: AsyncClient, mut events: EventLoop, arrived: Arc<AtomicU64>) {
    loop {
        let Event::Incoming(Packet::Publish(publish)) = events.poll().await.unwrap() else {
            continue;
        };
        let topic = std::str::from_utf8(&publish.topic).unwrap();
        if let Some(number) = topic.strip_prefix("v1/devices/me/rpc/request/") {
            let answer = json!({"maxInflightMessages": 1000, "rateLimits": {}});
            let topic = format!("v1/devices/me/rpc/response/{number}");
            let answered = client.publish(topic, QoS::AtLeastOnce, false, answer.to_string());
            answered.await.unwrap();
        } else if topic == "v1/gateway/telemetry" {
            let packs: Value = serde_json::from_slice(&publish.payload).unwrap();
            let robots = packs.as_object().into_iter().flat_map(|all| all.values());
            let count: usize = robots.filter_map(Value::as_array).map(Vec::len).sum();
            arrived.fetch_add(count as u64, Ordering::AcqRel);
        }
    }
}
