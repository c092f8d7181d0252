//! A robot that serves gRPC and is not what it should be: it speaks for others, never stops
//! talking, answers with too much or not at all.

use crate::siege::Siege;
use futures::{Stream, StreamExt as _, stream};
use portarium_protocols::grpc::{
    ALPN, Connections,
    pb::{
        self,
        mission_service_server::{MissionService, MissionServiceServer},
    },
    server::{ServerLimits, serve},
};
use portarium_tests::{
    Arrangement, House, figure, free_port, happened, hints, journal, mission, only, scaled,
    spiffe_id, stop, until,
};
use serde_json::Value;
use std::{
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Request, Response, Status, service::Routes};

/// The mission of `m` that `x` speaks of, as if it were its own.
const VICTIM: &str = "victim";
/// The missions of `x`: one that it takes, and one that it answers with too much.
const TAKEN: &str = "taken";
const TOO_MUCH: &str = "too-much";
/// An adapter waits no longer for an answer to a stop, and some.
const STOP_ANSWERED_WITHIN: Duration = Duration::from_secs(4);

/// Serves this as the robot `x`.
pub async fn listen(house: &House, port: u16, routes: Routes) -> JoinHandle<()> {
    let manager = house.identities.manager("x").await;
    let tls = manager.server_tls(only(hints::GATEWAY), ALPN);
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (limits, end) = (ServerLimits::default(), CancellationToken::new());
    tokio::spawn(async move {
        let serving = serve(listener, Some(tls), routes, limits, Connections::new(), end);
        serving.await.unwrap();
    })
}

/// `x`.
#[derive(Clone, Default)]
struct Hostile {
    /// How often its watch was opened.
    watches: Arc<AtomicUsize>,
    /// How often it was asked what became of a mission.
    asked: Arc<AtomicUsize>,
    /// How often it was sent what it answers with too much.
    sent: Arc<AtomicUsize>,
    /// It begins to talk once this is cancelled.
    quiet: CancellationToken,
    /// Words of each kind in a flood.
    words: usize,
}

impl Hostile {
    /// Lies, nonsense and changes of its mind, and its mission's end behind all of it.
    fn flood(&self) -> impl Stream<Item = pb::MissionUpdate> + use<> {
        let kinds = |n: usize| {
            [
                update(VICTIM, "Succeeded", ""),
                update(VICTIM, "Cancelled", "by nobody"),
                update(TAKEN, "dancing", ""),
                update("../../etc", "Succeeded", ""),
                update(
                    TAKEN,
                    ["Executing", "WaitingPreemption"][n % 2],
                    &n.to_string(),
                ),
            ]
        };
        let words = stream::iter((0..self.words).flat_map(kinds));
        words.chain(stream::iter([update(TAKEN, "Succeeded", "at last")]))
    }
}

fn update(mission: &str, status: &str, detail: &str) -> pb::MissionUpdate {
    pb::MissionUpdate {
        mission_id: mission.into(),
        status: status.into(),
        detail: detail.into(),
        ..pb::MissionUpdate::default()
    }
}

/// More than any answer of the contract.
fn too_much() -> String {
    "x".repeat(1_000_000)
}

