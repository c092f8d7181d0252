//! Everything outside the gateway, under one lock: time, robots, wires, the disk's moods, and what
//! everybody was told.
//!
//! # A crash at any await or commit
//! Of a process that died nothing is left but what others saw of it: what it sent, what it
//! answered, what it wrote. Between two such effects one moment is as good as another. So each
//! effect, each look at the clock and each half of a commit is a place where the gateway may die:
//! from there on nothing that it does has any effect, and what it left is thrown away.

use super::{book::Book, disk::Disk, robot::Robot, trace::Trace};
use fastrand::Rng;
use portarium_protocols::{adapter::Update, ids::RobotId, mission::Command};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep},
};

/// Which faults a run has: each run has some of them, so that no fault hides another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Faults {
    pub(super) crashes: bool,
    pub(super) disk: bool,
    pub(super) wires: bool,
    pub(super) power: bool,
    pub(super) words: bool,
    pub(super) clock: bool,
    /// So many missions that have ended are kept.
    pub(super) keeps: usize,
    /// The network's usual delay, and how many in a hundred messages take far longer.
    pub(super) delay: Duration,
    pub(super) slow: u32,
}

impl Faults {
    pub(super) fn draw(random: &mut Rng) -> Self {
        let mut some = |of: u32| random.u32(0..100) < of;
        Self {
            crashes: some(70),
            disk: some(50),
            wires: some(65),
            power: some(40),
            words: some(50),
            clock: some(30),
            keeps: if some(25) { 20 } else { 1_000_000 },
            delay: Duration::from_millis([1, 5, 40, 300][random.usize(0..4)]),
            slow: [0, 5, 20][random.usize(0..3)],
        }
    }

    /// From now on there are none.
    pub(super) fn end(self) -> Self {
        Self {
            crashes: false,
            disk: false,
            wires: false,
            power: false,
            words: false,
            clock: false,
            delay: Duration::from_millis(1),
            slow: 0,
            ..self
        }
    }
}

pub(super) struct World {
    me: Weak<Mutex<World>>,
    pub(super) start: Instant,
    pub(super) random: Rng,
    pub(super) trace: Trace,
    pub(super) faults: Faults,
    /// All is well from now on.
    pub(super) healed: bool,
    /// Grows with each start of the gateway.
    pub(super) life: u64,
    pub(super) since: Instant,
    alive: bool,
    may_crash: bool,
    crash_in: Option<u64>,
    /// Who waits for the moment after so many effects.
    moments: Vec<(u64, Arc<Notify>)>,
    spins: (Instant, u32),
    pub(super) died: Arc<Notify>,
    /// The first promise that was broken.
    pub(super) wrong: Option<String>,
    /// How far the wall clock was stepped, and whether ever back.
    pub(super) stepped: i64,
    pub(super) stepped_back: bool,
    pub(super) robots: BTreeMap<RobotId, Robot>,
    pub(super) book: Book,
    pub(super) disk: Disk,
    pub(super) updates: Option<mpsc::Sender<Update>>,
    pub(super) head: Option<watch::Receiver<u64>>,
    /// Missions whose end is being published: nobody hears of it before it is.
    pub(super) settled: Vec<Command>,
}

