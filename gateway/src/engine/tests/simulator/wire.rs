//! What lies between the gateway and a robot. Messages take their time
//! and keep their order on one connection; a connection that breaks leaves what had begun to leave
//! in the open: it may arrive all the same.

use super::{
    message::{Answer, Message},
    world::World,
};
use portarium_protocols::{
    adapter::{Link, Report, Speaker, Update},
    ids::RobotId,
    mission::Command,
};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc::error::TrySendError, oneshot},
    time::Instant,
};

/// A message on its way.
struct Flight {
    number: u64,
    call: u64,
    message: Message,
}

pub(super) struct Wire {
    pub(super) up: bool,
    pub(super) since: Instant,
    /// Another one with each connection.
    epoch: u64,
    flights: VecDeque<Flight>,
    numbers: u64,
    last_due: Instant,
    last_word: Instant,
    calls: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// What the gateway was told last.
    told: bool,
    interrupted: bool,
    pub(super) handing_over: u32,
    /// Copies of stops that may still arrive, also by connections that are broken.
    pub(super) stops_out: u32,
    pub(super) landed: Arc<Notify>,
}

impl Wire {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            up: true,
            since: now,
            epoch: 0,
            flights: VecDeque::new(),
            numbers: 0,
            last_due: now,
            last_word: now,
            calls: BTreeMap::new(),
            told: true,
            interrupted: false,
            handing_over: 0,
            stops_out: 0,
            landed: Arc::default(),
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.flights.is_empty()
    }

    /// A message is where it was to go, or cannot get there any more.
    fn is_over(&mut self, message: &Message) {
        if message.is_stop() {
            self.stops_out -= 1;
            self.landed.notify_waiters();
        }
    }
}

impl World {
    /// Puts a message in line behind those before it.
    pub(super) fn put(&mut self, id: &RobotId, call: u64, message: Message, in_line: bool) {
        let delay = self.delay();
        let wire = &mut self.robot(id).wire;
        wire.numbers += 1;
        let (number, epoch) = (wire.numbers, wire.epoch);
        let mut due = Instant::now() + delay;
        if in_line {
            due = due.max(wire.last_due + Duration::from_millis(1));
            wire.last_due = due;
        }
        wire.stops_out += u32::from(message.is_stop());
        wire.flights.push_back(Flight {
            number,
            call,
            message,
        });
        let id = id.clone();
        self.later(due - Instant::now(), move |world| {
            let wire = &mut world.robot(&id).wire;
            let place = wire.flights.iter().position(|f| f.number == number);
            if let Some(flight) = place.and_then(|place| wire.flights.remove(place)) {
                world.arrive(&id, epoch, flight.call, &flight.message);
            }
        });
    }

