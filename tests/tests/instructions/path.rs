//! The way of a mission through the gateway, without the wires.

use http_body_util::{BodyExt as _, Full};
use hyper::http::Request;
use portarium_gateway::{
    audit::{Audit, Rotation},
    clock::SystemClock,
    engine::{Engine, EngineObserver, Limits, RobotSpec, World},
    journal::{Journal, Opened, Retention, Writer},
    north::{SERVICE, Service, ServiceObserver},
    policy::{Actions, Method, Policy, Rule, Selection},
};
use portarium_identity::{Peer, SpiffeId, token::Thumbprint};
use portarium_protocols::{
    adapter::{
        Adapter, Cancel, Disbelieved, DispatchError, Handover, Link, Reconciled, Report, Said,
        SignalError, Speaker, StopAnswer, Update,
    },
    grpc::pb::{self, DispatchStatus},
    ids::RobotId,
    mission::{Command, MissionStatus},
};
use portarium_tests::{mission, stop};
use prost::Message as _;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::yield_now, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceExt as _;

/// How often each is done.
pub const TIMES: u64 = 50;

/// A robot of which nothing has been asked yet, so that what is done once is not counted.
const FIRST: u64 = TIMES;

/// The shipped service, engine and journal, and robots that obey. The journal's writer is driven by
/// hand, each append a commit of its own.
pub struct Path {
    routes: Routes,
    journal: Journal,
    writer: Writer,
    updates: mpsc::Sender<Update>,
    audit: Audit,
    dispatches: Vec<Request<Full<bytes::Bytes>>>,
    reports: Vec<Report>,
    stops: Vec<Request<Full<bytes::Bytes>>>,
    engine: Engine,
    _dir: TempDir,
}

impl Path {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let retention = Retention {
            keep_for: Duration::from_secs(3600),
            at_most: 100_000,
        };
        let file = dir.path().join("journal.sqlite");
        let Opened {
            journal,
            writer,
            loaded,
        } = Journal::open(&file, retention, &SystemClock).unwrap();
        let world = World {
            clock: Arc::new(SystemClock),
            observer: Arc::new(Deaf),
            limits: Limits {
                open_missions: 10_000,
            },
        };
        let robots = (0..=TIMES).map(robot).collect();
        let (updates, received) = mpsc::channel(16);
        let engine = Engine::start(world, journal.clone(), loaded, robots, received).unwrap();
        let rotation = Rotation {
            bytes: u64::MAX,
            keep: 1,
        };
        let audit = Audit::open(&dir.path().join("audit.jsonl"), rotation).unwrap();
        let policy = Arc::new(Arc::new(Policy::new(vec![everything()])).into());
        let service = Service::new(
            engine.clone(),
            policy,
            audit.clone(),
            None,
            None,
            Arc::new(Deaf),
            CancellationToken::new(),
        );
        let (routes, _) = service.routes().unwrap();
        let numbers = || 0..TIMES;
        let mut path = Self {
            routes: routes.prepare(),
            journal,
            writer,
            updates,
            audit,
            dispatches: numbers().map(|n| call(&dispatch(n))).collect(),
            reports: numbers().map(report).collect(),
            stops: numbers().map(|n| call(&stop_of(n))).collect(),
            engine,
            _dir: dir,
        };
        path.settle().await;
        path.ask(call(&dispatch(FIRST))).await;
        path.report(report(FIRST)).await;
        path.ask(call(&stop_of(FIRST))).await;
        path
    }

    /// Each to a robot that is idle, until it is handed over.
    pub async fn dispatches(&mut self) {
        for request in std::mem::take(&mut self.dispatches) {
            self.ask(request).await;
        }
    }

    /// Each robot's word that it has begun.
    pub async fn status_updates(&mut self) {
        for report in std::mem::take(&mut self.reports) {
            self.report(report).await;
        }
    }

    /// Each of a robot amid its mission.
    pub async fn stops(&mut self) {
        for request in std::mem::take(&mut self.stops) {
            self.ask(request).await;
        }
    }

    /// What was done is what was meant to be.
    pub async fn end(self) {
        for n in 0..=TIMES {
            let status = async |id: String| {
                let view = self.engine.status(&id.parse().unwrap()).await.unwrap();
                view.unwrap().state
            };
            let mission = status(dispatch(n).mission_id).await;
            assert_eq!(mission.status, MissionStatus::Executing);
            assert!(mission.cancel_requested);
            let stop = status(stop_of(n).mission_id).await;
            assert_eq!(stop.status, MissionStatus::Executing);
        }
        assert_eq!(self.audit.counts().dropped, 0);
    }

    async fn ask(&mut self, request: Request<Full<bytes::Bytes>>) {
        let routes = self.routes.clone();
        let call = tokio::spawn(async move {
            let answer = routes.oneshot(request).await.unwrap();
            answer.into_body().collect().await.unwrap().to_bytes()
        });
        self.settle().await;
        let answer = call.await.unwrap();
        let answer = pb::DispatchMissionResponse::decode(&answer[FRAME..]).unwrap();
        assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
    }

    async fn report(&mut self, report: Report) {
        self.updates.send(Update::Report(report)).await.unwrap();
        self.settle().await;
    }

    /// Lets everything be done that can be done now.
    async fn settle(&mut self) {
        const ROUNDS: usize = 8;
        let mut idle = 0;
        while idle < ROUNDS {
            yield_now().await;
            idle += 1;
            if self.journal.backlog() > 0 {
                let batch = self.writer.receive().await.unwrap();
                self.writer.commit(batch).unwrap();
                idle = 0;
            }
        }
    }
}

