//! What callers asked, what they were told, and what follows from it for the gateway.

use super::world::World;
use crate::{
    engine::{Dispatched, Refusal},
    journal::{MissionState, Update},
};
use portarium_protocols::{
    adapter::{Report, Said},
    ids::{MissionId, RobotId},
    mission::{ActionType, Command},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// What the journal says of a mission, as watchers hear it.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// Where its attempt became durable, and its end.
    pub(super) begun: Option<u64>,
    pub(super) ended: Option<u64>,
    pub(super) state: MissionState,
}

/// A mission that somebody asked for.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) command: Arc<Command>,
    pub(super) caller: Arc<str>,
    /// When it was asked for; anew where nothing was kept of it.
    pub(super) seq: u64,
    pub(super) at: Instant,
    asking: u32,
    pub(super) acked: Option<String>,
    /// It was refused: nothing of it is kept.
    pub(super) refused: bool,
    /// Somebody was told that it is over, or that its end is asked for.
    pub(super) over: bool,
    pub(super) end_promised: bool,
    /// Somebody asked for its end, or said how it ended.
    pub(super) end_wanted: bool,
    pub(super) said: bool,
    /// The adapter is at it.
    pub(super) in_hand: bool,
    /// When it was last given to the adapter, and whether the robot was heard of it ever.
    pub(super) sent_at: Option<Instant>,
    spoken: bool,
    /// When something new was last heard of it.
    pub(super) heard_at: Option<Instant>,
    /// How often it left, as far as can be known.
    pub(super) sends: u32,
    /// The robot was asked since it was sent.
    asked_since: bool,
    /// A cancel that is to reach the robot.
    pub(super) cancel_due: Option<(u64, Instant)>,
    pub(super) cancel_reached: u64,
    pub(super) cancelled_at: Option<Instant>,
    pub(super) told: Option<Told>,
}

impl Entry {
    /// It was sent, its robot has not said a word, and nobody draws anything from that.
    pub(super) fn is_left_alone(&self) -> bool {
        let told = self.told.as_ref().filter(|told| told.ended.is_none());
        self.sends > 0
            && !self.spoken
            && told.is_some_and(|t| !t.state.outcome_unknown && !t.state.cancel_requested)
    }

    /// Kept, and without an end as far as watchers know.
    pub(super) fn is_open(&self) -> bool {
        self.told.as_ref().is_some_and(|told| told.ended.is_none())
    }
}

/// A stop that is to reach its robot.
#[derive(Debug)]
pub(super) struct StopDue {
    pub(super) seq: u64,
    pub(super) at: Instant,
    pub(super) durable: bool,
    /// A broker took it for a robot that was gone, and lost it.
    pub(super) lost: bool,
}

/// What stands before a robot: now, and also after a crash.
#[derive(Debug, Default)]
pub(super) struct Guard {
    pub(super) fence: (u64, u64),
    pub(super) fenced_at: Option<Instant>,
    pub(super) latch: (bool, bool),
    pub(super) hold: (bool, bool),
    /// The last release that was asked for.
    pub(super) release: u64,
    pub(super) stops: Vec<StopDue>,
}

/// A mission was sent: what has to be on the disk by then is looked at when it is read.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) mission: MissionId,
    pub(super) head: u64,
    /// What had been sent to this robot before.
    pub(super) before: Vec<MissionId>,
}

#[derive(Default)]
pub(super) struct Book {
    names: u64,
    pub(super) entries: BTreeMap<MissionId, Entry>,
    pub(super) by_key: BTreeMap<(Arc<str>, String), MissionId>,
    pub(super) request_ids: BTreeMap<String, MissionId>,
    pub(super) guards: BTreeMap<RobotId, Guard>,
    pub(super) sent: Vec<Sent>,
    /// Stops, by the names under which they are followed.
    pub(super) stops: BTreeMap<MissionId, Told>,
    /// The stream as a watcher hears it.
    pub(super) stream: Vec<Update>,
}

impl Book {
    pub(super) fn new_name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    pub(super) fn guard(&mut self, robot: &RobotId) -> &mut Guard {
        self.guards.entry(robot.clone()).or_default()
    }

    /// What was not on the disk for certain is no longer expected.
    pub(super) fn crashed(&mut self) {
        for guard in self.guards.values_mut() {
            guard.fence.0 = guard.fence.1;
            guard.latch.0 = guard.latch.1;
            guard.hold.0 = guard.hold.1;
            guard.stops.retain(|stop| stop.durable);
        }
        for entry in self.entries.values_mut() {
            entry.asking = 0;
            entry.in_hand = false;
            entry.asked_since = false;
        }
    }

