//! One robot's two connections.

use super::{
    GrpcRobot, Robots, answers,
    lane::{DISPATCH_LIMIT, Lane, MAX_WAITING, Order},
    open::OpenMissions,
    reports,
};
use crate::{
    adapter::{
        Cancel, DispatchError, Handover, Link, Reconciled, SignalError, StopAnswer, Update,
        UpdateSender,
    },
    copies::{Copies, OnItsWay, RETRANSMITTED_FOR},
    grpc::{
        Channel, Connection, Credential, Target,
        convert::dispatch_request,
        pb::{self, mission_service_client::MissionServiceClient},
    },
    ids::{MissionId, RobotId},
    mission::Command,
    peers::ConnectedPeer,
};
use portarium_identity::{ClientTls, JwtSvids};
use std::{
    convert::Infallible,
    future::Future,
    io,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// How long a robot may take to answer a cancel, a stop or a question.
const SIGNAL_LIMIT: Duration = Duration::from_secs(2);
/// Stops and cancels under way on one stop lane at a time.
const MAX_SIGNALS: usize = 32;
/// The longest message taken from a robot.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// One robot: its connections, what it was sent, and the tasks that serve it.
pub(super) struct RobotLink {
    config: GrpcRobot,
    shared: Arc<Shared>,
    stop_lane: Connection,
    lane: Lane,
    signals: Arc<Semaphore>,
    /// Of stops.
    copies: Copies,
    _reports: AbortOnDropHandle<()>,
    _jwt: Option<AbortOnDropHandle<Infallible>>,
}

/// What the robot's tasks share.
pub(super) struct Shared {
    pub(super) robot: RobotId,
    pub(super) command: Connection,
    pub(super) jwt: Option<Arc<JwtSvids>>,
    pub(super) open: Arc<OpenMissions>,
    pub(super) updates: UpdateSender,
    pub(super) neighbours: Neighbours,
}

/// The robots that are configured behind the same server.
pub(super) struct Neighbours {
    pub(super) robots: Weak<Robots>,
    pub(super) target: Target,
}

impl Neighbours {
    pub(super) fn have(&self, id: &str) -> bool {
        let robots = self.robots.upgrade();
        let links = robots.map(|robots| robots.load_full());
        links.is_some_and(|links| {
            links
                .get(id)
                .is_some_and(|l| l.config.target == self.target)
        })
    }
}

impl RobotLink {
    pub(super) fn start(
        config: GrpcRobot,
        tls: Option<ClientTls>,
        jwt: Option<Arc<JwtSvids>>,
        stop_runtime: &Handle,
        open: Arc<OpenMissions>,
        updates: UpdateSender,
        robots: Weak<Robots>,
    ) -> Self {
        let name = |lane| format!("{} {lane}", config.robot_id);
        let credential = jwt.clone().map(|jwt| jwt as Arc<dyn Credential>);
        let stop_lane = {
            let _on_its_thread = stop_runtime.enter();
            let (target, tls) = (config.target.clone(), tls.clone());
            Connection::start_showing(credential.clone(), target, tls, name("stop lane"))
        };
        let shared = Arc::new(Shared {
            robot: config.robot_id.clone(),
            command: Connection::start_showing(
                credential,
                config.target.clone(),
                tls,
                name("commands"),
            ),
            jwt: jwt.clone(),
            open,
            updates,
            neighbours: Neighbours {
                robots,
                target: config.target.clone(),
            },
        });
        Self {
            lane: Lane::start(shared.clone()),
            _reports: AbortOnDropHandle::new(tokio::spawn(reports::run(shared.clone()))),
            _jwt: jwt
                .map(|jwt| AbortOnDropHandle::new(tokio::spawn(async move { jwt.follow().await }))),
            signals: Arc::new(Semaphore::new(MAX_SIGNALS)),
            copies: Copies::default(),
            stop_lane,
            shared,
            config,
        }
    }

    pub(super) fn config(&self) -> &GrpcRobot {
        &self.config
    }

    pub(super) fn open_missions(&self) -> Arc<OpenMissions> {
        self.shared.open.clone()
    }

    pub(super) fn recheck(&self) {
        self.shared.command.recheck();
        self.stop_lane.recheck();
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = ConnectedPeer> {
        let both = [&self.shared.command, &self.stop_lane];
        both.into_iter().flat_map(Connection::peers)
    }

    pub(super) fn link(&self) -> Link {
        match self.shared.command.channel() {
            Ok(_) => Link::Up,
            Err(down) => Link::Down {
                reason: down.to_string(),
            },
        }
    }

    /// Of each of its connections: the SVID generation that it runs on, if it stands.
    pub(super) fn generations(&self) -> [Option<Option<u64>>; 2] {
        [&self.shared.command, &self.stop_lane].map(|connection| {
            let channel = connection.channel().ok()?;
            Some(channel.peer().map(|peer| peer.own_generation))
        })
    }

    pub(super) async fn dispatch(
        &self,
        command: Arc<Command>,
        expires_in: Duration,
    ) -> Result<Handover, DispatchError> {
        let expires = Instant::now() + expires_in;
        self.lane.dispatch(command, expires).await
    }

    pub(super) async fn cancel(&self, cancel: Arc<Cancel>) -> Result<(), SignalError> {
        let behind = self.lane.behind(|answer| Order::Cancel {
            cancel: cancel.clone(),
            answer,
        });
        let request = cancel_request(&cancel);
        let jwt = self.shared.jwt.clone();
        let at_once = self
            .at_once(|channel| async move { send_cancel(channel, request, jwt.as_deref()).await });
        first_success(at_once, behind).await
    }

    pub(super) async fn stop(&self, stop: Arc<Command>) -> Result<StopAnswer, SignalError> {
        self.shared.open.add(&stop);
        // As long as what waits in front of it may take.
        let in_line = DISPATCH_LIMIT * MAX_WAITING;
        let leaves = || {
            self.copies
                .leaves(Instant::now() + in_line + RETRANSMITTED_FOR)
        };
        let (first, second) = (leaves(), leaves());
        let behind = self.lane.behind(|answer| Order::Stop {
            stop: stop.clone(),
            copy: second,
            answer,
        });
        let request = dispatch_request(&stop);
        let jwt = self.shared.jwt.clone();
        let at_once = self.at_once(|channel| async move {
            send_stop(channel, request, first, jwt.as_deref()).await
        });
        let answer = first_success(at_once, behind).await;
        if answer == Ok(StopAnswer::Stationary) {
            self.shared.open.remove(&stop.mission_id);
        }
        answer
    }

    pub(super) async fn stops_landed(&self) {
        self.copies.landed().await;
    }

    pub(super) async fn reconcile(&self, command: &Command) -> Result<Reconciled, SignalError> {
        let channel = self.shared.command.channel()?;
        self.shared.open.add(command);
        ask(&self.shared, &command.mission_id, channel).await
    }

    /// Sends on the stop lane, or beside whatever is on the command connection while the lane is
    /// down. In a task of its own: where the other of the two is answered first,
    /// this one must not be broken off at the robot.
    fn at_once<T, F>(
        &self,
        send: impl FnOnce(Channel) -> F,
    ) -> impl Future<Output = Result<T, SignalError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SignalError>> + Send + 'static,
    {
        let permit = self.signals.clone().try_acquire_owned();
        let lane = self.stop_lane.channel();
        let sending = lane.or_else(|_| self.shared.command.channel()).map(send);
        let task = match (permit, sending) {
            (Ok(permit), Ok(sending)) => Ok(tokio::spawn(async move {
                let _permit = permit;
                sending.await
            })),
            (_, Err(down)) => Err(SignalError::from(down)),
            (Err(_), _) => Err(unreachable(
                "too many stops and cancels are under way to it",
            )),
        };
        async move {
            let ended = task?.await;
            ended.unwrap_or_else(|_| Err(unreachable("the gateway is shutting down")))
        }
    }
}

/// Calls go without where there is none: a stop must not wait for it (a robot that insists is sent
/// it again with the next one), and a mission does before.
impl Credential for JwtSvids {
    fn bearer(&self) -> io::Result<Option<String>> {
        Ok(self.current().map(|svid| svid.token().to_owned()))
    }
}

/// The first of the two that got through; the refusal that weighs more where none did. The one at
/// once may be refused only because the mission is still on its way: the other one tells.
async fn first_success<T>(
    at_once: impl Future<Output = Result<T, SignalError>>,
    behind: oneshot::Receiver<Result<T, SignalError>>,
) -> Result<T, SignalError> {
    let behind = async {
        let answer = behind.await;
        answer.unwrap_or_else(|_| Err(unreachable("too many orders wait for it")))
    };
    let (mut at_once, mut behind) = (std::pin::pin!(at_once), std::pin::pin!(behind));
    let (first, second) = tokio::select! {
        biased;
        first = &mut at_once => match first {
            Ok(answer) => return Ok(answer),
            Err(error) => (error, behind.await),
        },
        first = &mut behind => match first {
            Ok(answer) => return Ok(answer),
            Err(error) => (error, at_once.await),
        },
    };
    second.map_err(|second| match (&first, &second) {
        (SignalError::Refused { .. }, SignalError::Unreachable { .. }) => first,
        _ => second,
    })
}

fn unreachable(reason: &str) -> SignalError {
    SignalError::Unreachable {
        reason: reason.to_owned(),
    }
}

/// A client that takes no more than a robot has to say.
pub(super) fn client(channel: Channel) -> MissionServiceClient<Channel> {
    MissionServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// A request that the robot, too, gives up in time.
pub(super) fn limited<T>(message: T, limit: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    request
}

pub(super) fn cancel_request(cancel: &Cancel) -> pb::CancelMissionRequest {
    let command = &cancel.command;
    pb::CancelMissionRequest {
        mission_id: command.mission_id.to_string(),
        correlation_id: command.correlation_id.clone(),
        plan_effect_idempotency_key: command.plan_effect_idempotency_key.clone(),
        reason: cancel.reason.clone(),
    }
}

pub(super) async fn send_cancel(
    channel: Channel,
    request: pb::CancelMissionRequest,
    jwt: Option<&JwtSvids>,
) -> Result<(), SignalError> {
    let mut client = client(channel);
    let call = client.cancel_mission(limited(request, SIGNAL_LIMIT));
    match timeout(SIGNAL_LIMIT, call).await {
        Ok(Ok(answer)) => answers::of_cancel(answer.get_ref()),
        Ok(Err(status)) => Err(answers::of_failed_signal(&status, jwt)),
        Err(_) => Err(no_answer()),
    }
}

pub(super) async fn send_stop(
    channel: Channel,
    request: pb::DispatchMissionRequest,
    copy: OnItsWay,
    jwt: Option<&JwtSvids>,
) -> Result<StopAnswer, SignalError> {
    let (answer, answered) = oneshot::channel();
    tokio::spawn(follow_stop(channel, request, copy, answer));
    match timeout(SIGNAL_LIMIT, answered).await {
        Ok(Ok(Ok(answer))) => answers::of_stop(&answer),
        Ok(Ok(Err(status))) => Err(answers::of_failed_signal(&status, jwt)),
        Ok(Err(_)) => Err(unreachable("the gateway is shutting down")),
        Err(_) => Err(no_answer()),
    }
}

/// Longer than anybody waits for the answer: until it is here, the stop may be on its way.
async fn follow_stop(
    channel: Channel,
    request: pb::DispatchMissionRequest,
    copy: OnItsWay,
    waits: oneshot::Sender<Result<pb::DispatchMissionResponse, tonic::Status>>,
) {
    let mut client = client(channel);
    let call = client.dispatch_mission(limited(request, SIGNAL_LIMIT));
    // A connection that does not carry it for so long is closed by the system.
    let Ok(answer) = timeout(RETRANSMITTED_FOR, call).await else {
        return;
    };
    let lost = answer.as_ref().is_err_and(answers::may_still_arrive);
    // Whoever waited may have given up.
    let _ = waits.send(answer.map(tonic::Response::into_inner));
    if lost {
        sleep(RETRANSMITTED_FOR).await;
    }
    drop(copy);
}

/// Asks the robot for a mission.
pub(super) async fn ask(
    shared: &Shared,
    mission: &MissionId,
    channel: Channel,
) -> Result<Reconciled, SignalError> {
    let request = pb::GetMissionStatusRequest {
        mission_id: mission.to_string(),
        correlation_id: String::new(),
    };
    let mut client = client(channel);
    let call = client.get_mission_status(limited(request, SIGNAL_LIMIT));
    match timeout(SIGNAL_LIMIT, call).await {
        Ok(answer) => {
            let answer = answer.map(tonic::Response::into_inner);
            let robot = &shared.robot;
            if let Ok(answer) = &answer
                && let Some(nonsense) = answers::nonsense(robot, mission, answer)
            {
                // What finds no place is not worth the wait of who asks.
                let _ = shared.updates.try_send(Update::Disbelieved(nonsense));
            }
            answers::of_status(robot, mission, answer, shared.jwt.as_deref())
        }
        Err(_) => Err(no_answer()),
    }
}

fn no_answer() -> SignalError {
    SignalError::Unreachable {
        reason: format!("it did not answer within {SIGNAL_LIMIT:?}"),
    }
}