fn robot(n: u64) -> RobotSpec {
    RobotSpec {
        id: robot_id(n),
        fleet: Some("fleet".parse().unwrap()),
        adapter_name: "test",
        address: "test".into(),
        actions: ["navigate_to".to_owned()].into(),
        idempotent: true,
        deliver_within: Duration::from_secs(3600),
        queue: 10,
        adapter: Some(Arc::new(Obedient)),
    }
}

fn robot_id(n: u64) -> RobotId {
    format!("robot-{n}").parse().unwrap()
}

fn everything() -> Rule {
    Rule {
        peers: vec!["spiffe://a.b/ns/*/sa/control-plane/*".parse().unwrap()],
        methods: Method::ALL.into_iter().collect(),
        robots: Selection::All,
        fleets: Selection::All,
        actions: Actions::All,
    }
}

fn dispatch(n: u64) -> pb::DispatchMissionRequest {
    let id = format!("mission-{n}");
    mission(robot_id(n).as_str(), &id, Duration::from_secs(60))
}

fn stop_of(n: u64) -> pb::DispatchMissionRequest {
    stop(robot_id(n).as_str(), &format!("stop-{n}"))
}

fn report(n: u64) -> Report {
    Report {
        speaker: Speaker::Robot(robot_id(n)),
        said: Said::Now,
        mission: dispatch(n).mission_id.parse().unwrap(),
        status: MissionStatus::Executing,
        action_execution_id: format!("execution-{n}"),
        observed_at: "2026-01-02T03:04:05Z".into(),
        detail: "on its way".into(),
    }
}

/// Before each message of gRPC: whether it is compressed, and its length.
const FRAME: usize = 5;

fn call(message: &pb::DispatchMissionRequest) -> Request<Full<bytes::Bytes>> {
    let length = u32::try_from(message.encoded_len()).unwrap();
    let mut body = vec![0];
    body.extend(length.to_be_bytes());
    message.encode(&mut body).unwrap();
    let now = SystemTime::now();
    let peer = Peer {
        spiffe_id: SpiffeId::new("spiffe://a.b/ns/plant/sa/control-plane/pod-1").unwrap(),
        serial: "0123456789abcdef".into(),
        thumbprint: Thumbprint::of(&[].as_slice().into()),
        not_after: now,
        authorities: Vec::new(),
        own_generation: 1,
        own_not_after: now,
        own_deadline: Instant::now(),
    };
    Request::post(format!("/{SERVICE}/DispatchMission"))
        .header("content-type", "application/grpc")
        .extension(Arc::new(peer))
        .body(Full::from(body))
        .unwrap()
}

/// There, and does as it is told.
struct Obedient;

#[tonic::async_trait]
impl Adapter for Obedient {
    async fn dispatch(&self, _: Arc<Command>, _: Duration) -> Result<Handover, DispatchError> {
        Ok(Handover::Accepted)
    }
    async fn cancel(&self, _: Arc<Cancel>) -> Result<(), SignalError> {
        Ok(())
    }
    async fn stop(&self, _: Arc<Command>) -> Result<StopAnswer, SignalError> {
        Ok(StopAnswer::Accepted)
    }
    async fn stops_landed(&self, _: &RobotId) {}
    async fn reconcile(&self, _: Arc<Command>) -> Result<Reconciled, SignalError> {
        Ok(Reconciled::CannotAsk)
    }
    fn settle(&self, _: &Command) {}
    fn link(&self, _: &RobotId) -> Link {
        Link::Up
    }
}

/// Metrics are atomics; nobody listens here.
struct Deaf;

impl ServiceObserver for Deaf {
    fn token_checked(&self, _: &'static str) {}
    fn dispatched(&self, _: DispatchStatus, _: Duration) {}
}

impl EngineObserver for Deaf {
    fn entered(&self, _: &'static str, _: Option<MissionStatus>, _: MissionStatus) {}
    fn recovered(&self, _: &'static str, _: MissionStatus) {}
    fn forgotten(&self, _: &'static str, _: MissionStatus) {}
    fn outcome_unknown(&self, _: bool) {}
    fn stop_sent(&self, _: Duration) {}
    fn committed(&self, _: Duration, _: usize) {}
    fn disbelieved(&self, _: &Disbelieved) {}
}
