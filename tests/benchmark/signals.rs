//! Stops and cancels: from the call to the arrival at a subscriber, against a bare call and
//! publish on connections of their own in the same seconds.

use crate::{
    Effort,
    callers::Kind,
    stage::{Rival, Stage, printed, role},
    table::{Bound, Table},
};
use portarium_identity::{PeerPolicy, SvidConfig, SvidManager};
use portarium_protocols::grpc::{
    ALPN, Connection,
    pb::{self, mission_service_client::MissionServiceClient},
};
use portarium_tests::{hints, mission, spiffe_id, stop};
use rumqttc::{
    NetworkOptions, TlsConfiguration, Transport,
    v5::{
        AsyncClient, Event, MqttOptions,
        mqttbytes::{QoS, v5::Packet},
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

/// Robots that only the signals use, beyond those of the callers.
pub const SPARE_ROBOTS: usize = 4;
/// Between two signals.
const PAUSE: Duration = Duration::from_millis(15);
/// After so long a signal counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Signals sent one after another, in a process of their own.
#[derive(Debug, Clone, clap::Args)]
pub struct Signals {
    #[arg(long)]
    gateway: u16,
    #[arg(long)]
    bare: u16,
    #[arg(long)]
    broker: u16,
    #[arg(long)]
    socket: String,
    #[arg(long)]
    first_robot: usize,
    #[arg(long)]
    seconds: f64,
    #[arg(long)]
    run: String,
}

/// Milliseconds from the call to the arrival.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Took {
    bare: Vec<f64>,
    stop: Vec<f64>,
    cancel: Vec<f64>,
    lost: u64,
}

/// At 70 % of the measured maximum, and under callers that never wait.
pub async fn latency(stage: &Stage, table: &mut Table, effort: Effort, maximum: f64) {
    let certificates = stage.path().join("bare");
    let port = stage.broker.port.to_string();
    let to = ["mqtt", "--tenant", "bare-stop", "--broker", &port];
    let bare = Rival::start(stage.path(), "bare-stop", &certificates, &to).await;
    let busy = [("--rate", format!("{:.0}", 0.7 * maximum))];
    rows(stage, table, effort, &bare, Load::Busy(&busy)).await;
    rows(stage, table, effort, &bare, Load::Flood).await;
}

#[derive(Clone, Copy)]
enum Load<'a> {
    Busy(&'a [(&'a str, String)]),
    Flood,
}

async fn rows(stage: &Stage, table: &mut Table, effort: Effort, bare: &Rival, load: Load<'_>) {
    let (name, bound) = match load {
        Load::Busy(_) => ("at 70 % load", 2.0),
        Load::Flood => ("at overload", 3.0),
    };
    table.part(&format!("stops and cancels {name}"));
    let mut ratios = [Vec::new(), Vec::new()];
    let mut p99s = [Vec::new(), Vec::new(), Vec::new()];
    let (mut lost, mut shed, mut failed) = (0, 0, 0);
    for _ in 0..effort.runs {
        let signals = signals(stage, bare, effort.seconds);
        let (seen, took) = match load {
            Load::Busy(more) => {
                let side = stage.side(Kind::Gateway);
                tokio::join!(side.callers(effort.seconds + 1.0, more), signals)
            }
            Load::Flood => {
                let many = [("--callers", "256".to_owned())];
                let side = stage.side(Kind::Flood);
                tokio::join!(side.callers(effort.seconds + 1.0, &many), signals)
            }
        };
        let reference = quantile(&took.bare, 0.99);
        let (stops, cancels) = (quantile(&took.stop, 0.99), quantile(&took.cancel, 0.99));
        p99s[0].push(reference);
        p99s[1].push(stops);
        p99s[2].push(cancels);
        ratios[0].push(stops / reference);
        ratios[1].push(cancels / reference);
        lost += took.lost;
        shed += seen.shed;
        failed += seen.failed;
    }
    let [reference, stops, cancels] = &p99s;
    table.row("bare call and publish, p99", reference, "ms", Bound::None);
    table.row("stop, p99", stops, "ms", Bound::None);
    table.row(
        "stop, times the bare call and publish",
        &ratios[0],
        "",
        Bound::AtMost(bound),
    );
    table.row("cancel, p99", cancels, "ms", Bound::None);
    table.row(
        "cancel, times the bare call and publish",
        &ratios[1],
        "",
        Bound::AtMost(bound),
    );
    let none = Bound::AtMost(0.0);
    table.row("signals lost", &[lost as f64], "", none);
    table.row("calls that failed", &[failed as f64], "", none);
    if matches!(load, Load::Flood) {
        let some = Bound::AtLeast(1.0);
        table.row("dispatches shed", &[shed as f64], "", some);
    }
}

fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1) as f64 * part) as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Starts the process that sends them, once the load has warmed up.
fn signals(stage: &Stage, bare: &Rival, seconds: f64) -> impl Future<Output = Took> + use<> {
    let mut command = role("signals");
    command
        .args(["--gateway", &stage.gateway.ports.grpc.to_string()])
        .args(["--bare", &bare.port.to_string()])
        .args(["--broker", &stage.broker.port.to_string()])
        .args(["--socket", &stage.identities.endpoint()])
        .args(["--first-robot", &stage.callers_robots.to_string()])
        .args(["--seconds", &seconds.to_string()])
        .args(["--run", &format!("signals{}", fastrand::u32(..))]);
    async move {
        sleep(Duration::from_secs(1)).await;
        printed(&mut command).await
    }
}

/// When a message about this mission or stop arrived.
type Arrivals = Arc<Mutex<HashMap<String, oneshot::Sender<Instant>>>>;

