//! What callers can do to the service by how they call, on a journal whose disk hangs.
#![allow(clippy::unwrap_used, clippy::panic)]
use super::{unread::Kept, *};
use crate::{
    audit::Rotation,
    clock::SystemClock,
    engine::{EngineObserver, Limits, RobotSpec, World},
    journal::{Journal, Opened, Retention, Writer},
    policy::{Actions, Caller, Method, Rule, Selection},
};
use futures::{future::join_all, poll};
use portarium_protocols::{
    adapter::{
        Adapter, Cancel, Disbelieved, DispatchError, Handover, Link, Reconciled, SignalError,
        StopAnswer, Update,
    },
    ids::RobotId,
    mission::{Command, MissionStatus},
};
use std::{path::PathBuf, pin::pin};
use tokio::sync::mpsc;

/// A robot that is there and obeys.
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

struct Deaf;

impl ServiceObserver for Deaf {
    fn dispatched(&self, _: pb::DispatchStatus, _: Duration) {}
    fn token_checked(&self, _: &'static str) {}
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

/// A service whose journal's writer does not run: nothing is ever committed.
struct Stalled {
    service: Service,
    audit: Audit,
    audit_path: PathBuf,
    _writer: Writer,
    _updates: mpsc::Sender<Update>,
    _dir: tempfile::TempDir,
}

impl Stalled {
    async fn new() -> Self {
        Self::with_audit(|_| ()).await
    }

    /// `make` may put something else than a file where the audit goes.
    async fn with_audit(make: impl FnOnce(&std::path::Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let retention = Retention {
            keep_for: Duration::from_secs(60),
            at_most: 10,
        };
        let Opened {
            journal,
            writer,
            loaded,
        } = Journal::open(&dir.path().join("journal.sqlite"), retention, &SystemClock).unwrap();
        let world = World {
            clock: Arc::new(SystemClock),
            observer: Arc::new(Deaf),
            limits: Limits {
                open_missions: 10_000,
            },
        };
        let robot = RobotSpec {
            id: "r".parse().unwrap(),
            fleet: None,
            adapter_name: "test",
            address: "r".into(),
            actions: ["go".to_owned()].into(),
            idempotent: true,
            deliver_within: Duration::from_secs(60),
            queue: 10_000,
            adapter: Some(Arc::new(Obedient)),
        };
        let (updates, received) = mpsc::channel(16);
        let engine = Engine::start(world, journal, loaded, vec![robot], received).unwrap();
        while engine.unreconciled() > 0 {
            tokio::task::yield_now().await;
        }
        let rule = Rule {
            peers: vec!["spiffe://a.b/*".parse().unwrap()],
            methods: Method::ALL.into_iter().collect(),
            robots: Selection::All,
            fleets: Selection::All,
            actions: Actions::All,
        };
        let policy = Arc::new(ArcSwap::from_pointee(Policy::new(vec![rule])));
        let audit_path = dir.path().join("audit.jsonl");
        make(&audit_path);
        let rotation = Rotation {
            bytes: u64::MAX,
            keep: 1,
        };
        let audit = Audit::open(&audit_path, rotation).unwrap();
        let closing = CancellationToken::new();
        let service = Service::new(
            engine,
            policy,
            audit.clone(),
            None,
            None,
            Arc::new(Deaf),
            closing,
        );
        Self {
            service,
            audit,
            audit_path,
            _writer: writer,
            _updates: updates,
            _dir: dir,
        }
    }

    fn audited(&self) -> Vec<serde_json::Value> {
        assert!(self.audit.close(Duration::from_secs(5)));
        let text = std::fs::read_to_string(&self.audit_path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|line| line.get("decision").is_some())
            .collect()
    }
}

fn from_caller<T>(message: T) -> Request<T> {
    from("spiffe://a.b/caller", message)
}

fn from<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let Principal::Spiffe(peer, _) = Principal::workload(id) else {
        panic!("it has a SPIFFE ID");
    };
    request.extensions_mut().insert(peer);
    request
}

fn caller(id: &str) -> Caller {
    Principal::workload(id).caller()
}

fn mission(id: &str) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: id.into(),
        plan_effect_idempotency_key: format!("plan-{id}"),
        idempotency_key: format!("key-{id}"),
        robot_id: "r".into(),
        action_type: "robot:execute_action".into(),
        action_name: "go".into(),
        supports_preemption: true,
        requested_at: "2026-01-02T03:04:05Z".into(),
        completion_mode: "Auto".into(),
        ..Default::default()
    }
}

