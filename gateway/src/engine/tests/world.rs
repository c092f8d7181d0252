//! A gateway's engine on a real journal, among scripted robots, on one thread and a clock that
//! stands still while anything is to be done. It can be crashed and opened again.

use super::{
    fake::Robots,
    make::{mission, report, spec, stop},
};
use crate::{
    clock::Clock,
    engine::{Dispatched, Engine, EngineObserver, Limits, Refusal, RobotSpec, Stopped, World},
    journal::{Batch, Journal, JournalError, Opened, Retention, Writer},
};
use portarium_protocols::{
    adapter::{Disbelieved, Link, Report, Update},
    ids::{MissionId, RobotId},
    mission::{ActionType, Command, MissionStatus},
};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

pub(super) const CALLER: &str = "spiffe://example.org/ns/control/sa/plane";

/// How the disk behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    Well,
    /// Commits wait.
    Hangs,
    /// Commits fail, nothing is written.
    Full,
    /// Commits fail when they are to be made durable: they may be on the disk or not.
    Unsure,
}

/// Wall clock: the test's clock, from a fixed date on.
struct TestClock {
    start: Instant,
    looks: Arc<AtomicUsize>,
    at_once: Mutex<(Instant, usize)>,
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        self.looks.fetch_add(1, Ordering::Relaxed);
        // A task that spins keeps a clock that waits for idleness from ever moving.
        let mut at_once = self.at_once.lock().unwrap();
        if at_once.0 != Instant::now() {
            *at_once = (Instant::now(), 0);
        }
        at_once.1 += 1;
        assert!(at_once.1 < 1_000_000, "a driver spins");
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.start.elapsed()
    }
}

/// Hears of what is not believed, and of nothing else.
#[derive(Default, Clone)]
struct Ear(Arc<Mutex<Vec<Disbelieved>>>);

