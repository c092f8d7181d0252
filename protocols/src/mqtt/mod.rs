//! MQTT 5: the control plane's own topics.
//!
//! # Two connections
//! *Commands* publishes missions and, behind them, a copy of each stop and cancel, and hears the
//! statuses. *Stops* publishes stops and cancels at once; it has a thread and a runtime of its
//! own, so that no load on the main runtime delays it, is kept connected, and hears nothing. A
//! robot is reachable while *commands* is up; a stop goes over whichever is.
//!
//! # Stops that come late
//! A stop is delivered with the first of its two PUBACKs. The engine sends the robot's next mission
//! when the other copy cannot come behind it any more; `landing` says when that is. So that nothing
//! is left of a gateway that died either, the first thing that *stops* does is to take over, and leave,
//! the client id that it does not use.
//!
//! # Never sent twice
//! A connection and what was published on it die together: what had begun to leave and was not
//! acknowledged is of unknown outcome, what had not was not sent. The session at the broker is
//! kept for what *we* hear. MQTT would have a client repeat unacknowledged publishes when it
//! resumes a session; a mission must not be, and at QoS 1 a broker keeps nothing that would miss
//! them.
//!
//! # Why not rumqttc's event loop
//! Packets are rumqttc's, the loop that moves them is ours (`connection`), for what its
//! `EventLoop` (0.25) cannot give: it repeats unacknowledged publishes by itself; a `poll` that is
//! dropped while it writes loses a publish; a publish that meets a packet id still in use stays
//! stuck if that id's PUBACK is a refusal; it acknowledges a status before the engine has it, or
//! queues acknowledgements behind a full window; it flushes each publish alone; while it waits for
//! a full socket it does not watch the keep-alive, so that a half-open connection stays for
//! minutes; and it hides the TLS stream.
//!
//! # A slow engine
//! A status is acknowledged once the engine has it. The broker holds back beyond our receive
//! maximum, so that memory is bounded, nothing is dropped, and PUBACKs of commands are read all
//! the while.
//!
//! # Renewal
//! Each connection is replaced from its [lease](portarium_identity::Lease)'s `renew` on and is
//! gone before its `ends`: *commands* under the same client id, by taking the session over after a
//! new TLS handshake and a pause for outstanding PUBACKs; *stops* under an alternate client id,
//! new before old. Never both at once.
//!
//! # Cancels
//! They go to the contract's topic, `portarium/{tenant}/missions/{mission}/cancel`, and to no other:
//! a robot may read `portarium/{tenant}/missions/+/cancel` and passes over what is not its own. A
//! broker's ACL needs no more than that to keep robots from cancelling each other's missions.
//!
//! # Retained statuses
//! A status stays at the broker until its mission has ended durably; then it is cleared, at low
//! priority. If that is lost (no connection, full queue, crash), the status comes again with the
//! next subscription, the engine sees a report of an ended mission, and settles it again.

mod config;
mod connection;
mod dial;
mod handshake;
mod inbox;
mod incoming;
mod inflight;
mod landing;
mod lane;
mod lane_state;
mod mission;
mod outage;
mod outgoing;
pub mod payload;
mod queue;
mod router;
mod subscriptions;
pub mod topic;

pub use config::{Broker, MqttConfig, MqttError, MqttRobot, client_id_base};
#[cfg(fuzzing)]
pub use incoming::fuzz_packets;
pub use lane_state::LaneStats;

use crate::{
    adapter::{Link, Update, UpdateSender},
    peers::ConnectedPeer,
};
use dial::Dialer;
use inbox::Inbox;
use landing::Landing;
use lane::{Lane, Role, stop_client_id};
use lane_state::{Counters, LaneState};
use queue::Queue;
use router::Router;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One broker's connections and the robots behind it.
pub struct MqttAdapter {
    router: Arc<Router>,
    commands: LaneHandle,
    stops: LaneHandle,
    landing: Landing,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    ended: watch::Sender<Option<&'static str>>,
}

struct LaneHandle {
    queue: Queue,
    state: Arc<LaneState>,
}

/// How the adapter stands, for metrics and the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttStats {
    /// The connection that carries missions and statuses.
    pub commands: LaneStats,
    /// The connection that carries stops and cancels at once.
    pub stops: LaneStats,
    /// Statuses heard and understood since the start.
    pub reports: u64,
    /// Messages of robots that were not understood and dropped since the start.
    pub invalid: u64,
    /// Retained statuses of ended missions left uncleared for now, since the start.
    pub uncleared: u64,
}

