//! Robots of the test: they answer by script, and every call of their adapter is written down.

use async_trait::async_trait;
use portarium_protocols::{
    adapter::{
        Adapter, Cancel, DispatchError, Handover, Link, Reconciled, SignalError, StopAnswer,
    },
    ids::{MissionId, RobotId},
    mission::{ActionType, Command},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// What an adapter was called for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Got {
    Dispatch {
        expires_in: Duration,
    },
    /// The dispatch came to nothing: not a byte was sent.
    NotSent,
    Cancel,
    Stop(ActionType),
    Question,
    Settled,
}

/// One entry of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Since the test began.
    pub(super) at: Duration,
    pub(super) robot: RobotId,
    pub(super) mission: MissionId,
    pub(super) got: Got,
}

/// An answer and how long it takes.
type Scripted<T> = VecDeque<(Duration, T)>;

/// What a robot answers next; once the script is out, it answers as an MQTT robot without a
/// status topic would: sent, requested, cannot be asked.
#[derive(Default)]
pub(super) struct Script {
    pub(super) dispatch: Scripted<Result<Handover, DispatchError>>,
    pub(super) cancel: Scripted<Result<(), SignalError>>,
    pub(super) stop: Scripted<Result<StopAnswer, SignalError>>,
    pub(super) reconcile: Scripted<Result<Reconciled, SignalError>>,
    down: bool,
    /// How long a copy of a stop may still come after the answer.
    pub(super) stops_late: Duration,
    /// Dispatches under way, and the most that ever were.
    handing_over: usize,
    most_at_once: usize,
}

/// The wire and the robots behind it: they outlive the gateway's crashes.
pub(super) struct Robots {
    start: Instant,
    scripts: Mutex<BTreeMap<RobotId, Script>>,
    history: Mutex<Vec<Event>>,
}

/// One gateway's adapter. What a dead gateway was about to do never happens.
pub(super) struct Fake {
    robots: Arc<Robots>,
    dead: tokio_util::sync::CancellationToken,
}

impl Robots {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            scripts: Mutex::default(),
            history: Mutex::default(),
        })
    }

    pub(super) fn adapter(
        self: &Arc<Self>,
        dead: &tokio_util::sync::CancellationToken,
    ) -> Arc<dyn Adapter> {
        Arc::new(Fake {
            robots: self.clone(),
            dead: dead.clone(),
        })
    }

    /// Changes a robot's script.
    pub(super) fn script<T>(&self, robot: &str, change: impl FnOnce(&mut Script) -> T) -> T {
        let mut scripts = self.scripts.lock().unwrap();
        change(scripts.entry(robot.parse().unwrap()).or_default())
    }

    pub(super) fn set_down(&self, robot: &str, down: bool) {
        self.script(robot, |script| script.down = down);
    }

    pub(super) fn history(&self) -> Vec<Event> {
        self.history.lock().unwrap().clone()
    }

    /// The missions of which a robot got this, in order.
    pub(super) fn got(&self, robot: &str, wanted: impl Fn(&Got) -> bool) -> Vec<String> {
        self.history()
            .iter()
            .filter(|event| event.robot.as_str() == robot && wanted(&event.got))
            .map(|event| event.mission.to_string())
            .collect()
    }

    pub(super) fn dispatched(&self, robot: &str) -> Vec<String> {
        self.got(robot, |got| matches!(got, Got::Dispatch { .. }))
    }

    pub(super) fn cancelled(&self, robot: &str) -> Vec<String> {
        self.got(robot, |got| *got == Got::Cancel)
    }

    pub(super) fn stopped(&self, robot: &str) -> Vec<String> {
        self.got(robot, |got| matches!(got, Got::Stop(_)))
    }

    pub(super) fn asked(&self, robot: &str) -> Vec<String> {
        self.got(robot, |got| *got == Got::Question)
    }

    pub(super) fn settled(&self) -> BTreeSet<String> {
        self.history()
            .iter()
            .filter(|event| event.got == Got::Settled)
            .map(|event| event.mission.to_string())
            .collect()
    }

    /// The most dispatches that one robot ever had under way at once.
    pub(super) fn most_at_once(&self) -> usize {
        let scripts = self.scripts.lock().unwrap();
        scripts.values().map(|s| s.most_at_once).max().unwrap_or(0)
    }

    /// What was under way in a gateway that is dead is no longer.
    pub(super) fn forget_calls(&self) {
        for script in self.scripts.lock().unwrap().values_mut() {
            script.handing_over = 0;
        }
    }

    fn note(&self, command: &Command, got: Got) {
        self.history.lock().unwrap().push(Event {
            at: self.start.elapsed(),
            robot: command.robot_id.clone(),
            mission: command.mission_id.clone(),
            got,
        });
    }
}

