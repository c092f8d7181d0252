//! What has to hold after every step, and what when all is well again.

use super::{
    book::{Entry, Told},
    disk::Mood,
    world::World,
};
use crate::journal::{Attempt, Update};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{ActionType, MissionStatus},
};
use std::time::Duration;
use tokio::time::Instant;

/// What must have happened within this time, while nothing stood in its way.
const SOON: Duration = Duration::from_secs(20);
/// When a word that a broker dropped is asked for.
const SILENCE: Duration = Duration::from_secs(120);
/// As the robots are configured.
const DELIVER_WITHIN: Duration = Duration::from_secs(60);

impl World {
    /// A watcher hears what follows what it has heard.
    pub(super) fn watched(&mut self, updates: Vec<Update>) {
        for update in updates {
            let last = self.book.stream.last().map_or(0, |last| last.position);
            if update.position <= last {
                let position = update.position;
                self.broken(format_args!(
                    "the stream goes back from {last} to {position}"
                ));
            }
            let id = update.command.mission_id.clone();
            self.happens(format_args!(
                "watchers hear {}: {id} {}{}",
                update.position,
                update.state.status,
                if update.state.outcome_unknown {
                    "?"
                } else {
                    ""
                }
            ));
            self.hear(&id, &update);
            self.book.stream.push(update);
        }
        self.judge_sent();
        self.judge_acknowledged();
    }

    fn hear(&mut self, id: &MissionId, update: &Update) {
        let entry = self.book.entries.get_mut(id);
        let is_stop = update.command.action_type.is_stop();
        let known = match (&entry, is_stop) {
            (Some(entry), false) => entry.told.clone(),
            (None, true) => self.book.stops.get(id).cloned(),
            _ => return self.broken(format_args!("nobody asked for {id}")),
        };
        let status = update.state.status;
        let wrong = match &known {
            None if status != MissionStatus::Pending => Some("begins in the middle"),
            None => None,
            Some(known) if known.ended.is_some() => Some("changes after its end"),
            Some(known) if known.state == update.state => Some("is told twice"),
            Some(known) => {
                let before = known.state.status;
                let may = before == status || before.may_become(status);
                (!may).then_some("changes as the contract does not have it")
            }
        };
        let begun = (update.state.attempt == Attempt::Open).then_some(update.position);
        let told = Told {
            begun: known.as_ref().and_then(|k| k.begun).or(begun),
            ended: status.is_terminal().then_some(update.position),
            state: update.state.clone(),
        };
        let wrong = wrong.map(|wrong| format!("{id} {wrong}: {known:?}, then {:?}", update.state));
        match entry {
            Some(entry) => entry.told = Some(told),
            None => drop(self.book.stops.insert(id.clone(), told)),
        }
        if let Some(wrong) = wrong {
            self.broken(format_args!("{wrong}"));
        }
    }

    /// When a mission was sent, its attempt was on the disk, and the robot's other missions had
    /// ended there.
    fn judge_sent(&mut self) {
        for sent in std::mem::take(&mut self.book.sent) {
            let id = &sent.mission;
            let entries = &self.book.entries;
            let told = entries.get(id).and_then(|e| e.told.as_ref());
            if told.and_then(|t| t.begun).is_none_or(|at| at > sent.head) {
                self.broken(format_args!("{id} was sent before that was durable"));
                continue;
            }
            let open = sent.before.iter().find(|other| {
                let told = entries.get(*other).and_then(|e| e.told.as_ref());
                let ended = told.and_then(|told| told.ended);
                ended.is_none_or(|at| at > sent.head)
            });
            if let Some(other) = open {
                self.broken(format_args!("{id} was sent although {other} had not ended"));
            }
        }
    }

    /// What was acknowledged is durable, so watchers hear of it.
    pub(super) fn judge_acknowledged(&mut self) {
        // What has ended may be kept no longer, before watchers came to it.
        if !self.keeps_all() || self.watchers_lag() {
            return;
        }
        let mut entries = self.book.entries.iter();
        let missing = entries.find(|(_, e)| e.acked.is_some() && e.told.is_none());
        if let Some((id, entry)) = missing {
            let (id, acked) = (id.clone(), entry.acked.clone());
            self.broken(format_args!("{id} is missing, acknowledged as {acked:?}"));
        }
    }

    /// What was committed last is still on its way to the watchers.
    fn watchers_lag(&self) -> bool {
        let head = self.head.as_ref().map(|head| *head.borrow());
        head.unwrap_or_default() != self.book.stream.last().map_or(0, |u| u.position)
    }

    /// What is promised to happen soon has happened.
    pub(super) fn judge_dues(&mut self) {
        let ids: Vec<RobotId> = self.robots.keys().cloned().collect();
        for id in ids {
            let overdue = [
                self.stop_overdue(&id),
                self.word_overdue(&id),
                self.silence_overdue(&id),
                self.cancelled_in_vain(&id),
                self.moves_on(&id),
            ];
            for overdue in overdue.into_iter().flatten() {
                self.broken(format_args!("{overdue}"));
            }
        }
    }

