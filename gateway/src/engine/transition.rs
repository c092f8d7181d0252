//! Changes of a mission's state: the one place that makes them.

use super::robot::{Open, RobotState};
use crate::journal::{Attempt, MissionState, Record};
use portarium_protocols::{
    ids::MissionId,
    mission::{ActionType, MissionStatus},
};
use std::{sync::Arc, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// RFC 3339, to the millisecond.
pub fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let whole_millis = time.nanosecond() / 1_000_000 * 1_000_000;
    time.replace_nanosecond(whole_millis)
        .unwrap_or(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

/// What a change brings along besides the status.
#[derive(Debug, Default, Clone)]
pub(super) struct Word<'a> {
    /// For people; empty: as before.
    pub(super) detail: &'a str,
    /// The robot's name for the execution; empty: as before.
    pub(super) action_execution_id: &'a str,
    /// When; RFC 3339.
    pub(super) observed_at: &'a str,
    /// The robot itself said so.
    pub(super) heard: bool,
}

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: it is so already, or no way leads there.
    None,
    /// It is so now.
    Made,
    /// It has ended by it.
    Ended,
}

impl RobotState {
    /// Brings a mission to a status along the states between, each a row; a mission that ends
    /// leaves the robot.
    pub(super) fn advance(
        &mut self,
        id: &MissionId,
        to: MissionStatus,
        word: &Word<'_>,
        records: &mut Vec<Record>,
    ) -> Change {
        let Some(open) = self.open.get_mut(id) else {
            return Change::None;
        };
        let Some(path) = open.state.status.path_to(to) else {
            return Change::None;
        };
        let mut next = open.state.clone();
        take_word(&mut next, word);
        if next.outcome_unknown && (word.heard || to.is_terminal()) {
            next.outcome_unknown = false;
            self.observer.outcome_unknown(false);
        }
        if to.is_terminal() {
            next.cancel_requested = false;
            next.awaiting_confirmation = false;
        }
        if path.is_empty() {
            // The same said at another time is no news.
            let said_at = std::mem::replace(&mut next.observed_at, open.state.observed_at.clone());
            if next == open.state {
                return Change::None;
            }
            next.observed_at = said_at;
            return open.change(next, records);
        }
        for step in path {
            let mut passed = next.clone();
            passed.status = *step;
            if step != &to {
                passed.detail = open.state.detail.clone();
            }
            self.observer
                .entered(self.adapter_name, Some(open.state.status), *step);
            open.state = passed.clone();
            records.push(Record::Changed(open.mission.clone(), passed));
        }
        if to.is_terminal() {
            self.left(id, to, word.observed_at, records);
            return Change::Ended;
        }
        Change::Made
    }

    /// A change that leaves the status alone.
    pub(super) fn edit(
        &mut self,
        id: &MissionId,
        records: &mut Vec<Record>,
        edit: impl FnOnce(&mut MissionState),
    ) -> Change {
        let Some(open) = self.open.get_mut(id) else {
            return Change::None;
        };
        let mut next = open.state.clone();
        edit(&mut next);
        if next.outcome_unknown != open.state.outcome_unknown {
            self.observer.outcome_unknown(next.outcome_unknown);
        }
        open.change(next, records)
    }

    /// A mission has ended: the robot is free of it, and whatever asked for its end has what it
    /// wanted or can no longer get it.
    fn left(&mut self, id: &MissionId, status: MissionStatus, at: &str, records: &mut Vec<Record>) {
        self.open.remove(id);
        self.queue.retain(|queued| queued != id);
        if self.active.as_ref().is_some_and(|active| &active.id == id) {
            self.active = None;
            self.unanswered.end();
        } else {
            return;
        }
        let waiting: Vec<_> = self
            .open
            .iter()
            .filter(|(_, o)| o.mission.command.action_type == ActionType::CancelAction)
            .map(|(id, _)| id.clone())
            .collect();
        for cancel in waiting {
            let detail = format!("mission {id} ended {status}");
            let word = Word {
                detail: &detail,
                observed_at: at,
                ..Word::default()
            };
            let end = match status {
                MissionStatus::Cancelled => MissionStatus::Succeeded,
                _ => MissionStatus::Failed,
            };
            self.advance(&cancel, end, &word, records);
        }
    }
}

impl Open {
    fn change(&mut self, next: MissionState, records: &mut Vec<Record>) -> Change {
        if next == self.state {
            return Change::None;
        }
        self.state = next.clone();
        records.push(Record::Changed(self.mission.clone(), next));
        Change::Made
    }
}

fn take_word(state: &mut MissionState, word: &Word<'_>) {
    if !word.detail.is_empty() {
        state.detail = Arc::from(word.detail);
    }
    if !word.action_execution_id.is_empty() {
        state.action_execution_id = Arc::from(word.action_execution_id);
    }
    if !word.observed_at.is_empty() {
        state.observed_at = Arc::from(word.observed_at);
    }
    if word.heard {
        state.heard = true;
        state.attempt = Attempt::Open;
    }
}
