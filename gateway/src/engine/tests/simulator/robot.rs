//! Robots that really execute what reaches them, each with habits of its own.

use super::{
    message::{Answer, Message},
    wire::Wire,
    world::World,
};
use fastrand::Rng;
use portarium_protocols::{
    adapter::{Report, Said, Speaker, StopAnswer},
    ids::{MissionId, RobotId},
    mission::{Command, MissionStatus},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// What a robot did of a mission, once.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) mission: MissionId,
    /// When the gateway sent what began it.
    pub(super) sent: u64,
    pub(super) began: Instant,
    /// `None`: it is at it, or lost power meanwhile.
    pub(super) outcome: Option<MissionStatus>,
    /// It said that it would not be cancelled or stopped.
    pub(super) defiant: bool,
}

pub(super) struct Robot {
    /// It answers calls, as with gRPC; otherwise a broker stands between, as with MQTT.
    pub(super) answers: bool,
    /// The broker keeps what it said last of each mission.
    pub(super) retains: bool,
    pub(super) idempotent: bool,
    /// Without power it forgets what it was at.
    pub(super) forgetful: bool,
    /// Of so many missions in a hundred it never says a word.
    pub(super) silent: u32,
    pub(super) takes: Duration,
    pub(super) powered: bool,
    pub(super) since: Instant,
    pub(super) wire: Wire,
    pub(super) running: Option<usize>,
    pub(super) executions: Vec<Execution>,
    /// The ends that it ever spoke of, or would have if asked, and when.
    pub(super) ends: BTreeMap<MissionId, (BTreeSet<&'static str>, Instant)>,
    keys: BTreeMap<String, MissionId>,
    known: BTreeMap<MissionId, (MissionStatus, bool)>,
    pub(super) retained: BTreeMap<MissionId, Report>,
    /// Missions of which the broker has dropped a word: its queue was full.
    pub(super) dropped: BTreeSet<MissionId>,
    unsaid: BTreeSet<MissionId>,
    mail: Vec<(Message, Option<Instant>)>,
}

impl Robot {
    pub(super) fn draw(random: &mut Rng) -> Self {
        let idempotent = random.bool();
        Self {
            answers: random.bool(),
            retains: random.bool(),
            idempotent,
            forgetful: random.bool(),
            silent: [0, 0, 5][random.usize(0..3)],
            takes: Duration::from_millis([50, 1_000, 20_000][random.usize(0..3)]),
            powered: true,
            since: Instant::now(),
            wire: Wire::new(),
            running: None,
            executions: Vec::new(),
            ends: BTreeMap::new(),
            keys: BTreeMap::new(),
            known: BTreeMap::new(),
            retained: BTreeMap::new(),
            dropped: BTreeSet::new(),
            unsaid: BTreeSet::new(),
            mail: Vec::new(),
        }
    }

    pub(super) fn executed(&self, mission: &MissionId) -> usize {
        let of_it = |e: &&Execution| &e.mission == mission;
        self.executions.iter().filter(of_it).count()
    }

    fn has_ended(&mut self, mission: &MissionId, status: MissionStatus) {
        let new = || (BTreeSet::new(), Instant::now());
        let ends = self.ends.entry(mission.clone()).or_insert_with(new);
        ends.0.insert(status.as_str());
    }

    pub(super) fn at(&self) -> Option<&Execution> {
        self.running.and_then(|n| self.executions.get(n))
    }

    /// Messages wait for it somewhere.
    pub(super) fn has_mail(&self) -> bool {
        !self.mail.is_empty()
    }

    pub(super) fn keep(&mut self, message: Message, expires: Option<Instant>) {
        self.mail.push((message, expires));
    }
}

impl World {
    /// A message has reached a robot that has power.
    pub(super) fn receive(&mut self, id: &RobotId, message: &Message) -> Answer {
        self.happens(format_args!("{id} gets {message}"));
        match message {
            Message::Mission {
                command,
                sent,
                expires,
            } => {
                let answer = self.take_mission(id, command, *sent);
                self.comes_twice(id, command, *sent, *expires);
                answer
            }
            Message::Cancel { mission, sent } => {
                self.book.cancel_reached(mission, *sent);
                self.take_cancel(id, mission)
            }
            Message::Stop { command, sent } => self.take_stop(id, command, *sent),
            Message::Question { mission } => match self.robot(id).known.get(mission) {
                Some((_, true)) | None => Answer::NotKnown,
                Some((status, false)) => Answer::Known(word(id, mission, *status)),
            },
        }
    }

    /// What is delivered at least once comes once more, to a robot that can bear it: at any time
    /// until it is stale.
    fn comes_twice(&mut self, id: &RobotId, command: &Arc<Command>, sent: u64, expires: Instant) {
        if !self.robot(id).idempotent || !self.faults.words || !self.chance(15) {
            return;
        }
        let (id, command, after) = (id.clone(), command.clone(), self.millis(0..20_000));
        self.later(after, move |world| {
            if world.robot(&id).powered && expires > Instant::now() {
                let mission = &command.mission_id;
                world.happens(format_args!("{id} gets mission {mission} a second time"));
                world.take_mission(&id, &command, sent);
            }
        });
    }