    /// Since when robot and gateway could have spoken, if they can.
    fn in_touch(&self, id: &RobotId) -> Option<Instant> {
        let robot = &self.robots[id];
        let could = robot.wire.up && robot.powered && self.lives();
        could.then(|| robot.wire.since.max(robot.since).max(self.since))
    }

    /// A stop, or the cancel of a mission, that has not reached its robot.
    fn stop_overdue(&self, id: &RobotId) -> Option<String> {
        let (since, robot) = (self.in_touch(id)?, &self.robots[id]);
        let due = |at: Instant| at.max(since) + SOON < Instant::now();
        let mut stops = self.book.guards.get(id).into_iter().flat_map(|g| &g.stops);
        if let Some(stop) = stops.find(|stop| due(stop.at)) {
            let seq = stop.seq;
            return Some(format!("the stop of step {seq} has not reached {id}"));
        }
        let lost = self.book.entries.iter().find(|(mission, e)| {
            e.command.robot_id == *id
                && e.sends > 0
                && e.is_open()
                && !robot.ends.contains_key(*mission)
                && e.cancel_due.is_some_and(|(_, at)| due(at))
        });
        let (mission, _) = lost?;
        Some(format!("the cancel of {mission} has not reached {id}"))
    }

    /// A robot that is at what was sent before it was stopped.
    fn moves_on(&self, id: &RobotId) -> Option<String> {
        let (since, robot) = (self.in_touch(id)?, &self.robots[id]);
        let (guard, at) = (self.book.guards.get(id)?, robot.at()?);
        let stopped = guard.fenced_at?.max(since).max(at.began) + SOON;
        let moves = at.sent < guard.fence.0 && !at.defiant && stopped < Instant::now();
        moves.then(|| format!("{id} is still at {}, and was stopped", at.mission))
    }

    /// A mission that its robot has ended, and the gateway does not know.
    fn word_overdue(&self, id: &RobotId) -> Option<String> {
        let (since, robot) = (self.in_touch(id)?, &self.robots[id]);
        // What it said last can be found out, whatever happened meanwhile.
        let tells = (robot.answers && !robot.forgetful) || robot.retains;
        if !tells || *self.disk.mood.borrow() != Mood::Well {
            return None;
        }
        let since = since.max(self.disk.well_since);
        let due = |mission: &MissionId, at: Instant| {
            let dropped = robot.dropped.contains(mission);
            let patience = if dropped { SILENCE + SOON } else { SOON };
            at.max(since) + patience < Instant::now()
        };
        let unheard = self.book.entries.iter().find(|(mission, e)| {
            let told = e.told.as_ref().map(|told| &told.state);
            e.command.robot_id == *id
                && e.sends > 0
                && e.is_open()
                && told.is_some_and(|s| !s.outcome_unknown && !s.awaiting_confirmation)
                && robot
                    .ends
                    .get(*mission)
                    .is_some_and(|(_, at)| due(mission, *at))
        });
        let (mission, _) = unheard?;
        Some(format!("{id} has ended {mission}, and nobody asked it"))
    }

    /// A mission of which its robot has not said a word in time, and that is neither cancelled there
    /// nor of unknown outcome.
    fn silence_overdue(&self, id: &RobotId) -> Option<String> {
        let since = self.in_touch(id)?.max(self.disk.well_since);
        if *self.disk.mood.borrow() != Mood::Well {
            return None;
        }
        let due = |at: Instant| at.max(since) + DELIVER_WITHIN + SOON < Instant::now();
        let alone = self.book.entries.iter().find(|(_, e)| {
            e.command.robot_id == *id && e.is_left_alone() && e.sent_at.is_some_and(due)
        });
        let (mission, _) = alone?;
        Some(format!("{id} says nothing of {mission}, and nobody minds"))
    }

    /// A mission whose cancel was delivered, and of which nothing new is heard, is of unknown outcome.
    fn cancelled_in_vain(&self, id: &RobotId) -> Option<String> {
        let (since, robot) = (
            self.in_touch(id)?.max(self.disk.well_since),
            &self.robots[id],
        );
        // One that answers may have refused.
        if robot.answers || *self.disk.mood.borrow() != Mood::Well {
            return None;
        }
        let due = |at: Instant| at.max(since) + DELIVER_WITHIN + SOON < Instant::now();
        let in_vain = self.book.entries.iter().find(|(_, e)| {
            let told = e.told.as_ref().map(|told| &told.state);
            e.command.robot_id == *id
                && e.sends > 0
                && e.is_open()
                && e.cancel_due.is_none()
                && told.is_some_and(|s| {
                    s.cancel_requested && !s.outcome_unknown && !s.awaiting_confirmation
                })
                && e.cancelled_at
                    .is_some_and(|at| due(e.heard_at.map_or(at, |h| h.max(at))))
        });
        let (mission, _) = in_vain?;
        Some(format!("{mission} was cancelled in vain, and nobody minds"))
    }

