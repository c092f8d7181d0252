//! What callers ask for, and what operators find at the robots.

use super::{super::make, book::Entry, callers::CALLERS, world::World};
use portarium_protocols::{
    ids::MissionId,
    mission::{Command, CompletionMode, MissionStatus},
};
use std::{sync::Arc, time::Duration};

impl World {
    fn some_caller(&mut self) -> Arc<str> {
        CALLERS[self.random.usize(0..CALLERS.len())].into()
    }

    pub(super) fn new_mission(&mut self) -> (Arc<str>, Command) {
        let (robot, n) = (self.some_robot(), self.book.new_name());
        let mut command = match self.chance(8) {
            true => make::manual(robot.as_str(), &format!("m{n}")),
            false => make::mission(robot.as_str(), &format!("m{n}")),
        };
        if self.chance(25) {
            // Keys are a caller's own: others have the same.
            let n = self.random.u32(0..4);
            command.plan_effect_idempotency_key = format!("shared-{n}");
        }
        (self.some_caller(), command)
    }

    pub(super) fn new_cancel_action(&mut self) -> (Arc<str>, Command) {
        let (robot, n) = (self.some_robot(), self.book.new_name());
        let command = make::cancel_action(robot.as_str(), &format!("c{n}"));
        (self.some_caller(), command)
    }

    /// One of the last missions that somebody asked for.
    pub(super) fn some_entry(&mut self, is_it: impl Fn(&Entry) -> bool) -> Option<MissionId> {
        // Under the keys of what is no longer kept, it would be asked for anew.
        let keeps_all = self.keeps_all();
        let mut found: Vec<(u64, MissionId)> = self
            .book
            .entries
            .iter()
            .filter(|(_, entry)| {
                is_it(entry) && (keeps_all || entry.told.is_none() || entry.is_open())
            })
            .map(|(id, entry)| (entry.seq, id.clone()))
            .collect();
        found.sort();
        let from = found.len().saturating_sub(10);
        let recent = found.split_off(from);
        // Most often the very last.
        let last = recent.last()?.1.clone();
        match self.random.u32(0..3) {
            0 => Some(last),
            _ => Some(recent[self.random.usize(0..recent.len())].1.clone()),
        }
    }

    /// The same once more, as a caller's library sends it.
    pub(super) fn again(&mut self, id: &MissionId) -> (Arc<str>, Command) {
        let (again, entry) = (self.random.bool(), &self.book.entries[id]);
        let mut command = (*entry.command).clone();
        if again {
            command.correlation_id = "another".into();
            command.requested_at = "2026-01-01T00:00:00Z".into();
        }
        (entry.caller.clone(), command)
    }

    /// Something else under a name or a key that was acknowledged.
    pub(super) fn other_content(&mut self) -> Option<(Arc<str>, Command)> {
        let id = self.some_entry(|entry| entry.acked.is_some())?;
        let (dice, entry) = (self.random.u32(0..4), &self.book.entries[&id]);
        let mut command = (*entry.command).clone();
        let mut caller = entry.caller.clone();
        match dice {
            0 => drop(command.parameters.insert("x".into(), "2".into())),
            1 => {
                command.completion_mode = match command.completion_mode {
                    CompletionMode::Auto => CompletionMode::ManualOnly,
                    CompletionMode::ManualOnly => CompletionMode::Auto,
                }
            }
            2 => command.plan_effect_idempotency_key.push_str("-other"),
            _ => {
                caller = "spiffe://example.org/ns/third/sa/x".into();
                command.idempotency_key.push_str("-other");
            }
        }
        Some((caller, command))
    }

    /// The missions that wait for a person's word, and what a person finds at the robot: nothing
    /// while the robot cannot be looked at, is still at it, or has not got everything yet. `None`
    /// confirms.
    pub(super) fn what_operators_know(&self) -> Vec<(MissionId, Option<MissionStatus>)> {
        let mut known = Vec::new();
        for (id, told) in &self.book.stops {
            if told.ended.is_none() && told.state.outcome_unknown {
                known.push((id.clone(), Some(MissionStatus::Failed)));
            }
        }
        for (id, entry) in &self.book.entries {
            let Some(told) = entry.told.as_ref().filter(|t| t.ended.is_none()) else {
                continue;
            };
            if told.state.awaiting_confirmation && !told.state.outcome_unknown {
                known.push((id.clone(), None));
                continue;
            }
            let robot = &self.robots[&entry.command.robot_id];
            let settled = robot.powered
                && !robot.has_mail()
                && robot.wire.is_quiet()
                && robot.since.elapsed() > Duration::from_secs(10)
                && robot.wire.since.elapsed() > Duration::from_secs(10)
                && robot.at().is_none_or(|e| e.mission != *id);
            if !told.state.outcome_unknown || !settled {
                continue;
            }
            let done = robot.executions.iter().rfind(|e| e.mission == *id);
            let status = done
                .and_then(|done| done.outcome)
                .unwrap_or(MissionStatus::Failed);
            known.push((id.clone(), Some(status)));
        }
        known
    }
}