    fn take_mission(&mut self, id: &RobotId, command: &Arc<Command>, sent: u64) -> Answer {
        let mission = command.mission_id.clone();
        let robot = self.robot(id);
        let at_it = robot.at().is_some_and(|e| e.mission == mission);
        if robot.idempotent {
            match robot.keys.get(&command.idempotency_key) {
                Some(other) if *other != mission => {
                    return self.refuse(id, &mission, "its key is another mission's");
                }
                Some(_) => {
                    self.repeat_word(id, &mission);
                    return Answer::Accepted;
                }
                None if robot.known.contains_key(&mission) => {
                    return self.refuse(id, &mission, "it has refused it before");
                }
                None => {}
            }
        } else if at_it {
            return Answer::Accepted;
        }
        if robot.running.is_some() {
            return self.refuse(id, &mission, "it is busy");
        }
        if self.chance(3) {
            return self.refuse(id, &mission, "it does not want to");
        }
        let quiet = self.random.u32(0..100) < self.robot(id).silent;
        let takes = u64::try_from(self.robot(id).takes.as_millis()).unwrap();
        let takes = self.millis(takes / 2..takes * 2);
        let robot = self.robot(id);
        robot
            .keys
            .insert(command.idempotency_key.clone(), mission.clone());
        robot.executions.push(Execution {
            mission: mission.clone(),
            sent,
            began: Instant::now(),
            outcome: None,
            defiant: false,
        });
        let execution = robot.executions.len() - 1;
        robot.running = Some(execution);
        robot
            .known
            .insert(mission.clone(), (MissionStatus::Executing, quiet));
        self.begin(id, &mission, execution, takes);
        Answer::Accepted
    }

    fn begin(&mut self, id: &RobotId, mission: &MissionId, execution: usize, takes: Duration) {
        match self.random.u32(0..10) {
            // Says nothing before the end.
            0 => {}
            1 => {
                self.say(id, mission, MissionStatus::Pending);
                self.say(id, mission, MissionStatus::Executing);
            }
            2 => {
                self.say(id, mission, MissionStatus::Executing);
                self.say(id, mission, MissionStatus::WaitingPreemption);
                let (id, mission) = (id.clone(), mission.clone());
                self.later(takes / 2, move |world| {
                    if world.robot(&id).running == Some(execution) {
                        world.say(&id, &mission, MissionStatus::Executing);
                    }
                });
            }
            _ => self.say(id, mission, MissionStatus::Executing),
        }
        let id = id.clone();
        self.later(takes, move |world| {
            if world.robot(&id).running == Some(execution) {
                let outcome = match world.chance(90) {
                    true => MissionStatus::Succeeded,
                    false => MissionStatus::Failed,
                };
                world.end(&id, outcome);
            }
        });
    }

    fn refuse(&mut self, id: &RobotId, mission: &MissionId, why: &str) -> Answer {
        let robot = self.robot(id);
        robot
            .known
            .entry(mission.clone())
            .or_insert((MissionStatus::Failed, false));
        if !robot.answers {
            self.say(id, mission, MissionStatus::Failed);
        } else {
            // It stands by it when it is asked.
            robot.has_ended(mission, MissionStatus::Failed);
        }
        Answer::Rejected(why.into())
    }

    fn take_cancel(&mut self, id: &RobotId, mission: &MissionId) -> Answer {
        if self.robot(id).at().is_some_and(|e| e.mission == *mission) {
            if self.chance(5) {
                let robot = self.robot(id);
                if let Some(n) = robot.running {
                    robot.executions[n].defiant = true;
                }
                return Answer::Refused("it does not stop half way".into());
            }
            let (robot, mission, after) = (id.clone(), mission.clone(), self.millis(0..500));
            self.later(after, move |world| {
                let at = world.robot(&robot).at();
                if at.is_some_and(|e| e.mission == mission) {
                    world.end(&robot, MissionStatus::Cancelled);
                }
            });
        } else {
            self.repeat_word(id, mission);
        }
        Answer::Taken
    }

    fn take_stop(&mut self, id: &RobotId, command: &Arc<Command>, sent: u64) -> Answer {
        self.book.stop_reached(id, sent);
        let at = self.robot(id).at();
        if let Some(later) = at.filter(|e| e.sent > sent).map(|e| e.mission.clone()) {
            self.broken(format_args!("a stop of before {later} ends it"));
        }
        if self.chance(2) {
            let robot = self.robot(id);
            if let Some(n) = robot.running {
                robot.executions[n].defiant = true;
            }
            if robot.answers {
                return Answer::Refused("its brakes are broken".into());
            }
            self.say(id, &command.mission_id, MissionStatus::Failed);
            return Answer::Taken;
        }
        if self.robot(id).running.is_some() {
            self.end(id, MissionStatus::Cancelled);
        }
        if self.robot(id).answers {
            if self.random.bool() {
                return Answer::Stopped(StopAnswer::Stationary);
            }
            let (id, stop, after) = (id.clone(), command.clone(), self.millis(0..3_000));
            self.later(after, move |world| {
                if world.robot(&id).powered {
                    world.say(&id, &stop.mission_id, MissionStatus::Succeeded);
                }
            });
            return Answer::Stopped(StopAnswer::Accepted);
        }
        if self.chance(80) {
            self.say(id, &command.mission_id, MissionStatus::Executing);
            self.say(id, &command.mission_id, MissionStatus::Succeeded);
        }
        Answer::Taken
    }