    /// What a watcher hears who goes on from somewhere, and one who asks for one mission.
    pub(super) fn judge_resumed(
        &mut self,
        after: u64,
        limit: usize,
        all: &[Update],
        mission: &MissionId,
        of_one: &[Update],
    ) {
        let follow = |u: &&Update| u.position > after;
        let wanted = self.book.stream.iter().filter(follow).take(limit);
        let same = wanted
            .map(|u| u.position)
            .eq(all.iter().map(|u| u.position));
        let own = |u: &&Update| u.command.mission_id == *mission;
        let wanted = self.book.stream.iter().filter(own);
        let same_one = wanted
            .map(|u| u.position)
            .eq(of_one.iter().map(|u| u.position));
        // What is no longer kept is not told.
        if self.keeps_all() && !self.watchers_lag() && !(same && same_one) {
            self.broken(format_args!(
                "who goes on from {after} hears {all:?}, of {mission} {of_one:?}"
            ));
        }
    }

    pub(super) fn keeps_all(&self) -> bool {
        self.faults.keeps > 1_000
    }

    /// The stream of a new life begins with what watchers heard in those before.
    pub(super) fn compare(&mut self, stream: &[Update]) {
        let over = |id: &MissionId| {
            let told = self.book.entries.get(id).and_then(|e| e.told.as_ref());
            let told = told.or_else(|| self.book.stops.get(id));
            told.is_some_and(|told| told.ended.is_some())
        };
        // What has ended may be kept no longer.
        let keeps_all = self.keeps_all();
        let is_kept = |u: &&Update| keeps_all || !over(&u.command.mission_id);
        let heard: Vec<&Update> = self.book.stream.iter().filter(is_kept).collect();
        let stream: Vec<&Update> = stream.iter().filter(is_kept).collect();
        let same = |a: &Update, b: &Update| {
            a.position == b.position
                && a.state == b.state
                && a.command.mission_id == b.command.mission_id
        };
        let differs = heard
            .iter()
            .enumerate()
            .find(|(n, update)| !stream.get(*n).is_some_and(|found| same(found, update)));
        if let Some((_, update)) = differs {
            let (at, id) = (update.position, update.command.mission_id.clone());
            self.broken(format_args!("watchers heard {at} of {id}, and it is gone"));
        }
        let missing = self
            .book
            .entries
            .iter()
            .find(|(_, e)| (e.acked.is_some() || e.sends > 0) && e.told.is_none());
        if let Some((id, entry)) =
            missing.filter(|(id, _)| !stream.iter().any(|u| u.command.mission_id == **id))
        {
            let (id, acked) = (id.clone(), entry.acked.clone());
            self.broken(format_args!("{id} is gone, acknowledged as {acked:?}"));
        }
    }

    /// All has ended, and as it was told.
    pub(super) fn judge_ends(&mut self) {
        let mut wrong = Vec::new();
        for (id, told) in &self.book.stops {
            // Of what it accepted, a gateway that dies may have heard the end and not kept it.
            let begun = told.state.status == MissionStatus::Executing;
            if told.ended.is_none() && !begun {
                wrong.push(format!("stop {id} is still {}", told.state.status));
            }
        }
        for (id, entry) in &self.book.entries {
            if let Some(why) = self.untrue(id, entry) {
                wrong.push(format!("{id} {why}: {entry:?}"));
            }
        }
        for wrong in wrong {
            self.broken(format_args!("{wrong}"));
        }
    }

    fn untrue(&self, id: &MissionId, entry: &Entry) -> Option<&'static str> {
        let robot = &self.robots[&entry.command.robot_id];
        let executed = robot.executed(id);
        if executed > 1 {
            return Some("was executed more than once");
        }
        let Some(told) = &entry.told else {
            return (entry.acked.is_some() || executed > 0).then_some("is not known");
        };
        if told.ended.is_none() {
            return Some("has not ended");
        }
        if entry.refused {
            return Some("was refused, and is there");
        }
        if entry.command.action_type != ActionType::ExecuteAction {
            return None;
        }
        let status = told.state.status;
        if entry.sends == 0 {
            return match status {
                _ if executed > 0 => Some("never left, and was executed"),
                MissionStatus::Cancelled if !entry.end_wanted && !entry.said => {
                    Some("was cancelled, and nobody asked for that")
                }
                MissionStatus::Cancelled => None,
                MissionStatus::Failed => None,
                _ if entry.said => None,
                _ => Some("never left, and is said to have succeeded"),
            };
        }
        if told.state.attempt == Attempt::NotSent {
            return Some("left, and is said not to have");
        }
        let ends = robot.ends.get(id);
        let said = ends.is_some_and(|ends| ends.0.contains(status.as_str()));
        (!said && !entry.said).then_some("ended as the robot never said")
    }
}