impl EngineObserver for Ear {
    fn entered(&self, _: &'static str, _: Option<MissionStatus>, _: MissionStatus) {}
    fn recovered(&self, _: &'static str, _: MissionStatus) {}
    fn forgotten(&self, _: &'static str, _: MissionStatus) {}
    fn outcome_unknown(&self, _: bool) {}
    fn stop_sent(&self, _: Duration) {}
    fn committed(&self, _: Duration, _: usize) {}
    fn disbelieved(&self, said: &Disbelieved) {
        self.0.lock().unwrap().push(said.clone());
    }
}

/// What runs between two crashes.
struct Life {
    engine: Engine,
    updates: mpsc::Sender<Update>,
    writer: JoinHandle<()>,
    dead: CancellationToken,
}

/// The test's world.
pub(super) struct Sim {
    folder: tempfile::TempDir,
    lives: usize,
    start: Instant,
    pub(super) robots: Arc<Robots>,
    pub(super) specs: Vec<RobotSpec>,
    pub(super) retention: Retention,
    pub(super) limits: Limits,
    disk: watch::Sender<Disk>,
    commits: Arc<Mutex<Vec<usize>>>,
    looks: Arc<AtomicUsize>,
    ear: Ear,
    life: Option<Life>,
}

impl Sim {
    /// One robot `r`, not idempotent, with a queue of 16, and a journal that was just made.
    pub(super) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// The same, with changes before the first start.
    pub(super) async fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut sim = Self {
            folder: tempfile::tempdir().unwrap(),
            lives: 0,
            start: Instant::now(),
            robots: Robots::new(),
            specs: vec![spec("r")],
            retention: Retention {
                keep_for: Duration::from_secs(3600),
                at_most: 1_000_000,
            },
            limits: Limits {
                open_missions: 100_000,
            },
            disk: watch::Sender::new(Disk::Well),
            commits: Arc::default(),
            looks: Arc::default(),
            ear: Ear::default(),
            life: None,
        };
        change(&mut sim);
        sim.open().await;
        sim
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder
            .path()
            .join(self.lives.to_string())
            .join("journal.sqlite")
    }

    /// Starts the gateway on what is on the disk.
    pub(super) async fn open(&mut self) {
        std::fs::create_dir_all(self.path().parent().unwrap()).unwrap();
        let clock = Arc::new(TestClock {
            start: self.start,
            looks: self.looks.clone(),
            at_once: Mutex::new((self.start, 0)),
        });
        let Opened {
            journal,
            mut writer,
            loaded,
        } = Journal::open(&self.path(), self.retention, &*clock).unwrap();
        let dead = CancellationToken::new();
        let (updates, received) = mpsc::channel(256);
        let world = World {
            clock,
            observer: Arc::new(self.ear.clone()),
            limits: self.limits,
        };
        let specs = self.connected(&dead);
        let engine = Engine::start(world, journal, loaded, specs, received).unwrap();
        writer.observe(engine.observer());
        let step = write(
            writer,
            self.disk.subscribe(),
            self.commits.clone(),
            dead.clone(),
        );
        self.life = Some(Life {
            engine,
            updates,
            writer: tokio::spawn(step),
            dead,
        });
        idle().await;
    }

    fn connected(&self, dead: &CancellationToken) -> Vec<RobotSpec> {
        let adapter = self.robots.adapter(dead);
        let mut specs = self.specs.clone();
        for spec in &mut specs {
            spec.adapter = Some(adapter.clone());
        }
        specs
    }

    /// Takes over the changed `specs`, as a reload does.
    pub(super) async fn reload(&self) -> Result<(), crate::engine::RegistryError> {
        let specs = self.connected(&self.life().dead);
        let answer = self.engine().replace_robots(specs);
        idle().await;
        answer
    }

    /// The process dies: what is on the disk stays, and nothing else. The next life begins.
    pub(super) async fn crash(&mut self) {
        self.die();
        self.open().await;
    }

    /// The process dies, and does not come back yet.
    pub(super) fn die(&mut self) {
        let life = self.life.take().unwrap();
        life.dead.cancel();
        life.writer.abort();
        life.engine.inner.closing.cancel();
        let old = self.path();
        self.lives += 1;
        let new = self.path();
        std::fs::create_dir_all(new.parent().unwrap()).unwrap();
        for end in ["", "-wal"] {
            let name = |path: &PathBuf| format!("{}{end}", path.display());
            if std::fs::exists(name(&old)).unwrap() {
                std::fs::copy(name(&old), name(&new)).unwrap();
            }
        }
        self.robots.forget_calls();
    }

    fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    pub(super) fn engine(&self) -> Engine {
        self.life().engine.clone()
    }

    /// The updates' channel.
    pub(super) fn updates(&self) -> mpsc::Sender<Update> {
        self.life().updates.clone()
    }

    pub(super) fn disk(&self, disk: Disk) {
        self.disk.send_replace(disk);
    }

    /// The sizes of the commits so far.
    pub(super) fn commits(&self) -> Vec<usize> {
        self.commits.lock().unwrap().clone()
    }

    /// How often the engine looked at the wall clock: a driver does at each turn.
    pub(super) fn looks(&self) -> usize {
        self.looks.load(Ordering::Relaxed)
    }

    /// Ends all as it should end, and waits for the writer too.
    pub(super) async fn close(&mut self) {
        let life = self.life.take().unwrap();
        life.engine.close().await;
        drop(life.updates);
        life.writer.await.unwrap();
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The journal's thread, as a task.
async fn write(
    mut writer: Writer,
    mut disk: watch::Receiver<Disk>,
    commits: Arc<Mutex<Vec<usize>>>,
    dead: CancellationToken,
) {
    while let Some(batch) = writer.receive().await {
        let _ = disk.wait_for(|disk| *disk != Disk::Hangs).await;
        if dead.is_cancelled() {
            return;
        }
        let now = *disk.borrow();
        let size = batch.len();
        if commit(&mut writer, batch, now).is_err() {
            sleep(Duration::from_millis(100)).await;
        } else {
            commits.lock().unwrap().push(size);
        }
        writer.maintain();
    }
}

fn commit(writer: &mut Writer, batch: Batch, disk: Disk) -> Result<(), JournalError> {
    writer
        .connection()
        .pragma_update(None, "query_only", disk == Disk::Full)
        .unwrap();
    writer.fail_sync(disk == Disk::Unsure);
    writer.commit(batch)
}

/// What a caller, an operator or a robot does.
impl Sim {
    pub(super) async fn dispatch(&self, id: &str) -> Result<Dispatched, Refusal> {
        self.ask(mission("r", id)).await
    }

    pub(super) async fn ask(&self, command: Command) -> Result<Dispatched, Refusal> {
        let answer = self.engine().dispatch(CALLER.into(), command).await;
        idle().await;
        answer
    }

    /// Asks and does not wait.
    pub(super) async fn begin(&self, command: Command) -> JoinHandle<Result<Dispatched, Refusal>> {
        let engine = self.engine();
        let task = tokio::spawn(async move { engine.dispatch(CALLER.into(), command).await });
        idle().await;
        task
    }

    pub(super) async fn stop(&self, id: &str) -> Stopped {
        self.halt(stop("r", id, ActionType::Stop)).await
    }

    pub(super) async fn estop(&self, id: &str) -> Stopped {
        self.halt(stop("r", id, ActionType::EstopRequest)).await
    }

    pub(super) async fn halt(&self, command: Command) -> Stopped {
        let answer = self.engine().stop(CALLER.into(), command).await.unwrap();
        idle().await;
        answer
    }

    /// A robot says something of a mission.
    pub(super) async fn say(&self, mission: &str, status: MissionStatus) {
        self.report(report(mission, status)).await;
    }

    pub(super) async fn report(&self, report: Report) {
        self.updates().send(Update::Report(report)).await.unwrap();
        idle().await;
    }

    /// What was not believed since the last time.
    pub(super) fn disbelieved(&self) -> Vec<Disbelieved> {
        std::mem::take(&mut self.ear.0.lock().unwrap())
    }

    pub(super) async fn link(&self, robot: &str, up: bool) {
        self.robots.set_down(robot, !up);
        let link = match up {
            true => Link::Up,
            false => Link::Down {
                reason: "link is down".into(),
            },
        };
        let robot: RobotId = robot.parse().unwrap();
        let update = Update::Link { robot, link };
        self.updates().send(update).await.unwrap();
        idle().await;
    }

    /// `Pending`, `Dispatched` and so on; with `?` where the outcome is unknown, `-` where the
    /// mission is not known.
    pub(super) async fn status(&self, id: &str) -> String {
        let id: MissionId = id.parse().unwrap();
        match self.engine().status(&id).await.unwrap() {
            None => "-".into(),
            Some(view) if view.state.outcome_unknown => format!("{}?", view.state.status),
            Some(view) => view.state.status.to_string(),
        }
    }

    pub(super) async fn detail(&self, id: &str) -> String {
        let id: MissionId = id.parse().unwrap();
        let view = self.engine().status(&id).await.unwrap().unwrap();
        view.state.detail.to_string()
    }

    /// Open missions and stops of robot `r`, in memory.
    pub(super) fn open_in_memory(&self, robot: &str) -> usize {
        let robot = self.engine().inner.robot(&robot.parse().unwrap()).unwrap();
        robot.lock().open.len()
    }

    /// The engine's tasks.
    pub(super) fn tasks(&self) -> usize {
        self.engine().inner.tasks.len()
    }

    pub(super) fn queued(&self, robot: &str) -> usize {
        self.engine().robot(&robot.parse().unwrap()).unwrap().queued
    }
}

/// Lets everything happen that can happen now.
pub(super) async fn idle() {
    sleep(Duration::from_millis(1)).await;
}
