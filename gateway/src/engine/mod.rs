//! The mission engine: what a mission promises, kept.
//!
//! Each robot has one lock around its state and one task that drives it. Whoever changes the
//! state appends the change to the journal before letting go of the lock, so that the journal
//! has the changes in the order in which they happened; what others may know of is what is
//! committed. Time, disk and adapters come in from outside.

mod admission;
mod cancel;
mod deadline;
mod driver;
mod index;
mod lane;
mod operator;
mod question;
mod recovery;
mod registry;
mod repeat;
mod report;
mod robot;
mod stop;
#[cfg(test)]
mod tests;
mod transition;
mod view;
mod words;

pub use admission::{Dispatched, Refusal};
pub use cancel::Cancelled;
pub use operator::OperatorError;
pub use registry::{RegistryError, RobotSpec};
pub use robot::Robot;
pub use stop::Stopped;
pub use transition::rfc3339;
pub use view::{Counts, MissionView, Probe, RobotView};

use crate::{
    clock::Clock,
    journal::{Forgotten, Journal, JournalError, Loaded, Mission, Observer, RobotRow},
};
use arc_swap::ArcSwap;
use index::Index;
use portarium_protocols::{
    adapter::{Adapter, Disbelieved, Update},
    ids::RobotId,
    mission::MissionStatus,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Hears of what the engine does, for metrics. Never waits.
pub trait EngineObserver: Send + Sync {
    /// A mission of this adapter came into a state (durable or about to be); `from` is `None`
    /// for a new one.
    fn entered(&self, adapter: &'static str, from: Option<MissionStatus>, to: MissionStatus);
    /// An open mission was found in the journal.
    fn recovered(&self, adapter: &'static str, status: MissionStatus);
    /// A new mission could not be made durable and is gone.
    fn forgotten(&self, adapter: &'static str, status: MissionStatus);
    /// A mission's outcome became unknown, or known again.
    fn outcome_unknown(&self, now_unknown: bool);
    /// From the call to the moment at which the stop was given to the adapter.
    fn stop_sent(&self, after: Duration);
    /// A commit of so many appends took so long.
    fn committed(&self, took: Duration, appends: usize);
    /// Something was said in a robot's name that is not believed.
    fn disbelieved(&self, said: &Disbelieved);
}

/// Bounds that are not a robot's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open missions over all robots, stops aside.
    pub open_missions: usize,
}

/// What the engine is made of.
pub struct World {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// For metrics.
    pub observer: Arc<dyn EngineObserver>,
    /// Bounds.
    pub limits: Limits,
}

/// The mission engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    world: World,
    journal: Journal,
    robots: ArcSwap<BTreeMap<RobotId, Arc<Robot>>>,
    /// What holds for robots that are not configured now, should they come back.
    absent: Mutex<BTreeMap<RobotId, RobotRow>>,
    index: Mutex<Index>,
    open: AtomicUsize,
    // One look at the disk at a time for late words on missions that have ended.
    late: Arc<Semaphore>,
    draining: CancellationToken,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Engine {
    /// Takes up where the journal left off and starts to drive the robots. Updates of their
    /// adapters come in through `updates`.
    ///
    /// # Errors
    /// Where the registry contradicts itself.
    pub fn start(
        world: World,
        journal: Journal,
        loaded: Loaded,
        specs: Vec<RobotSpec>,
        updates: mpsc::Receiver<Update>,
    ) -> Result<Self, RegistryError> {
        let inner = Arc::new(Inner {
            world,
            journal,
            robots: ArcSwap::default(),
            absent: Mutex::default(),
            index: Mutex::default(),
            open: AtomicUsize::new(0),
            late: Arc::new(Semaphore::new(1)),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        recovery::take_up(&inner, loaded, specs)?;
        inner.tasks.spawn(report::pump(inner.clone(), updates));
        Ok(Self { inner })
    }

    /// Hears of what the journal's writer did; to be set before the writer runs.
    pub fn observer(&self) -> Arc<dyn Observer> {
        Arc::new(Hook(Arc::downgrade(&self.inner)))
    }

    /// No new missions from now on; what is being handed over is finished, what waits stays in
    /// the journal. Stops and cancels still go. Returns when nothing is being handed over.
    pub async fn drain(&self) {
        self.inner.draining.cancel();
        // Who was accepting a mission meanwhile has done so, and it is seen below.
        drop(self.inner.index());
        loop {
            let robots = self.inner.robots.load_full();
            if !robots.values().any(|robot| robot.lock().is_handing_over()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends all tasks; what they were at is in the journal.
    pub async fn close(self) {
        self.inner.draining.cancel();
        self.inner.closing.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn absent(&self) -> MutexGuard<'_, BTreeMap<RobotId, RobotRow>> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn robot(&self, id: &RobotId) -> Option<Arc<Robot>> {
        self.robots.load().get(id).cloned()
    }

    fn adapter(&self, id: &RobotId) -> Option<Arc<dyn Adapter>> {
        self.robots
            .load()
            .get(id)
            .and_then(|robot| robot.spec().adapter.clone())
    }
}

/// The writer's way to the engine. It keeps nothing alive: the journal ends when the engine lets
/// go of it.
struct Hook(Weak<Inner>);

impl Observer for Hook {
    fn committed(&self, took: Duration, appends: usize) {
        let Some(inner) = self.0.upgrade() else {
            return;
        };
        inner.world.observer.committed(took, appends);
    }

    fn ended(&self, mission: &Arc<Mission>, position: u64) {
        let Some(inner) = self.0.upgrade() else {
            return;
        };
        inner.index().ended(mission, position);
        if !mission.command.action_type.is_stop() {
            inner.open.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(adapter) = inner.adapter(&mission.command.robot_id) {
            adapter.settle(&mission.command);
        }
    }

    fn refused(&self, mission: &Arc<Mission>) {
        let Some(inner) = self.0.upgrade() else {
            return;
        };
        // Index and robot in one step: the same mission, asked for again, is a new one as soon as
        // the index does not know it, and must not be forgotten in place of this one.
        let mut index = inner.index();
        index.remove(mission);
        inner.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(robot) = inner.robot(&mission.command.robot_id) {
            robot.lock().forget(mission);
            robot.wake.notify_one();
        }
    }

    fn forgotten(&self, missions: Vec<Forgotten>) {
        let Some(inner) = self.0.upgrade() else {
            return;
        };
        let mut index = inner.index();
        for mission in &missions {
            index.forgotten(mission);
        }
    }
}

/// What callers are told when the journal cannot take their mission.
fn journal_refusal(error: &JournalError) -> Refusal {
    Refusal::Unreachable {
        message: format!("the mission was not accepted: {}", error.for_callers()),
        retry_after: Duration::from_secs(1),
    }
}
