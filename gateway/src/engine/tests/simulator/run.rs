//! One run: what happens next is drawn from the seed, and looked at.

use super::{
    super::make,
    adapter::SimAdapter,
    disk::{self, Mood},
    robot::Robot,
    world::Shared,
};
use crate::{
    clock::Clock,
    engine::{Engine, EngineObserver, Limits, RobotSpec, World},
    journal::{BACKLOG_LIMIT, Journal, Opened, Reader, Retention, Update},
};
use portarium_protocols::{adapter::Disbelieved, ids::RobotId, mission::MissionStatus};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// What came of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) steps: u64,
    pub(super) hash: u64,
    pub(super) wrong: Option<String>,
}

struct WallClock {
    world: Shared,
    life: u64,
}

impl Clock for WallClock {
    fn now(&self) -> SystemTime {
        let mut world = self.world.lock();
        // Whoever looks at the clock is about to do something.
        world.goes_on(self.life);
        let now =
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + world.start.elapsed();
        let stepped = Duration::from_secs(world.stepped.unsigned_abs());
        if world.stepped < 0 {
            now - stepped
        } else {
            now + stepped
        }
    }
}

/// Hears nothing.
struct Deaf;

impl EngineObserver for Deaf {
    fn entered(&self, _: &'static str, _: Option<MissionStatus>, _: MissionStatus) {}
    fn recovered(&self, _: &'static str, _: MissionStatus) {}
    fn forgotten(&self, _: &'static str, _: MissionStatus) {}
    fn outcome_unknown(&self, _: bool) {}
    fn stop_sent(&self, _: Duration) {}
    fn committed(&self, _: Duration, _: usize) {}
    fn disbelieved(&self, _: &Disbelieved) {}
}

pub(super) struct Run {
    pub(super) world: Shared,
    pub(super) turn: usize,
    pub(super) specs: Vec<RobotSpec>,
    /// So many missions may be open.
    open_missions: usize,
    life: Option<(Engine, JoinHandle<()>)>,
}

impl Run {
    pub(super) fn new(seed: u64, print: bool, folder: PathBuf) -> Self {
        fastrand::seed(seed);
        let world = Shared::new(seed, print, disk::Disk::new(folder));
        let (specs, open_missions) = {
            let mut world = world.lock();
            let robots = world.random.usize(1..4);
            let specs = (0..robots).map(|n| {
                let id: RobotId = format!("r{n}").parse().unwrap();
                let robot = Robot::draw(&mut world.random);
                let mut spec = make::spec(id.as_str());
                spec.idempotent = robot.idempotent;
                spec.queue = [0, 2, 16][world.random.usize(0..3)];
                world.robots.insert(id, robot);
                spec
            });
            let specs: Vec<RobotSpec> = specs.collect();
            let faults = world.faults;
            world.happens(format_args!("{faults:?}"));
            let open_missions = [5, 20, 100][world.random.usize(0..3)];
            (specs, open_missions)
        };
        Self {
            world,
            turn: 0,
            specs,
            open_missions,
            life: None,
        }
    }

    pub(super) fn engine(&self) -> Engine {
        self.life.as_ref().unwrap().0.clone()
    }

    /// Starts the gateway on what is on the disk.
    async fn open(&mut self) {
        let (life, path) = {
            let mut world = self.world.lock();
            let life = world.begin_life();
            world.disk.becomes(Mood::Well);
            world.disk.make_folder();
            world.meet_all();
            world.happens(format_args!("the gateway starts"));
            (life, world.disk.journal())
        };
        let clock = Arc::new(WallClock {
            world: self.world.clone(),
            life,
        });
        let at_most = self.world.lock().faults.keeps;
        let retention = Retention {
            keep_for: Duration::from_secs(100 * 24 * 3600),
            at_most,
        };
        let Opened {
            journal,
            mut writer,
            loaded,
        } = Journal::open(&path, retention, &*clock).unwrap();
        journal.reader().read_at_once();
        let adapter = Arc::new(SimAdapter {
            world: self.world.clone(),
            life,
        });
        let mut specs = self.specs.clone();
        for spec in &mut specs {
            spec.adapter = Some(adapter.clone());
        }
        let (updates, received) = mpsc::channel(256);
        {
            let mut world = self.world.lock();
            world.disk.opened(&writer);
            world.updates = Some(updates);
            world.head = Some(journal.head());
        }
        let world = World {
            clock,
            observer: Arc::new(Deaf),
            limits: Limits {
                open_missions: self.open_missions,
            },
        };
        let engine = Engine::start(world, journal, loaded, specs, received).unwrap();
        writer.observe(engine.observer());
        let writer = tokio::spawn(disk::write(self.world.clone(), life, writer));
        self.life = Some((engine, writer));
        let stream = self.read(0, usize::MAX).await;
        self.world.lock().compare(&stream);
        let engine = self.engine();
        let (head, reader) = (engine.journal().head(), engine.journal().reader().clone());
        tokio::spawn(follow(self.world.clone(), life, head, reader));
    }

    /// The gateway is dead: what it left but its files is thrown away.
    fn bury(&mut self) {
        let (engine, writer) = self.life.take().unwrap();
        writer.abort();
        engine.inner.closing.cancel();
        let mut world = self.world.lock();
        world.die();
        world.keep_what_is_durable();
        world.cut_all();
        world.book.crashed();
    }

    /// It ends as it is asked to.
    async fn close(&mut self) {
        let (engine, writer) = self.life.take().unwrap();
        {
            let mut world = self.world.lock();
            world.happens(format_args!("the gateway is asked to end"));
            world.never_crash();
            world.disk.becomes(Mood::Well);
        }
        engine.drain().await;
        engine.close().await;
        // A stop that came in the last moment holds on to the journal until it is answered.
        let stop = writer.abort_handle();
        if timeout(Duration::from_secs(20), writer).await.is_err() {
            stop.abort();
        }
        let mut world = self.world.lock();
        world.die();
        world.keep_what_is_durable();
        world.cut_all();
        world.book.crashed();
    }

    pub(super) async fn restart_in_order(&mut self) {
        let crashes = self.world.lock().faults.crashes;
        if crashes {
            self.close().await;
            self.open().await;
        }
    }

    async fn read(&self, after: u64, limit: usize) -> Vec<Update> {
        let engine = self.engine();
        let reader = engine.journal().reader();
        reader.updates(after, None, limit).await.unwrap()
    }

    /// Time passes, or the gateway dies and comes back.
    async fn pass(&mut self) {
        let (span, died) = {
            let mut world = self.world.lock();
            let span = match world.random.u32(0..20) {
                0..12 => world.millis(0..30),
                12..19 => world.millis(30..3_000),
                _ => world.millis(3_000..100_000),
            };
            (span, world.died.clone())
        };
        tokio::select! {
            biased;
            () = died.notified() => {}
            () = sleep(span) => {}
        }
        if !self.world.lock().lives() {
            self.restart().await;
        }
    }

    async fn restart(&mut self) {
        self.bury();
        let away = {
            let mut world = self.world.lock();
            if world.chance(80) {
                world.millis(0..5_000)
            } else {
                world.millis(0..200_000)
            }
        };
        sleep(away).await;
        self.open().await;
    }

    pub(super) async fn look(&mut self) {
        if !self.world.lock().lives() {
            return;
        }
        self.resume_somewhere().await;
        let mut world = self.world.lock();
        world.judge_dues();
        world.judge_acknowledged();
        let inner = &self.engine().inner;
        let (open, waits) = (inner.open.load(Ordering::Relaxed), inner.journal.backlog());
        if open > self.open_missions || waits > BACKLOG_LIMIT {
            world.broken(format_args!(
                "{open} missions are open, {waits} wait for the disk"
            ));
        }
        for spec in &self.specs {
            let robot = self.engine().inner.robot(&spec.id).unwrap();
            let state = robot.lock();
            let (queued, stops) = (state.queue.len(), state.open.len());
            if queued > spec.queue + 1 || stops > spec.queue + 30 {
                world.broken(format_args!("{queued} wait, {stops} are open"));
            }
        }
        if let Some(panic) = super::panicked() {
            world.broken(format_args!("{panic}"));
        }
    }

    /// A watcher that was cut off anywhere goes on from there, for all missions or for one.
    async fn resume_somewhere(&self) {
        let (after, limit, mission) = {
            let mut world = self.world.lock();
            let heard = world.book.stream.len();
            if heard == 0 || !world.chance(30) {
                return;
            }
            let n = world.random.usize(0..heard);
            let update = &world.book.stream[n];
            let (after, mission) = (update.position, update.command.mission_id.clone());
            (after, world.random.usize(1..20), mission)
        };
        let all = self.read(after, limit).await;
        let engine = self.engine();
        let reader = engine.journal().reader();
        let of_one = match engine.number(&mission) {
            Some(number) => reader.updates(0, Some(number), usize::MAX).await.unwrap(),
            None => Vec::new(),
        };
        self.world
            .lock()
            .judge_resumed(after, limit, &all, &mission, &of_one);
    }

    pub(super) fn is_over(&self) -> bool {
        self.world.lock().wrong.is_some()
    }

    pub(super) async fn run(mut self) -> Outcome {
        self.open().await;
        tokio::spawn(look_on(self.world.clone()));
        let turns = self.world.lock().random.usize(20..120);
        for _ in 0..turns {
            self.turn().await;
            self.pass().await;
            self.look().await;
            if self.is_over() {
                break;
            }
        }
        if !self.is_over() {
            if !self.world.lock().lives() {
                self.restart().await;
            }
            self.heal().await;
        }
        let world = self.world.lock();
        Outcome {
            steps: world.trace.steps(),
            hash: world.trace.hash(),
            wrong: world.wrong.clone(),
        }
    }
}

/// Looks between turns as well, which may be minutes apart.
async fn look_on(world: Shared) {
    loop {
        sleep(Duration::from_secs(5)).await;
        world.lock().judge_dues();
    }
}

/// Follows all missions for as long as the gateway lives.
async fn follow(world: Shared, life: u64, mut head: watch::Receiver<u64>, reader: Reader) {
    head.mark_changed();
    while head.changed().await.is_ok() {
        let last = {
            let stream = &world.lock().book.stream;
            stream.last().map_or(0, |update| update.position)
        };
        let heard = reader.updates(last, None, usize::MAX).await.unwrap();
        let mut world = world.lock();
        if !world.goes_on(life) {
            return;
        }
        world.watched(heard);
    }
}