fn stop(id: &str) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: id.into(),
        robot_id: "r".into(),
        action_type: "robot:stop".into(),
        action_name: "stop".into(),
        bypass_tier_evaluation: true,
        requested_at: "2026-01-02T03:04:05Z".into(),
        completion_mode: "Auto".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_caller_that_does_not_wait_for_the_answer_is_audited_all_the_same() {
    let stalled = Stalled::new().await;
    let service = &stalled.service;
    for message in [mission("m-1"), stop("s-1")] {
        let mut call = pin!(service.dispatch(from_caller(message)));
        let polled = poll!(&mut call);
        assert!(polled.is_pending(), "{polled:?}");
    }
    let cancel = pb::CancelMissionRequest {
        mission_id: "m-1".into(),
        ..Default::default()
    };
    assert!(poll!(pin!(service.cancel(from_caller(cancel)))).is_pending());
    let hold = pb::HoldRobotRequest {
        robot_id: "r".into(),
        reason: String::new(),
    };
    assert!(poll!(pin!(service.hold(from_caller(hold)))).is_pending());
    let lines = stalled.audited();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let of = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            (of("decision"), of("method"), of("mission_id"), of("serial"))
        })
        .collect();
    let allowed = |method: &str, mission: &str| {
        let texts = ["allowed", method, mission, "01"].map(str::to_owned);
        <(String, String, String, String)>::from(texts)
    };
    assert_eq!(
        told,
        [
            allowed("DispatchMission", "m-1"),
            allowed("DispatchMission", "s-1"),
            allowed("CancelMission", "m-1"),
            allowed("HoldRobot", ""),
        ]
    );
}

#[tokio::test]
async fn calls_that_wait_for_the_disk_leave_a_stream_of_their_connection_to_a_stop() {
    let stalled = Stalled::new().await;
    let service = &stalled.service;
    let many = REQUESTS;
    let mut dispatches = join_all(
        (0..many).map(|n| Box::pin(service.dispatch(from_caller(mission(&format!("m-{n}")))))),
    );
    let mut cancels = join_all((0..many).map(|_| {
        Box::pin(service.cancel(from_caller(pb::CancelMissionRequest {
            mission_id: "m-0".into(),
            ..Default::default()
        })))
    }));
    let mut releases = join_all((0..many).map(|_| {
        Box::pin(service.release(from_caller(pb::ReleaseRobotRequest {
            robot_id: "r".into(),
            reason: String::new(),
        })))
    }));
    assert!(poll!(&mut dispatches).is_pending());
    assert!(poll!(&mut cancels).is_pending());
    assert!(poll!(&mut releases).is_pending());
    for places in [&service.dispatches, &service.cancels, &service.others] {
        let this = places.enter(caller("spiffe://a.b/caller"));
        assert!(
            this.is_none(),
            "one caller has all the places that one may have"
        );
        let other = places.enter(caller("spiffe://a.b/other"));
        assert!(other.is_some(), "another caller finds a place");
    }
    let (engine, id) = (&service.engine, "m-9".parse().unwrap());
    assert!(engine.command(&id).await.unwrap().is_some());
    let robot = || engine.robot(&"r".parse().unwrap()).unwrap();
    // The first is cancelled by now, and the next in its place.
    while robot().active.is_none() {
        tokio::task::yield_now().await;
    }
    let before = robot().queued;
    let one_more = pb::CancelMissionRequest {
        mission_id: "m-9".into(),
        ..Default::default()
    };
    let shed = service.cancel(from_caller(one_more)).await.unwrap_err();
    assert_eq!(shed.code(), tonic::Code::ResourceExhausted);
    assert_eq!(robot().queued, before - 1, "it is in force all the same");
    let stopped = service.dispatch(from_caller(stop("s-1"))).await.unwrap();
    assert_eq!(stopped.status(), pb::DispatchStatus::Dispatched);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_an_audit_that_hangs() {
    // A pipe that nobody reads takes 64 KiB and then holds its writer up for ever.
    let stalled = Stalled::with_audit(|path| {
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, path, fifo, mode, 0).unwrap();
    })
    .await;
    let service = &stalled.service;
    while stalled.audit.counts().dropped == 0 {
        let list = from_caller(pb::ListRobotsRequest::default());
        service.list(&list).unwrap();
    }
    let began = std::time::Instant::now();
    let stopped = service.dispatch(from_caller(stop("s-1"))).await.unwrap();
    let took = began.elapsed();
    assert_eq!(stopped.status(), pb::DispatchStatus::Dispatched);
    // The 20 ms are for the fence, whose disk hangs here as well.
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!stalled.audit.close(Duration::from_millis(20)));
}