impl Fake {
    /// The next answer of a script, after its delay.
    async fn answer<T>(
        &self,
        robot: &RobotId,
        next: impl FnOnce(&mut Script) -> (Duration, T),
    ) -> T {
        let (delay, answer) = self.robots.script(robot.as_str(), next);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
        answer
    }
}

fn next<T>(answers: &mut Scripted<T>, down: bool, out_of_reach: T, otherwise: T) -> (Duration, T) {
    answers
        .pop_front()
        .unwrap_or((Duration::ZERO, if down { out_of_reach } else { otherwise }))
}

fn lost() -> SignalError {
    SignalError::Unreachable {
        reason: "link is down".into(),
    }
}

#[async_trait]
impl Adapter for Fake {
    async fn dispatch(
        &self,
        command: Arc<Command>,
        expires_in: Duration,
    ) -> Result<Handover, DispatchError> {
        self.robots.note(&command, Got::Dispatch { expires_in });
        let answer = self
            .answer(&command.robot_id, |script| {
                script.handing_over += 1;
                script.most_at_once = script.most_at_once.max(script.handing_over);
                let down = DispatchError::Unreachable {
                    reason: "link is down".into(),
                };
                next(
                    &mut script.dispatch,
                    script.down,
                    Err(down),
                    Ok(Handover::Sent),
                )
            })
            .await;
        if matches!(answer, Err(DispatchError::Unreachable { .. })) {
            self.robots.note(&command, Got::NotSent);
        }
        self.robots
            .script(command.robot_id.as_str(), |s| s.handing_over -= 1);
        answer
    }

    async fn cancel(&self, cancel: Arc<Cancel>) -> Result<(), SignalError> {
        self.robots.note(&cancel.command, Got::Cancel);
        self.answer(&cancel.command.robot_id, |script| {
            next(&mut script.cancel, script.down, Err(lost()), Ok(()))
        })
        .await
    }

    async fn stop(&self, stop: Arc<Command>) -> Result<StopAnswer, SignalError> {
        self.robots.note(&stop, Got::Stop(stop.action_type));
        self.answer(&stop.robot_id, |script| {
            let sent = Ok(StopAnswer::Requested);
            next(&mut script.stop, script.down, Err(lost()), sent)
        })
        .await
    }

    async fn stops_landed(&self, robot: &RobotId) {
        let late = self
            .robots
            .script(robot.as_str(), |script| script.stops_late);
        if !late.is_zero() {
            sleep(late).await;
        }
    }

    async fn reconcile(&self, command: Arc<Command>) -> Result<Reconciled, SignalError> {
        self.robots.note(&command, Got::Question);
        self.answer(&command.robot_id, |script| {
            let cannot = Ok(Reconciled::CannotAsk);
            next(&mut script.reconcile, script.down, Err(lost()), cannot)
        })
        .await
    }

    fn settle(&self, command: &Command) {
        self.robots.note(command, Got::Settled);
    }

    fn link(&self, robot: &RobotId) -> Link {
        match self.robots.script(robot.as_str(), |script| script.down) {
            false => Link::Up,
            true => Link::Down {
                reason: "link is down".into(),
            },
        }
    }
}
