//! Anything may happen at any time, from one seed; the promises hold all the same.

use super::{
    fake::{Got, Script},
    make::{cancel_action, mission, report, spec, stop},
    world::{CALLER, Disk, Sim, idle},
};
use fastrand::Rng;
use portarium_protocols::{
    adapter::{DispatchError, Handover, Reconciled, SignalError, Speaker, StopAnswer},
    mission::{ActionType, Command, MissionStatus},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{sleep, timeout};

const ROBOTS: [&str; 2] = ["plain", "idempotent"];

/// What the world outside remembers, to hold the gateway to it.
#[derive(Default)]
struct Book {
    asked: BTreeMap<String, Command>,
    acknowledged: BTreeMap<String, String>,
    /// Missions that a stop came before, and whether its fence was said to be durable.
    fenced: BTreeMap<String, (usize, bool)>,
    /// Robots that are latched for certain, and whether durably.
    latched: BTreeMap<&'static str, bool>,
    looked_at: usize,
}

struct Run {
    seed: u64,
    random: Rng,
    sim: Sim,
    book: Book,
    step: usize,
}

impl Run {
    async fn new(seed: u64) -> Self {
        let sim = Sim::with(|sim| {
            sim.specs = ROBOTS.map(spec).into();
            sim.specs[1].idempotent = true;
        })
        .await;
        Self {
            seed,
            random: Rng::with_seed(seed),
            sim,
            book: Book::default(),
            step: 0,
        }
    }

    fn robot(&mut self) -> &'static str {
        ROBOTS[self.random.usize(0..ROBOTS.len())]
    }

    fn some_mission(&mut self) -> Option<String> {
        let known: Vec<&String> = self.book.asked.keys().collect();
        let recent = known.len().saturating_sub(8);
        let known = known.get(recent..)?;
        (!known.is_empty()).then(|| known[self.random.usize(0..known.len())].clone())
    }

    async fn turn(&mut self) {
        self.step += 1;
        match self.random.u32(0..100) {
            0..25 => self.dispatch().await,
            25..30 => self.repeat().await,
            30..36 => self.cancel().await,
            36..40 => self.cancel_action().await,
            40..47 => self.stop().await,
            47..52 => self.operator().await,
            52..75 => self.word().await,
            75..80 => self.link().await,
            80..86 => self.disk(),
            86..89 => self.crash().await,
            _ => sleep(Duration::from_millis(self.random.u64(1..20_000))).await,
        }
        self.check().await;
    }

    fn prepare(&mut self, robot: &str) {
        let random = &mut self.random;
        let delay = |random: &mut Rng| match random.u32(0..3) {
            0 => Duration::from_millis(random.u64(1..3_000)),
            _ => Duration::ZERO,
        };
        let reason = || "so it happened".to_owned();
        self.sim.robots.script(robot, |script: &mut Script| {
            let handover = match random.u32(0..10) {
                0 => Err(DispatchError::Unknown { reason: reason() }),
                1 => Err(DispatchError::Unreachable { reason: reason() }),
                2 => Err(DispatchError::Rejected { reason: reason() }),
                3 | 4 => Ok(Handover::Accepted),
                _ => Ok(Handover::Sent),
            };
            script.dispatch.push_back((delay(random), handover));
            let stopped = match random.u32(0..6) {
                0 => Err(SignalError::Unreachable { reason: reason() }),
                1 => Err(SignalError::Refused { reason: reason() }),
                2 => Ok(StopAnswer::Stationary),
                3 => Ok(StopAnswer::Accepted),
                _ => Ok(StopAnswer::Requested),
            };
            script.stop.push_back((delay(random), stopped));
            let cancelled = match random.u32(0..4) {
                0 => Err(SignalError::Unreachable { reason: reason() }),
                1 => Err(SignalError::Refused { reason: reason() }),
                _ => Ok(()),
            };
            script.cancel.push_back((delay(random), cancelled));
            let answer = match random.u32(0..4) {
                0 => Err(SignalError::Unreachable { reason: reason() }),
                1 => Ok(Reconciled::NotKnown),
                _ => Ok(Reconciled::CannotAsk),
            };
            script.reconcile.push_back((delay(random), answer));
            script.dispatch.truncate(2);
            script.stop.truncate(2);
            script.cancel.truncate(2);
            script.reconcile.truncate(2);
        });
    }

    async fn ask(&mut self, command: Command) {
        let id = command.mission_id.to_string();
        self.book.asked.insert(id.clone(), command.clone());
        let engine = self.sim.engine();
        let asked = engine.dispatch(CALLER.into(), command);
        let patience = Duration::from_millis(self.random.u64(1..200));
        if let Ok(Ok(answer)) = timeout(patience, asked).await {
            let known = &mut self.book.acknowledged;
            let known = known.entry(id).or_insert(answer.request_id.clone()).clone();
            assert_eq!(known, answer.request_id, "{self}");
        }
    }

    async fn dispatch(&mut self) {
        let robot = self.robot();
        self.prepare(robot);
        self.ask(mission(robot, &format!("m{:04}", self.step)))
            .await;
    }

    async fn repeat(&mut self) {
        if let Some(id) = self.some_mission() {
            let command = self.book.asked[&id].clone();
            self.ask(command).await;
        }
    }

    async fn cancel_action(&mut self) {
        let robot = self.robot();
        self.prepare(robot);
        self.ask(cancel_action(robot, &format!("c{:04}", self.step)))
            .await;
    }

    async fn cancel(&mut self) {
        if let Some(id) = self.some_mission() {
            let (engine, id) = (self.sim.engine(), id.parse().unwrap());
            let _ = timeout(Duration::from_millis(100), engine.cancel(&id, "")).await;
        }
    }

    async fn stop(&mut self) {
        let robot = self.robot();
        self.prepare(robot);
        let kind = match self.random.u32(0..4) {
            0 => ActionType::EstopRequest,
            _ => ActionType::Stop,
        };
        let history = self.sim.robots.history();
        let sent: BTreeSet<String> = history
            .iter()
            .filter(|e| matches!(e.got, Got::Dispatch { .. }))
            .map(|e| e.mission.to_string())
            .collect();
        let waiting: Vec<String> = self
            .book
            .acknowledged
            .keys()
            .filter(|id| self.book.asked[*id].robot_id.as_str() == robot && !sent.contains(*id))
            .cloned()
            .collect();
        let before = self.sim.elapsed();
        let engine = self.sim.engine();
        let id = format!("s{:04}", self.step - self.step % 7);
        let answer = engine.stop(CALLER.into(), stop(robot, &id, kind)).await;
        let answer = answer.unwrap();
        let took = self.sim.elapsed() - before;
        assert!(took <= Duration::from_millis(22), "{self} {took:?}");
        for id in waiting {
            let fence = self.book.fenced.entry(id).or_insert((history.len(), false));
            fence.1 |= answer.fence_durable;
        }
        if kind == ActionType::EstopRequest {
            *self.book.latched.entry(robot).or_insert(false) |= answer.fence_durable;
        }
    }

    async fn operator(&mut self) {
        let robot = self.robot();
        let id = robot.parse().unwrap();
        let engine = self.sim.engine();
        let patience = Duration::from_millis(50);
        match self.random.u32(0..4) {
            0 => drop(timeout(patience, engine.hold(&id, "")).await),
            _ => {
                // What comes of one that is cut short is not known.
                if !matches!(timeout(patience, engine.release(&id)).await, Ok(Err(_))) {
                    self.book.latched.remove(robot);
                }
            }
        }
    }

    async fn word(&mut self) {
        let Some(id) = self.some_mission() else {
            return;
        };
        let said = MissionStatus::ALL[self.random.usize(0..MissionStatus::ALL.len())];
        let mut word = report(&id, said);
        word.speaker = Speaker::OneOf(Arc::new(ROBOTS.map(|id| id.parse().unwrap()).into()));
        self.sim.report(word).await;
    }

    async fn link(&mut self) {
        let (robot, up) = (self.robot(), self.random.bool());
        self.sim.link(robot, up).await;
    }

    fn disk(&mut self) {
        self.sim.disk(match self.random.u32(0..6) {
            0 => Disk::Hangs,
            1 => Disk::Full,
            2 => Disk::Unsure,
            _ => Disk::Well,
        });
    }

    async fn crash(&mut self) {
        self.sim.die();
        self.sim.disk(Disk::Well);
        sleep(Duration::from_millis(self.random.u64(1..90_000))).await;
        self.sim.open().await;
        self.book.fenced.retain(|_, fence| fence.1);
        self.book.latched.retain(|_, durable| *durable);
    }

    async fn check(&mut self) {
        idle().await;
        let history = self.sim.robots.history();
        let mut tries: BTreeMap<&str, i32> = BTreeMap::new();
        for (place, event) in history.iter().enumerate() {
            let id = event.mission.as_str();
            match event.got {
                Got::Dispatch { expires_in } => {
                    let tries = tries.entry(id).or_default();
                    *tries += 1;
                    let plain = event.robot.as_str() == ROBOTS[0];
                    assert!(!plain || *tries == 1, "{self}: {id} sent blindly again");
                    assert!(!expires_in.is_zero(), "{self}: {id} is stale");
                    let fence = self.book.fenced.get(id);
                    assert!(
                        fence.is_none_or(|f| place < f.0),
                        "{self}: {id} passed a fence"
                    );
                    let latched = self.book.latched.contains_key(event.robot.as_str());
                    let new = place >= self.book.looked_at;
                    assert!(!(new && latched), "{self}: {id} sent to a latched robot");
                }
                Got::NotSent => *tries.entry(id).or_default() -= 1,
                _ => {}
            }
        }
        self.book.looked_at = history.len();
        assert!(self.sim.robots.most_at_once() <= 1, "{self}");
        let sent: BTreeSet<&str> = tries.keys().copied().collect();
        for id in sent {
            let status = self.sim.status(id).await;
            assert!(
                status != "-" && status != "Pending",
                "{self}: {id} is {status}"
            );
        }
        for id in self.book.acknowledged.keys() {
            assert_ne!(self.sim.status(id).await, "-", "{self}: {id}");
        }
    }

    /// All is well again: nothing stays behind.
    async fn heal(&mut self) {
        self.sim.disk(Disk::Well);
        for robot in ROBOTS {
            self.sim.robots.script(robot, Script::clear);
            self.sim.link(robot, true).await;
        }
        sleep(Duration::from_secs(200)).await;
        self.check().await;
        let engine = self.sim.engine();
        for id in self.book.asked.keys() {
            let mut word = report(id, MissionStatus::Cancelled);
            word.speaker = Speaker::OneOf(Arc::new(ROBOTS.map(|id| id.parse().unwrap()).into()));
            self.sim.report(word).await;
            let id = id.parse().unwrap();
            let _ = engine.resolve(&id, MissionStatus::Failed, "").await;
        }
        sleep(Duration::from_secs(200)).await;
        for id in self.book.asked.keys() {
            let status = self.sim.status(id).await;
            let ended = ["-", "Succeeded", "Failed", "Cancelled"].contains(&&*status);
            assert!(ended, "{self}: {id} is {status}");
        }
        let open = engine.inner.open.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(open, 0, "{self}: the count of open missions is off");
        for robot in ROBOTS {
            engine.release(&robot.parse().unwrap()).await.unwrap();
            let id = format!("last-{robot}");
            self.sim.ask(mission(robot, &id)).await.unwrap();
            assert_eq!(
                self.sim.robots.dispatched(robot).last(),
                Some(&id),
                "{self}"
            );
        }
        self.check_states().await;
    }

    /// Each change that a watcher saw is one that the contract has.
    async fn check_states(&self) {
        let reader = self.sim.engine().journal().reader().clone();
        let mut last: BTreeMap<String, MissionStatus> = BTreeMap::new();
        for update in reader.updates(0, None, 1_000_000).await.unwrap() {
            let (id, now) = (update.command.mission_id.to_string(), update.state.status);
            if let Some(before) = last.insert(id.clone(), now) {
                let may = before == now || before.may_become(now);
                assert!(may && !before.is_terminal(), "{self}: {id} {before} {now}");
            }
        }
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {} step {}", self.seed, self.step)
    }
}

async fn run(seed: u64, steps: usize) {
    let mut run = Run::new(seed).await;
    for _ in 0..steps {
        run.turn().await;
    }
    run.heal().await;
}

/// `SEEDS=from..to` runs others.
#[test]
fn whatever_happens_the_promises_hold() {
    let seeds = std::env::var("SEEDS").unwrap_or_default();
    let (from, to) = seeds.split_once("..").unwrap_or(("0", "24"));
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(seed, 150));
    }
}