    /// Another mission has a key of this one, and the same caller.
    fn clashes(&self, caller: &str, command: &Command) -> bool {
        self.entries.values().any(|other| {
            let theirs = &other.command;
            *other.caller == *caller
                && theirs.mission_id != command.mission_id
                && (theirs.plan_effect_idempotency_key == command.plan_effect_idempotency_key
                    || theirs.idempotency_key == command.idempotency_key)
        })
    }

    pub(super) fn stop_reached(&mut self, robot: &RobotId, sent: u64) {
        self.guard(robot).stops.retain(|stop| stop.seq > sent);
    }

    pub(super) fn stop_taken(&mut self, robot: &RobotId, sent: u64) {
        for stop in &mut self.guard(robot).stops {
            stop.lost |= stop.seq <= sent;
        }
    }

    pub(super) fn cancel_reached(&mut self, mission: &MissionId, sent: u64) {
        if let Some(entry) = self.entries.get_mut(mission) {
            entry.cancel_reached = entry.cancel_reached.max(sent);
            entry.cancelled_at = Some(Instant::now());
            entry.cancel_due = entry.cancel_due.filter(|(seq, _)| *seq > sent);
        }
    }

    pub(super) fn heard(&mut self, report: &Report) {
        if let Some(entry) = self.entries.get_mut(&report.mission) {
            // What is kept comes again and again.
            let status = entry.told.as_ref().map(|told| told.state.status);
            if report.said == Said::Now || !entry.spoken || status != Some(report.status) {
                entry.heard_at = Some(Instant::now());
            }
            entry.spoken = true;
        }
    }

    pub(super) fn spoke(&mut self, mission: &MissionId) {
        if let Some(entry) = self.entries.get_mut(mission) {
            entry.spoken = true;
        }
    }

    pub(super) fn asked_robot(&mut self, mission: &MissionId) {
        if let Some(entry) = self.entries.get_mut(mission) {
            entry.asked_since = true;
        }
    }
}

/// Dispatches.
impl World {
    pub(super) fn ask(&mut self, caller: &Arc<str>, command: &Arc<Command>) {
        self.happens(format_args!(
            "{caller} asks for {} {} of {} under {}",
            command.action_type.as_str(),
            command.mission_id,
            command.robot_id,
            command.plan_effect_idempotency_key
        ));
        let seq = self.trace.steps();
        if command.action_type == ActionType::CancelAction {
            self.want_ends(&command.robot_id);
        }
        let new = || Entry {
            command: command.clone(),
            caller: caller.clone(),
            seq,
            at: Instant::now(),
            asking: 0,
            acked: None,
            refused: false,
            over: false,
            end_promised: false,
            end_wanted: false,
            said: false,
            in_hand: false,
            sent_at: None,
            spoken: false,
            heard_at: None,
            sends: 0,
            asked_since: false,
            cancel_due: None,
            cancel_reached: 0,
            cancelled_at: None,
            told: None,
        };
        let entries = &mut self.book.entries;
        let entry = entries
            .entry(command.mission_id.clone())
            .or_insert_with(new);
        // Nothing of it may have been kept: then it is accepted by this one, if at all.
        if entry.acked.is_none() && entry.told.is_none() {
            (entry.seq, entry.at, entry.refused) = (seq, Instant::now(), false);
        }
        entry.asking += 1;
    }

    pub(super) fn answered(
        &mut self,
        caller: &Arc<str>,
        command: &Arc<Command>,
        answer: &Result<Dispatched, Refusal>,
    ) {
        let id = &command.mission_id;
        let key = (caller.clone(), command.plan_effect_idempotency_key.clone());
        // The keys of what is no longer kept are free.
        let keeps_all = self.keeps_all();
        let kept = |id: &&MissionId| keeps_all || self.book.entries[*id].is_open();
        let known = self.book.by_key.get(&key).filter(kept).cloned();
        let clashes = self.book.clashes(caller, command);
        let Some(entry) = self.book.entries.get_mut(id) else {
            return;
        };
        entry.asking = entry.asking.saturating_sub(1);
        let wrong = match (answer, &entry.acked, &known) {
            (Ok(answer), Some(acked), _) if *acked != answer.request_id => {
                Some(format!("was {acked} and is {}", answer.request_id))
            }
            (Ok(_), None, Some(other)) if other != id => Some(format!("took the key of {other}")),
            (Err(Refusal::Duplicate(why)), None, _) if !clashes => {
                Some(format!("is not what its caller asked for before: {why}"))
            }
            (Err(refusal), Some(acked), _) => {
                Some(format!("was acknowledged as {acked}, and now: {refusal:?}"))
            }
            (Ok(answer), None, _) => match self.book.request_ids.get(&answer.request_id) {
                Some(other) if other != id => Some(format!("has the request id of {other}")),
                _ => None,
            },
            _ => None,
        };
        match answer {
            Ok(answer) => {
                let request_id = answer.request_id.clone();
                entry.acked = Some(request_id.clone());
                self.book.by_key.insert(key, id.clone());
                self.book.request_ids.insert(request_id, id.clone());
            }
            Err(_) if entry.acked.is_none() && entry.asking == 0 => entry.refused = true,
            Err(_) => {}
        }
        if let Some(wrong) = wrong {
            self.broken(format_args!("{id}: {wrong}"));
        }
    }