type Updates = Pin<Box<dyn Stream<Item = Result<pb::MissionUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl MissionService for Hostile {
    type WatchMissionsStream = Updates;

    async fn watch_missions(
        &self,
        _: Request<pb::WatchMissionsRequest>,
    ) -> Result<Response<Updates>, Status> {
        let said: Updates = match self.watches.fetch_add(1, Ordering::Relaxed) {
            0 => Box::pin(stream::iter([update(VICTIM, "Succeeded", &too_much())]).map(Ok)),
            _ => {
                self.quiet.cancelled().await;
                Box::pin(self.flood().map(Ok).chain(stream::pending()))
            }
        };
        Ok(Response::new(said))
    }

    async fn dispatch_mission(
        &self,
        request: Request<pb::DispatchMissionRequest>,
    ) -> Result<Response<pb::DispatchMissionResponse>, Status> {
        let request = request.into_inner();
        match &*request.mission_id {
            TAKEN => Ok(Response::new(pb::DispatchMissionResponse {
                status: pb::DispatchStatus::Dispatched.into(),
                mission_id: request.mission_id,
                ..Default::default()
            })),
            TOO_MUCH => {
                self.sent.fetch_add(1, Ordering::Relaxed);
                Ok(Response::new(pb::DispatchMissionResponse {
                    status: pb::DispatchStatus::Rejected.into(),
                    message: too_much(),
                    ..Default::default()
                }))
            }
            _ => pending().await,
        }
    }

    async fn get_mission_status(
        &self,
        _: Request<pb::GetMissionStatusRequest>,
    ) -> Result<Response<pb::GetMissionStatusResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(pb::GetMissionStatusResponse {
            mission_id: too_much(),
            ..Default::default()
        }))
    }

    async fn cancel_mission(
        &self,
        _: Request<pb::CancelMissionRequest>,
    ) -> Result<Response<pb::CancelMissionResponse>, Status> {
        pending().await
    }

    async fn confirm_mission(
        &self,
        _: Request<pb::ConfirmMissionRequest>,
    ) -> Result<Response<pb::ConfirmMissionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn resolve_mission(
        &self,
        _: Request<pb::ResolveMissionRequest>,
    ) -> Result<Response<pb::ResolveMissionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_robots(
        &self,
        _: Request<pb::ListRobotsRequest>,
    ) -> Result<Response<pb::ListRobotsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_robot(
        &self,
        _: Request<pb::GetRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hold_robot(
        &self,
        _: Request<pb::HoldRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn release_robot(
        &self,
        _: Request<pb::ReleaseRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_peers(
        &self,
        _: Request<pb::ListPeersRequest>,
    ) -> Result<Response<pb::ListPeersResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_robot_behind_grpc_is_believed_on_nothing_of_others_and_holds_nobody_up() {
    let name = "attack, a hostile gRPC robot";
    let port = free_port();
    let config = format!(
        "[[robots]]\nid = \"x\"\nfleet = \"test\"\nadapter = \"grpc\"\naddress = \"localhost:{port}\"\n\
         peers = [\"{}\"]\nactions = [\"navigate_to\"]\n",
        spiffe_id("x")
    );
    let house = House::arranged(Arrangement {
        workloads: &["x"],
        svid_ttl: Duration::from_secs(3600),
        config: &config,
        ..Arrangement::default()
    });
    let siege = Siege::around(name, house.await).await;
    let house = &siege.house;
    let takes = Duration::from_secs(15);
    house.caller.accepted(&mission("m", VICTIM, takes)).await;
    house.watch.reaches(VICTIM, "Executing").await;
    let hostile = Hostile {
        words: scaled(2_000),
        ..Hostile::default()
    };
    let routes = Routes::new(MissionServiceServer::new(hostile.clone()));
    let serving = AbortOnDropHandle::new(listen(house, port, routes).await);
    house.caller.robots_reachable(&["x"]).await;
    for id in [TAKEN, TOO_MUCH] {
        house
            .caller
            .accepted(&mission("x", id, Duration::ZERO))
            .await;
    }
    house.watch.reaches(TAKEN, "Dispatched").await;
    let began = Instant::now();
    hostile.quiet.cancel();

    // Its mission's end comes behind all of the flood.
    house.watch.reaches(TAKEN, "Succeeded").await;
    let took = began.elapsed();
    assert!(hostile.watches.load(Ordering::Relaxed) > 1);
    assert_eq!(house.watch.last(VICTIM).unwrap().status, "Executing");
    let rows = journal(&house.gateway.journal_file())[TAKEN].states;
    assert!(rows < 1_000, "{rows} rows");
    let told = |line: &Value| line["suppressed"].as_u64().unwrap_or(1) as usize;
    let words = || {
        let mut lines = siege.audit();
        lines.retain(|line| line["method"] == "report");
        (lines.iter().map(told).sum::<usize>(), lines.len())
    };
    until("the audit of all of it", async || {
        words().0 >= hostile.words * 4
    })
    .await;
    let (audited, lines) = words();
    assert_eq!(audited, hostile.words * 4);

    // What was answered with too much is not taken for refused, and not sent again while the robot
    // says nothing of it that can be read.
    until("the question what became of it", async || {
        hostile.asked.load(Ordering::Relaxed) > 2
    })
    .await;
    assert_eq!(house.watch.last(TOO_MUCH).unwrap().status, "Dispatched");
    assert_eq!(hostile.sent.load(Ordering::Relaxed), 1);
    let asked = Instant::now();
    let answer = house.caller.dispatch(&stop("x", "stop-x")).await.unwrap();
    let stop_took = asked.elapsed();
    assert!(
        stop_took < STOP_ANSWERED_WITHIN,
        "{stop_took:?}: {answer:?}"
    );
    house.watch.reaches(VICTIM, "Succeeded").await;
    figure(
        name,
        &format!(
            "{} words in {took:.1?}: believed of those on another's mission {}, {audited} audited in {lines} \
             lines, {rows} rows of its own mission; a stop that it never answers: {stop_took:.1?}",
            hostile.words * 5,
            happened(0, hostile.words * 2)
        ),
    );
    drop(serving);
    siege.lift(32).await;
}