/// Sends them, and prints how long each took.
pub async fn run(args: Signals) {
    let manager = |hint: &str| {
        SvidManager::start(SvidConfig {
            endpoint_socket: Some(args.socket.clone()),
            hint: Some(hint.into()),
            ..SvidConfig::default()
        })
        .unwrap()
    };
    let (caller, fleet) = (manager(hints::CONTROL_PLANE), manager("fleet"));
    caller.ready().await;
    fleet.ready().await;
    let arrivals = Arrivals::default();
    subscribe(&args, &fleet, arrivals.clone()).await;
    let policy = || PeerPolicy::new([spiffe_id(hints::GATEWAY).parse().unwrap()]);
    let connect = |port: u16| {
        let target = format!("localhost:{port}").parse().unwrap();
        Connection::start(target, Some(caller.client_tls(policy(), ALPN)), "signals")
    };
    let (gateway, bare) = (connect(args.gateway), connect(args.bare));
    gateway.ready().await.unwrap();
    bare.ready().await.unwrap();
    let mut took = Took::default();
    let begin = Instant::now();
    for turn in 0.. {
        if begin.elapsed().as_secs_f64() >= args.seconds {
            break;
        }
        let robot = format!("r-{}", args.first_robot + turn % SPARE_ROBOTS);
        let id = format!("{}-{turn}", args.run);
        let way = Way {
            arrivals: &arrivals,
            robot,
            id,
        };
        took.note(|took| &mut took.bare, way.stop(&bare, "bare").await);
        took.note(|took| &mut took.stop, way.stop(&gateway, "stop").await);
        took.note(|took| &mut took.cancel, way.cancel(&gateway).await);
        sleep(PAUSE).await;
    }
    println!("{}", serde_json::to_string(&took).unwrap());
}

impl Took {
    fn note(&mut self, of: impl FnOnce(&mut Self) -> &mut Vec<f64>, took: Option<Duration>) {
        match took {
            Some(took) => of(self).push(took.as_secs_f64() * 1e3),
            None => self.lost += 1,
        }
    }
}

struct Way<'a> {
    arrivals: &'a Arrivals,
    robot: String,
    id: String,
}

impl Way<'_> {
    async fn stop(&self, to: &Connection, kind: &str) -> Option<Duration> {
        let id = format!("{}-{kind}", self.id);
        let arrival = self.expect(&id);
        let began = Instant::now();
        let mut client = MissionServiceClient::new(to.channel().ok()?);
        let call = client.dispatch_mission(stop(&self.robot, &id));
        let (answer, arrival) = tokio::join!(call, timeout(PATIENCE, arrival));
        answer.ok()?;
        Some(arrival.ok()?.ok()? - began)
    }

    /// Of a mission that its robot has begun.
    async fn cancel(&self, gateway: &Connection) -> Option<Duration> {
        let id = format!("{}-journey", self.id);
        let begun = self.expect(&id);
        let mut client = MissionServiceClient::new(gateway.channel().ok()?);
        let journey = pb::DispatchMissionRequest {
            fleet_id: String::new(),
            ..mission(&self.robot, &id, Duration::from_secs(60))
        };
        loop {
            let answer = client
                .dispatch_mission(journey.clone())
                .await
                .ok()?
                .into_inner();
            if answer.status() == pb::DispatchStatus::Dispatched {
                break;
            }
            // At overload a dispatch is shed.
            sleep(Duration::from_millis(5)).await;
        }
        timeout(PATIENCE, begun).await.ok()?.ok()?;
        let arrival = self.expect(&id);
        let began = Instant::now();
        let cancel = pb::CancelMissionRequest {
            mission_id: id.clone(),
            ..Default::default()
        };
        let call = client.cancel_mission(cancel);
        let (answer, arrival) = tokio::join!(call, timeout(PATIENCE, arrival));
        answer.ok()?;
        Some(arrival.ok()?.ok()? - began)
    }

    fn expect(&self, id: &str) -> oneshot::Receiver<Instant> {
        let (tell, arrival) = oneshot::channel();
        self.arrivals.lock().unwrap().insert(id.to_owned(), tell);
        arrival
    }
}

async fn subscribe(args: &Signals, fleet: &SvidManager, arrivals: Arrivals) {
    let policy = PeerPolicy::new([spiffe_id(hints::BROKER).parse().unwrap()]);
    let (tls, _) = fleet.client_tls(policy, &[]).config().unwrap();
    let mut options =
        MqttOptions::new(format!("subscriber-{}", args.run), "localhost", args.broker);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)))
        .set_network_options(network);
    let (client, mut events) = AsyncClient::new(options, 10);
    for filter in [
        "portarium/+/robots/+/commands/+",
        "portarium/acme/missions/+/cancel",
    ] {
        client.subscribe(filter, QoS::AtMostOnce).await.unwrap();
    }
    let (ready, subscribed) = oneshot::channel();
    tokio::spawn(async move {
        let (_client, mut ready, mut answers) = (client, Some(ready), 0);
        loop {
            match events.poll().await.unwrap() {
                Event::Incoming(Packet::SubAck(_)) => {
                    answers += 1;
                    if answers == 2
                        && let Some(ready) = ready.take()
                    {
                        ready.send(()).unwrap();
                    }
                }
                Event::Incoming(Packet::Publish(publish)) => {
                    let now = Instant::now();
                    let topic = std::str::from_utf8(&publish.topic).unwrap();
                    let id = topic
                        .trim_end_matches("/cancel")
                        .rsplit('/')
                        .next()
                        .unwrap();
                    if let Some(tell) = arrivals.lock().unwrap().remove(id) {
                        // It may have been given up.
                        let _ = tell.send(now);
                    }
                }
                _ => {}
            }
        }
    });
    subscribed.await.unwrap();
}