    /// The adapter is given a mission: is it one that may be sent now?
    pub(super) fn begin_handover(&mut self, command: &Arc<Command>, expires_in: Duration) {
        let (id, robot) = (&command.mission_id, &command.robot_id);
        let head = self.head.as_ref().map_or(0, |head| *head.borrow());
        let stepped_back = self.stepped_back;
        let at_it = self.robot(robot);
        let idempotent = at_it.idempotent;
        at_it.wire.handing_over += 1;
        let two = at_it.wire.handing_over > 1;
        let guard = self.book.guard(robot);
        // Given a mission after it, the robot is not sent a stop again that a broker lost.
        guard.stops.retain(|stop| !stop.lost);
        let (fence, latched, held) = (guard.fence.0, guard.latch.0, guard.hold.0);
        let Some(entry) = self.book.entries.get_mut(id) else {
            return self.broken(format_args!("{id} is sent, and nobody asked for it"));
        };
        let late = entry.at.elapsed() > Duration::from_secs(61);
        let wrong = [
            (two, "while another one is being handed over"),
            (entry.refused, "although it was refused"),
            (entry.over, "although it was said to be over"),
            (entry.end_promised, "although its end was promised"),
            (entry.seq < fence, "past a stop that came after it"),
            (latched, "to a latched robot"),
            (held, "to a held robot"),
            (entry.sends > 0 && !idempotent, "a second time"),
            (
                entry.sends > 0 && !entry.asked_since,
                "again, and the robot was not asked",
            ),
            (entry.sends == 0 && late && !stepped_back, "too late"),
            (expires_in.is_zero(), "when it is stale"),
            (
                entry.command.idempotency_key != command.idempotency_key
                    || entry.command.parameters != command.parameters
                    || entry.command.robot_id != command.robot_id,
                "with other content",
            ),
        ];
        entry.in_hand = true;
        entry.sent_at = Some(Instant::now());
        entry.sends += 1;
        entry.asked_since = false;
        let open = |e: &Entry| e.told.as_ref().is_none_or(|told| told.ended.is_none());
        let before = self.book.entries.iter().filter(|(other, e)| {
            *other != id && e.command.robot_id == *robot && e.sends > 0 && open(e)
        });
        let before = before.map(|(other, _)| other.clone()).collect();
        self.book.sent.push(Sent {
            mission: id.clone(),
            head,
            before,
        });
        if let Some((_, why)) = wrong.iter().find(|(wrong, _)| *wrong) {
            self.broken(format_args!("{id} is sent to {robot} {why}"));
        }
        // The moments around a hand-over are the ones in which most can go wrong.
        if self.faults.wires && self.chance(8) {
            let (robot, after, away) = (robot.clone(), self.delay(), self.millis(1..5_000));
            self.later(after, move |world| {
                world.cut(&robot);
                world.later(away, move |world| world.mend(&robot));
            });
        }
        if self.faults.crashes && self.chance(3) {
            let effects = self.random.u64(0..8);
            self.crash_in(effects);
        }
    }

    pub(super) fn end_handover(&mut self, command: &Command, left: bool) {
        let wire = &mut self.robot(&command.robot_id).wire;
        wire.handing_over = wire.handing_over.saturating_sub(1);
        if let Some(entry) = self.book.entries.get_mut(&command.mission_id) {
            entry.in_hand = false;
            entry.sends -= u32::from(!left);
        }
    }
}

impl World {
    /// A caller no longer waits for the answer.
    pub(super) fn gave_up(&mut self, mission: &MissionId) {
        if let Some(entry) = self.book.entries.get_mut(mission) {
            entry.asking = entry.asking.saturating_sub(1);
        }
    }
}