    /// A call: its answer comes through the channel.
    pub(super) fn call(&mut self, id: &RobotId) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let wire = &mut self.robot(id).wire;
        wire.numbers += 1;
        let call = wire.numbers;
        wire.calls.insert(call, answer);
        (call, answered)
    }

    fn arrive(&mut self, id: &RobotId, epoch: u64, call: u64, message: &Message) {
        let answer = self.land(id, message);
        self.robot(id).wire.is_over(message);
        let Some(answer) = answer else { return };
        let (id, delay) = (id.clone(), self.delay());
        self.later(delay, move |world| {
            let wire = &mut world.robot(&id).wire;
            if wire.epoch == epoch
                && let Some(waits) = wire.calls.remove(&call)
            {
                // A call whose time was over has nobody left who waits.
                let _ = waits.send(answer);
            }
        });
    }

    /// The message is where it was to go: at the robot, or at the broker before it.
    fn land(&mut self, id: &RobotId, message: &Message) -> Option<Answer> {
        let robot = self.robot(id);
        if let Message::Question { mission } = message
            && !robot.answers
        {
            let kept = robot.retained.get(mission).cloned();
            if let Some(kept) = &kept {
                self.transmit(id, kept.clone());
            }
            return Some(kept.map_or(Answer::CannotAsk, Answer::Known));
        }
        let expires = match message {
            Message::Mission { expires, .. } => Some(*expires),
            _ => None,
        };
        match (robot.powered, robot.answers) {
            (true, true) => Some(self.receive(id, message)),
            (true, false) => {
                if expires.is_none_or(|at| at > Instant::now()) {
                    self.receive(id, message);
                }
                Some(Answer::Taken)
            }
            (false, true) => None,
            (false, false) => {
                self.happens(format_args!(
                    "{message} waits for {id} at the broker, or is lost"
                ));
                if self.random.bool() {
                    self.robot(id).keep(message.clone(), expires);
                } else {
                    match message {
                        Message::Stop { sent, .. } => self.book.stop_taken(id, *sent),
                        Message::Cancel { mission, sent } => {
                            self.book.cancel_reached(mission, *sent);
                        }
                        _ => {}
                    }
                }
                Some(Answer::Taken)
            }
        }
    }

    /// The connection breaks. Of what was on it, the first part arrives, the next is lost, and the
    /// rest had not begun to leave.
    pub(super) fn cut(&mut self, id: &RobotId) {
        let wire = &mut self.robot(id).wire;
        wire.epoch += 1;
        wire.since = Instant::now();
        let (was_up, flights) = (wire.up, std::mem::take(&mut wire.flights));
        let calls = std::mem::take(&mut wire.calls);
        wire.up = false;
        wire.interrupted = true;
        if was_up {
            self.happens(format_args!("the connection to {id} breaks"));
        }
        let arrives = self.random.usize(0..=flights.len());
        let leaves = self.random.usize(arrives..=flights.len());
        let unsent: Vec<u64> = flights.iter().skip(leaves).map(|f| f.call).collect();
        // What a gateway that dies leaves of its stops is known to no other, where no broker ends
        // its connections.
        let at_once = flights
            .iter()
            .take(arrives)
            .rposition(|f| f.message.is_stop());
        let at_once = at_once.filter(|_| !self.lives() && self.robots[id].answers);
        let mut delay = Duration::ZERO;
        for (n, flight) in flights.into_iter().enumerate() {
            if n >= arrives {
                self.robot(id).wire.is_over(&flight.message);
            } else if at_once.is_some_and(|last| n <= last) {
                self.lands_late(id, &flight.message);
            } else {
                delay += self.millis(1..700);
                let late = match flight.message.is_stop() && self.chance(30) {
                    true => self.millis(0..8_000),
                    false => Duration::ZERO,
                };
                let id = id.clone();
                self.later(delay + late, move |world| {
                    world.lands_late(&id, &flight.message)
                });
            }
        }
        for (call, waits) in calls {
            let answer = match unsent.contains(&call) {
                true => Answer::NotSent,
                false => Answer::Lost,
            };
            let _ = waits.send(answer);
        }
        self.tell_soon(id);
    }

    fn lands_late(&mut self, id: &RobotId, message: &Message) {
        self.happens(format_args!("what was on a broken connection arrives"));
        self.land(id, message);
        self.robot(id).wire.is_over(message);
    }

    /// The connection stands again.
    pub(super) fn mend(&mut self, id: &RobotId) {
        let robot = self.robot(id);
        if robot.wire.up || !robot.powered {
            return;
        }
        self.happens(format_args!("the connection to {id} stands"));
        let wire = &mut self.robot(id).wire;
        wire.up = true;
        wire.epoch += 1;
        wire.since = Instant::now();
        wire.last_due = Instant::now();
        self.tell_soon(id);
        self.say_again(id);
    }

    /// As SVIDs are renewed: the next connection stands before this one ends. What is under way gets
    /// there, the engine is told of nothing, and what is kept for the gateway comes once more.
    pub(super) fn renew(&mut self, id: &RobotId) {
        if self.robot(id).wire.up && self.robot(id).powered {
            self.happens(format_args!("the connection to {id} is renewed"));
            self.say_again(id);
        }
    }

    /// The process at one end is gone or new: all connections are.
    pub(super) fn cut_all(&mut self) {
        let ids: Vec<RobotId> = self.robots.keys().cloned().collect();
        for id in ids {
            self.cut(&id);
            let wire = &mut self.robot(&id).wire;
            wire.handing_over = 0;
        }
    }

    /// A new process: what it finds is what it was told.
    pub(super) fn meet_all(&mut self) {
        let ids: Vec<RobotId> = self.robots.keys().cloned().collect();
        for id in ids {
            if self.random.bool() {
                self.mend(&id);
            } else {
                let (id, after) = (id.clone(), self.millis(1..2_000));
                self.later(after, move |world| world.mend(&id));
            }
            let wire = &mut self.robot(&id).wire;
            wire.told = wire.up;
            wire.interrupted = false;
        }
    }

    /// Links are told as they are when it comes to telling, as an adapter does that waits for the
    /// engine: a link that was down for a moment is told as one that is up again.
    fn tell_soon(&mut self, id: &RobotId) {
        let (id, after) = (id.clone(), self.millis(0..300));
        self.later(after, move |world| world.tell(&id));
    }

    fn tell(&mut self, id: &RobotId) {
        let wire = &mut self.robot(id).wire;
        if wire.up == wire.told && !wire.interrupted {
            return;
        }
        let again = wire.told;
        wire.told = wire.up;
        wire.interrupted = false;
        if !wire.up && !again {
            return;
        }
        let link = match wire.up {
            true => Link::Up,
            false => down(),
        };
        let robot = id.clone();
        self.hand(Update::Link { robot, link });
    }

    /// What a robot says travels, once or twice, and not always in order.
    pub(super) fn transmit(&mut self, id: &RobotId, report: Report) {
        let copies = if self.faults.words && self.chance(10) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = self.delay();
            let in_order = !(self.faults.words && self.chance(20));
            let wire = &mut self.robot(id).wire;
            let mut due = Instant::now() + delay;
            if in_order {
                due = due.max(wire.last_word + Duration::from_millis(1));
                wire.last_word = due;
            }
            let (id, epoch, report) = (id.clone(), wire.epoch, report.clone());
            self.later(due - Instant::now(), move |world| {
                let robot = world.robot(&id);
                let carried = robot.wire.up && robot.wire.epoch == epoch;
                if carried && world.lives() {
                    world.book.heard(&report);
                    let mut report = report;
                    // A shared topic does not tell who speaks.
                    if !world.robot(&id).answers && world.random.bool() {
                        let all = world.robots.keys().cloned().collect();
                        report.speaker = Speaker::OneOf(Arc::new(all));
                    }
                    world.hand(Update::Report(report));
                } else {
                    world.unsaid(&id, &report.mission);
                }
            });
        }
    }

    /// Gives an update to the engine; while it takes none, the wire waits.
    fn hand(&mut self, update: Update) {
        if !self.does(
            self.life,
            format_args!("the gateway hears {}", Heard(&update)),
        ) {
            return;
        }
        let Some(updates) = &self.updates else { return };
        if let Err(TrySendError::Full(update)) = updates.try_send(update) {
            self.later(Duration::from_millis(5), move |world| world.hand(update));
        }
    }

    /// What a mission left at the broker is cleared.
    pub(super) fn settle(&mut self, command: &Command) {
        let robot = self.robot(&command.robot_id);
        robot.retained.remove(&command.mission_id);
    }

    /// Somebody else's word, or a word on something that never was.
    pub(super) fn strange_word(&mut self, report: Report) {
        self.hand(Update::Report(report));
    }
}

struct Heard<'a>(&'a Update);

impl fmt::Display for Heard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Update::Report(r) => write!(f, "{} {} from {:?}", r.mission, r.status, r.speaker),
            Update::Link { robot, link } => write!(f, "{robot} is {link:?}"),
            Update::Disbelieved(said) => write!(f, "nonsense from {}", said.speaker),
        }
    }
}

pub(super) fn down() -> Link {
    Link::Down {
        reason: "no connection".into(),
    }
}
