//! The callers, in a process of their own: they say on standard output what they saw, in JSON.

use portarium_identity::{ClientTls, PeerPolicy, SvidConfig, SvidManager};
use portarium_protocols::grpc::{
    ALPN, Channel, Connection,
    pb::{self, mission_service_client::MissionServiceClient},
};
use portarium_tests::{hints, mission, spiffe_id};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Status};

/// How long the last missions of a run may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What callers do, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Callers {
    #[arg(long)]
    pub port: u16,
    /// The Workload API; plaintext without.
    #[arg(long)]
    pub socket: Option<String>,
    #[arg(long, default_value_t = 64)]
    pub callers: usize,
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// Robots to send to, `r-0` and so on; each caller has some of its own.
    #[arg(long, default_value_t = 64)]
    pub robots: usize,
    #[arg(long)]
    pub seconds: f64,
    /// Before it is counted.
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Distinguishes the missions of this run.
    #[arg(long)]
    pub run: String,
    #[arg(long)]
    pub kind: Kind,
    /// Calls of each caller; as many as there is time for otherwise.
    #[arg(long)]
    pub turns: Option<u32>,
    /// Missions a second of all callers together; as many as there can be otherwise.
    #[arg(long)]
    pub rate: Option<f64>,
}

/// What a call is and when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// An empty call.
    Call,
    /// A dispatch that is answered when the robot has succeeded.
    Bridge,
    /// A dispatch that is over when the watch says `Succeeded`.
    Gateway,
    /// A dispatch whose end nobody waits for.
    Flood,
}

/// What the callers saw.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Calls or missions that came to their end in the time that counts.
    pub done: u64,
    /// The same from the first to the last, warm-up included.
    pub all: u64,
    /// The time that counts, in seconds.
    pub seconds: f64,
    /// Calls that failed.
    pub failed: u64,
    /// Missions that never ended.
    pub lost: u64,
    /// Dispatches that the gateway shed.
    pub shed: u64,
    /// From call to end, in microseconds, sorted.
    pub latencies: Vec<u64>,
    /// Done in each tenth of a second, and its time of day in seconds.
    pub tenths: Vec<(f64, u64)>,
}

impl Seen {
    /// Per second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// A quantile of the latency.
    pub fn latency(&self, part: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * part) as usize;
        Duration::from_micros(self.latencies.get(at).copied().unwrap_or_default())
    }
}

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

struct Book {
    counting: AtomicBool,
    over: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
    shed: AtomicU64,
    latencies: Mutex<Vec<u64>>,
}