impl MqttAdapter {
    /// Starts both connections in the background; never waits for the broker. Must be called in
    /// a tokio runtime.
    pub fn start(config: MqttConfig, updates: UpdateSender) -> Result<Arc<Self>, MqttError> {
        config.validate()?;
        let stop_runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let dialer = Arc::new(Dialer::new(&config));
        let router = Arc::new(Router::new(config.robots, config.shared_status_topic));
        let (commands, commands_feed) = LaneHandle::new();
        let (stops, stops_feed) = LaneHandle::new();
        let client_ids = [false, true].map(|b| stop_client_id(&config.client_id_base, b));
        let adapter = Self {
            router,
            commands,
            landing: Landing::new(&stops.state, &client_ids),
            stops,
            counters: Arc::default(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            ended: watch::Sender::new(None),
        };
        let inbox = Inbox::new(
            Arc::clone(&adapter.router),
            updates.clone(),
            Arc::clone(&adapter.counters),
        );
        let turn = Arc::new(Semaphore::new(1));
        let lane = |role, handle: &LaneHandle| Lane {
            role,
            dialer: Arc::clone(&dialer),
            client_id_base: config.client_id_base.clone(),
            state: Arc::clone(&handle.state),
            router: Arc::clone(&adapter.router),
            shutdown: adapter.shutdown.clone(),
            heard_retained: false,
            predecessor_gone: false,
            turn: Arc::clone(&turn),
        };
        let commands_lane = lane(Role::Commands(Box::new(inbox)), &adapter.commands);
        let stops_lane = lane(Role::Stops { alternate: false }, &adapter.stops);
        adapter.spawn_stop_lane(stop_runtime, stops_lane.run(stops_feed))?;
        adapter.spawn("mqtt commands", commands_lane.run(commands_feed));
        let links = tell_links(
            Arc::clone(&adapter.router),
            updates,
            adapter.shutdown.clone(),
        );
        adapter.spawn("mqtt links", links);
        adapter.tasks.close();
        Ok(Arc::new(adapter))
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending(name);
        self.tasks.spawn(async move {
            let _ending = ending;
            task.await;
        });
    }

    fn spawn_stop_lane(
        &self,
        runtime: tokio::runtime::Runtime,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), MqttError> {
        let ending = self.ending("mqtt stops");
        let token = self.tasks.token();
        std::thread::Builder::new()
            .name("mqtt-stops".to_owned())
            .spawn(move || {
                let _token = token;
                let _ending = ending;
                runtime.block_on(task);
            })?;
        Ok(())
    }

    fn ending(&self, task: &'static str) -> Ending {
        Ending {
            task,
            asked: self.shutdown.clone(),
            ended: self.ended.clone(),
        }
    }

    /// Takes a new list of robots; subscriptions and links follow.
    pub fn replace_robots(&self, robots: Vec<MqttRobot>) -> Result<(), MqttError> {
        config::check_unique(&robots)?;
        self.router.replace_fleet(robots);
        Ok(())
    }

    /// Ends both connections with leave taken, after waiting shortly for what was sent.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }

    /// Waits until one of the adapter's tasks ends though nobody asked, and names it. That is a
    /// defect: the process is to end.
    pub async fn ended(&self) -> &'static str {
        let mut ended = self.ended.subscribe();
        let task = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|task| *task);
        task.unwrap_or("mqtt")
    }

    /// The broker at the other end of each connection, where it has shown who it is.
    pub fn peers(&self) -> Vec<ConnectedPeer> {
        let lanes = [&self.commands, &self.stops];
        lanes.iter().flat_map(|lane| lane.state.peers()).collect()
    }

    /// How the adapter stands.
    pub fn stats(&self) -> MqttStats {
        MqttStats {
            commands: self.commands.state.stats(),
            stops: self.stops.state.stats(),
            reports: self.counters.reports.load(Ordering::Relaxed),
            invalid: self.counters.invalid.load(Ordering::Relaxed),
            uncleared: self.counters.uncleared.load(Ordering::Relaxed),
        }
    }
}

impl Drop for MqttAdapter {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl LaneHandle {
    fn new() -> (Self, queue::Feed) {
        let (queue, feed) = queue::queue();
        (
            Self {
                queue,
                state: Arc::new(LaneState::new()),
            },
            feed,
        )
    }
}

/// Says on drop, also by panic, that a task is over.
struct Ending {
    task: &'static str,
    asked: CancellationToken,
    ended: watch::Sender<Option<&'static str>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.asked.is_cancelled() {
            self.ended.send_replace(Some(self.task));
        }
    }
}

/// Tells the engine of links that changed. Level-triggered: while the engine is slow, changes of
/// one robot become one.
async fn tell_links(router: Arc<Router>, updates: UpdateSender, shutdown: CancellationToken) {
    let mut told: HashMap<_, Link> = HashMap::new();
    let tell = async {
        loop {
            for (robot, interrupted) in router.unsaid().await {
                let link = router.link(&robot);
                let same = told
                    .get(&robot)
                    .is_some_and(|t| (*t == Link::Up) == (link == Link::Up));
                if same && !(interrupted && link == Link::Up) {
                    continue;
                }
                told.insert(robot.clone(), link.clone());
                if updates.send(Update::Link { robot, link }).await.is_err() {
                    return;
                }
            }
            let fleet = router.fleet();
            told.retain(|robot, _| fleet.robot(robot.as_str()).is_some());
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tell => shutdown.cancelled().await,
    }
}