    /// What the robot was at has ended.
    fn end(&mut self, id: &RobotId, outcome: MissionStatus) {
        let robot = self.robot(id);
        let Some(n) = robot.running.take() else {
            return;
        };
        robot.executions[n].outcome = Some(outcome);
        let mission = robot.executions[n].mission.clone();
        self.happens(format_args!("{id} has {outcome} {mission}"));
        self.say(id, &mission, outcome);
    }

    /// The power goes: what it was at is over, and nothing of it was said.
    pub(super) fn power_off(&mut self, id: &RobotId) {
        self.happens(format_args!("{id} loses power"));
        let robot = self.robot(id);
        robot.powered = false;
        let cut_short = robot.running.take();
        if robot.forgetful && !robot.idempotent {
            robot.known.clear();
            return;
        }
        if let Some(n) = cut_short {
            // It knows that it was cut short, and says so when it is back.
            let mission = robot.executions[n].mission.clone();
            robot.executions[n].outcome = Some(MissionStatus::Failed);
            let quiet = robot.known.get(&mission).is_some_and(|(_, quiet)| *quiet);
            robot
                .known
                .insert(mission.clone(), (MissionStatus::Failed, quiet));
            // Of what it keeps to itself it does not say that either.
            if !quiet {
                robot.has_ended(&mission, MissionStatus::Failed);
                robot.unsaid.insert(mission);
            }
        }
    }

    pub(super) fn power_on(&mut self, id: &RobotId) {
        if self.robot(id).powered {
            return;
        }
        self.happens(format_args!("{id} has power again"));
        let robot = self.robot(id);
        robot.powered = true;
        robot.since = Instant::now();
        let now = Instant::now();
        for (message, expires) in std::mem::take(&mut robot.mail) {
            if expires.is_none_or(|at| at > now) {
                self.receive(id, &message);
            }
        }
    }

    /// A robot speaks of a mission or a stop.
    pub(super) fn say(&mut self, id: &RobotId, mission: &MissionId, status: MissionStatus) {
        let robot = self.robot(id);
        let known = robot
            .known
            .entry(mission.clone())
            .or_insert((status, false));
        known.0 = status;
        if known.1 {
            return;
        }
        if status.is_terminal() {
            robot.has_ended(mission, status);
        }
        let report = word(id, mission, status);
        if robot.retains && !robot.answers {
            let kept = Report {
                said: Said::Before,
                ..report.clone()
            };
            robot.retained.insert(mission.clone(), kept);
            let is_mission = self.book.entries.contains_key(mission);
            if is_mission && self.faults.words && self.chance(5) {
                self.happens(format_args!("the broker drops {status} of {mission}"));
                self.robot(id).dropped.insert(mission.clone());
                return;
            }
        }
        self.transmit(id, report);
    }

    /// Says once more how it stands with a mission, if it knows.
    fn repeat_word(&mut self, id: &RobotId, mission: &MissionId) {
        if let Some((status, _)) = self.robot(id).known.get(mission).copied() {
            self.say(id, mission, status);
        }
    }

    /// A word that was on its way when the wire broke: a broker keeps it, a call's stream does not.
    pub(super) fn unsaid(&mut self, id: &RobotId, mission: &MissionId) {
        if !self.robot(id).answers || self.random.bool() {
            self.robot(id).unsaid.insert(mission.clone());
        }
    }

    /// The robot can be heard again: it says what was not heard, and the broker what it keeps.
    pub(super) fn say_again(&mut self, id: &RobotId) {
        let robot = self.robot(id);
        let unsaid = std::mem::take(&mut robot.unsaid);
        let kept: Vec<Report> = robot.retained.values().cloned().collect();
        for report in kept {
            self.transmit(id, report);
        }
        if !self.robot(id).powered {
            self.robot(id).unsaid.extend(unsaid);
            return;
        }
        for mission in unsaid {
            self.repeat_word(id, &mission);
        }
    }
}

fn word(robot: &RobotId, mission: &MissionId, status: MissionStatus) -> Report {
    Report {
        speaker: Speaker::Robot(robot.clone()),
        said: Said::Now,
        mission: mission.clone(),
        status,
        action_execution_id: String::new(),
        observed_at: String::new(),
        detail: String::new(),
    }
}