#[tokio::test]
async fn one_caller_reads_two_lists_of_peers_at_a_time_and_no_more() {
    let stalled = Stalled::new().await;
    let asked = |kept: &Kept| {
        let mut request = from_caller(pb::ListPeersRequest::default());
        request.extensions_mut().insert(kept.clone());
        stalled.service.peers(&request)
    };
    let (first, second) = (Kept::default(), Kept::default());
    asked(&first).unwrap();
    asked(&second).unwrap();
    let refused = asked(&Kept::default()).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    drop(first);
    asked(&Kept::default()).unwrap();
}

#[tokio::test]
async fn a_read_that_nobody_goes_on_with_keeps_no_other_from_the_journal() {
    let stalled = Stalled::new().await;
    let reader = stalled.service.engine.journal().reader();
    let hanging = reader.hang().await;
    let mut left_lying = Box::pin(reader.updates(0, None, 1));
    assert!(poll!(&mut left_lying).is_pending());
    // It stands in line now.
    tokio::task::yield_now().await;
    drop(hanging);
    let other = tokio::time::timeout(Duration::from_secs(5), reader.updates(0, None, 1));
    other.await.unwrap().unwrap();
    left_lying.await.unwrap();
}

#[tokio::test]
async fn reads_that_wait_for_one_that_hangs_take_no_threads() {
    let stalled = Stalled::new().await;
    let reader = stalled.service.engine.journal().reader();
    let hanging = reader.hang().await;
    let mut reads = join_all((0..1024).map(|_| Box::pin(reader.updates(0, None, 1))));
    assert!(poll!(&mut reads).is_pending());
    let other = tokio::task::spawn_blocking(|| ());
    tokio::time::timeout(Duration::from_secs(5), other)
        .await
        .unwrap()
        .unwrap();
    drop(hanging);
    assert!(reads.await.into_iter().all(|read| read.is_ok()));
}

#[tokio::test]
async fn one_caller_cannot_open_all_watches() {
    let stalled = Stalled::new().await;
    let service = &stalled.service;
    let watch = |who| service.watch(from(who, pb::WatchMissionsRequest::default()));
    let mut open = Vec::new();
    for who in ["spiffe://a.b/one", "spiffe://a.b/other"] {
        for _ in 0..WATCHES {
            open.push(watch(who).await.unwrap());
        }
        let refused = watch(who).await.err().map(|status| status.code());
        assert_eq!(refused, Some(tonic::Code::ResourceExhausted));
    }
    let refused = watch("spiffe://a.b/third").await.err();
    let refused = refused.map(|status| status.code());
    assert_eq!(refused, Some(tonic::Code::ResourceExhausted));
    open.clear();
    assert!(watch("spiffe://a.b/one").await.is_ok());
}

#[tokio::test]
async fn a_watch_of_a_mission_that_is_not_known_is_refused_and_takes_no_place() {
    let stalled = Stalled::new().await;
    let watch = |id: &str| {
        let wanted = pb::WatchMissionsRequest {
            mission_id: id.into(),
            ..Default::default()
        };
        stalled.service.watch(from_caller(wanted))
    };
    for id in ["m-1", "a/b"] {
        for _ in 0..=WATCHES {
            let refused = watch(id).await.err().map(|status| status.code());
            assert_eq!(refused, Some(tonic::Code::NotFound), "{id}");
        }
    }
}