/// Runs them, and prints what they saw.
pub async fn run(callers: Callers) {
    let tls = match &callers.socket {
        Some(socket) => Some(identity(socket).await),
        None => None,
    };
    let connections: Vec<_> = (0..callers.connections)
        .map(|_| {
            let target = format!("localhost:{}", callers.port).parse().unwrap();
            Arc::new(Connection::start(target, tls.clone(), "callers"))
        })
        .collect();
    for connection in &connections {
        connection.ready().await.unwrap();
    }
    let waiting = Waiting::default();
    if callers.kind == Kind::Gateway {
        let (begun, began) = oneshot::channel();
        tokio::spawn(watch(connections[0].clone(), waiting.clone(), begun));
        began.await.unwrap();
    }
    let book = Arc::new(Book {
        counting: false.into(),
        over: false.into(),
        done: 0.into(),
        failed: 0.into(),
        shed: 0.into(),
        latencies: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    for n in 0..callers.callers {
        let connection = connections[n % connections.len()].clone();
        tasks.spawn(call(
            n,
            callers.clone(),
            connection,
            waiting.clone(),
            book.clone(),
        ));
    }
    let mut seen = if callers.turns.is_some() {
        book.counting.store(true, Ordering::Release);
        end(&mut tasks).await;
        count(&book, Duration::ZERO).await
    } else {
        sleep(Duration::from_secs_f64(callers.warm_up)).await;
        book.counting.store(true, Ordering::Release);
        let seen = count(&book, Duration::from_secs_f64(callers.seconds)).await;
        book.over.store(true, Ordering::Release);
        end(&mut tasks).await;
        seen
    };
    seen.lost = tasks.len() as u64;
    seen.all = book.done.load(Ordering::Acquire);
    println!("{}", serde_json::to_string(&seen).unwrap());
}

/// The control plane's, towards the gateway.
async fn identity(socket: &str) -> ClientTls {
    let manager = SvidManager::start(SvidConfig {
        endpoint_socket: Some(socket.to_owned()),
        hint: Some(hints::CONTROL_PLANE.into()),
        ..SvidConfig::default()
    })
    .unwrap();
    manager.ready().await;
    let policy = PeerPolicy::new([spiffe_id(hints::GATEWAY).parse().unwrap()]);
    manager.client_tls(policy, ALPN)
}

/// Waits for what is under way; those tasks are left that wait in vain.
async fn end(tasks: &mut JoinSet<()>) {
    let all = async { while tasks.join_next().await.is_some() {} };
    // What has not ended by then has been lost.
    let _ = timeout(PATIENCE, all).await;
}

async fn count(book: &Book, time: Duration) -> Seen {
    let (begin, before) = (Instant::now(), book.done.load(Ordering::Acquire));
    let mut seen = Seen::default();
    let mut last = before;
    while begin.elapsed() < time {
        sleep(Duration::from_millis(100)).await;
        let done = book.done.load(Ordering::Acquire);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        seen.tenths.push((now, done - last));
        last = done;
    }
    book.counting.store(false, Ordering::Release);
    seen.done = book.done.load(Ordering::Acquire) - before;
    seen.seconds = begin.elapsed().as_secs_f64();
    seen.failed = book.failed.load(Ordering::Acquire);
    seen.shed = book.shed.load(Ordering::Acquire);
    seen.latencies = std::mem::take(&mut book.latencies.lock().unwrap());
    seen.latencies.sort_unstable();
    seen
}

async fn call(
    n: usize,
    callers: Callers,
    connection: Arc<Connection>,
    waiting: Waiting,
    book: Arc<Book>,
) {
    let pause = callers
        .rate
        .map(|rate| Duration::from_secs_f64(callers.callers as f64 / rate));
    let begin = Instant::now() + pause.unwrap_or_default().mul_f64(fastrand::f64());
    for turn in 0.. {
        if let Some(pause) = pause {
            let due = begin + pause * turn;
            tokio::time::sleep_until(due.into()).await;
        }
        let enough = callers.turns.is_some_and(|turns| turn >= turns);
        if enough || book.over.load(Ordering::Acquire) {
            return;
        }
        // Where there are too few robots for that, each has as many callers as another.
        let stride = if callers.robots < callers.callers {
            0
        } else {
            turn as usize * callers.callers
        };
        let robot = (n + stride) % callers.robots;
        let id = format!("{}-{n}-{turn}", callers.run);
        let robot = format!("r-{robot}");
        let began = Instant::now();
        let answer = insist(&callers, &connection, &robot, &id, &waiting, &book).await;
        match answer {
            Ok(()) => {
                book.done.fetch_add(1, Ordering::AcqRel);
                if book.counting.load(Ordering::Acquire) {
                    let took = began.elapsed().as_micros() as u64;
                    book.latencies.lock().unwrap().push(took);
                }
            }
            // It was given up.
            Err(status) if status.code() == Code::ResourceExhausted => return,
            Err(status) => {
                eprintln!("{id}: {status}");
                book.failed.fetch_add(1, Ordering::AcqRel);
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Asks again for a mission that was shed, since nothing was kept of it.
async fn insist(
    callers: &Callers,
    connection: &Connection,
    robot: &str,
    id: &str,
    waiting: &Waiting,
    book: &Book,
) -> Result<(), Status> {
    loop {
        let channel = connection.channel();
        let channel = channel.map_err(|down| Status::unavailable(down.reason.to_string()))?;
        let client = MissionServiceClient::new(channel);
        match one(client, callers.kind, robot, id, waiting).await {
            Err(status)
                if status.code() == Code::ResourceExhausted
                    && !book.over.load(Ordering::Acquire) =>
            {
                book.shed.fetch_add(1, Ordering::AcqRel);
                sleep(Duration::from_millis(1)).await;
            }
            answer => return answer,
        }
    }
}

async fn one(
    mut client: MissionServiceClient<Channel>,
    kind: Kind,
    robot: &str,
    id: &str,
    waiting: &Waiting,
) -> Result<(), Status> {
    let request = || pb::DispatchMissionRequest {
        fleet_id: String::new(),
        ..mission(robot, id, Duration::ZERO)
    };
    match kind {
        Kind::Call => {
            let empty = pb::GetMissionStatusRequest::default();
            client.get_mission_status(empty).await?;
        }
        Kind::Bridge => {
            client.dispatch_mission(request()).await?;
        }
        Kind::Gateway => {
            let (tell, ended) = oneshot::channel();
            waiting.lock().unwrap().insert(id.to_owned(), tell);
            accepted(&mut client, request()).await?;
            ended
                .await
                .map_err(|_| Status::unavailable("the watch has ended"))?;
        }
        Kind::Flood => accepted(&mut client, request()).await?,
    }
    Ok(())
}

async fn accepted(
    client: &mut MissionServiceClient<Channel>,
    request: pb::DispatchMissionRequest,
) -> Result<(), Status> {
    let answer = client.dispatch_mission(request).await?.into_inner();
    match answer.status() {
        pb::DispatchStatus::Dispatched => Ok(()),
        pb::DispatchStatus::GatewayUnreachable => Err(Status::resource_exhausted(answer.message)),
        _ => Err(Status::internal(answer.message)),
    }
}

/// Follows all missions on whatever connection there is.
async fn watch(connection: Arc<Connection>, waiting: Waiting, begun: oneshot::Sender<()>) {
    let mut begun = Some(begun);
    let mut position = None;
    loop {
        let Ok(channel) = connection.ready().await else {
            return;
        };
        let request = pb::WatchMissionsRequest {
            from_now: position.is_none(),
            after_position: position.unwrap_or_default(),
            ..Default::default()
        };
        let Ok(answer) = MissionServiceClient::new(channel)
            .watch_missions(request)
            .await
        else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        if let Some(begun) = begun.take() {
            begun.send(()).unwrap();
        }
        let mut updates = answer.into_inner();
        while let Ok(Some(update)) = updates.message().await {
            position = Some(update.position);
            if !matches!(update.status.as_str(), "Succeeded" | "Failed" | "Cancelled") {
                continue;
            }
            let tell = waiting.lock().unwrap().remove(&update.mission_id);
            if let Some(tell) = tell {
                // Its caller may have gone.
                let _ = tell.send(());
            }
        }
    }
}