#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(super) fn new(seed: u64, print: bool, disk: Disk) -> Self {
        let mut random = Rng::with_seed(seed);
        let faults = Faults::draw(&mut random);
        Self(Arc::new_cyclic(|me| {
            Mutex::new(World {
                me: me.clone(),
                start: Instant::now(),
                random,
                trace: Trace::new(print),
                faults,
                healed: false,
                life: 0,
                since: Instant::now(),
                alive: false,
                may_crash: true,
                crash_in: None,
                moments: Vec::new(),
                spins: (Instant::now(), 0),
                died: Arc::default(),
                wrong: None,
                stepped: 0,
                stepped_back: false,
                robots: BTreeMap::new(),
                book: Book::default(),
                disk,
                updates: None,
                head: None,
                settled: Vec::new(),
            })
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Something happens that is not the gateway's doing.
    pub(super) fn happens(&mut self, what: fmt::Arguments<'_>) {
        let at = self.start.elapsed();
        self.trace.note(at, what);
    }

    /// The gateway is about to do something that the world can see; `false` if it is dead, or dies
    /// here and now.
    pub(super) fn does(&mut self, life: u64, what: fmt::Arguments<'_>) -> bool {
        if !self.goes_on(life) {
            return false;
        }
        self.happens(what);
        true
    }

    /// A moment at which the gateway may die, and that nobody else sees.
    pub(super) fn goes_on(&mut self, life: u64) -> bool {
        if !self.is_alive(life) {
            return false;
        }
        // What spins keeps a clock that waits for idleness from ever moving.
        if self.spins.0 != Instant::now() {
            self.spins = (Instant::now(), 0);
        }
        self.spins.1 += 1;
        assert!(self.spins.1 < 100_000, "the gateway spins");
        self.moments.retain_mut(|(left, moment)| match left {
            0 => {
                moment.notify_one();
                false
            }
            left => {
                *left -= 1;
                true
            }
        });
        match &mut self.crash_in {
            Some(0) => {
                self.happens(format_args!("the gateway dies"));
                self.die();
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    pub(super) fn is_alive(&self, life: u64) -> bool {
        self.alive && self.life == life
    }

    pub(super) fn lives(&self) -> bool {
        self.alive
    }

    /// The gateway dies at the effect so many effects from now.
    pub(super) fn crash_in(&mut self, effects: u64) {
        self.crash_in = Some(effects).filter(|_| self.may_crash);
    }

    /// Tells of the moment so many effects from now: it is in the middle of something.
    pub(super) fn moment_in(&mut self, effects: u64) -> Arc<Notify> {
        let moment = Arc::new(Notify::new());
        self.moments.push((effects, moment.clone()));
        moment
    }

    /// It lives until it is asked to end.
    pub(super) fn never_crash(&mut self) {
        self.may_crash = false;
        self.crash_in = None;
    }

    pub(super) fn begin_life(&mut self) -> u64 {
        self.life += 1;
        self.since = Instant::now();
        self.alive = true;
        self.may_crash = !self.healed;
        self.crash_in = None;
        self.settled.clear();
        self.moments.clear();
        self.life
    }

    pub(super) fn die(&mut self) {
        self.alive = false;
        self.updates = None;
        self.head = None;
        self.died.notify_one();
    }

    /// A promise is broken. The first one counts; the run ends.
    pub(super) fn broken(&mut self, what: fmt::Arguments<'_>) {
        self.happens(format_args!("BROKEN: {what}"));
        if self.wrong.is_none() {
            self.wrong = Some(what.to_string());
        }
        self.died.notify_one();
    }

    /// Does something later, whatever becomes of the gateway.
    pub(super) fn later(&self, delay: Duration, act: impl FnOnce(&mut World) + Send + 'static) {
        let me = self.me.clone();
        tokio::spawn(async move {
            sleep(delay).await;
            if let Some(world) = me.upgrade() {
                act(&mut world.lock().unwrap_or_else(PoisonError::into_inner));
            }
        });
    }

    pub(super) fn chance(&mut self, in_a_hundred: u32) -> bool {
        self.random.u32(0..100) < in_a_hundred
    }

    pub(super) fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.u64(range))
    }

    /// How long a message takes.
    pub(super) fn delay(&mut self) -> Duration {
        if self.random.u32(0..100) < self.faults.slow {
            return self.millis(500..4_000);
        }
        let usual = u64::try_from(self.faults.delay.as_millis()).unwrap();
        self.millis(0..usual + 1)
    }

    pub(super) fn robot(&mut self, id: &RobotId) -> &mut Robot {
        self.robots.get_mut(id).unwrap()
    }

    /// Any robot, by chance.
    pub(super) fn some_robot(&mut self) -> RobotId {
        let n = self.random.usize(0..self.robots.len());
        self.robots.keys().nth(n).unwrap().clone()
    }
}
