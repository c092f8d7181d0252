//! The robots' words, and the links to them.

use super::{
    Inner, Robot,
    index::Found,
    question::says_more,
    robot::{Active, CancelPhase, Phase, RobotState, stamp},
    transition::{Change, Word},
};
use crate::journal::{Append, BACKLOG_LIMIT, Record};
use portarium_protocols::{
    adapter::{Disbelieved, Link, Report, Said, Speaker, StopAnswer, Update},
    ids::{MissionId, RobotId},
    mission::{ActionType, CompletionMode, MissionStatus},
};
use std::{collections::VecDeque, sync::Arc};
use tokio::{sync::mpsc, time::Instant};

/// Reports that are kept while the journal is behind; when there are as many, the adapters wait.
const KEPT: usize = 1024;

/// Takes updates until the engine closes. While the journal is behind, what would add to it is
/// kept. News of links and words on stops are not: a cancel that waits for its robot's return and
/// a stop's answer shall not wait for a disk.
pub(super) async fn pump(inner: Arc<Inner>, mut updates: mpsc::Receiver<Update>) {
    let mut head = inner.journal.head();
    let mut kept = VecDeque::new();
    let is_behind = || inner.journal.backlog() > BACKLOG_LIMIT;
    loop {
        let behind = is_behind();
        if !behind && let Some(report) = kept.pop_front() {
            inner.report(report);
            continue;
        }
        tokio::select! {
            biased;
            () = inner.closing.cancelled() => return,
            changed = head.changed(), if behind => if changed.is_err() { return },
            update = updates.recv(), if kept.len() < KEPT => match update {
                None => return,
                Some(Update::Link { robot, link }) => inner.link(&robot, link),
                Some(Update::Disbelieved(said)) => inner.world.observer.disbelieved(&said),
                // Behind those that are kept, in the order in which they were said.
                Some(Update::Report(report))
                    if (is_behind() || !kept.is_empty()) && !inner.is_on_stop(&report) =>
                {
                    kept.push_back(report);
                }
                Some(Update::Report(report)) => inner.report(report),
            },
        }
    }
}

impl Inner {
    fn is_on_stop(&self, report: &Report) -> bool {
        let found = self.index().by_mission_id(report.mission.as_str());
        matches!(found, Some(Found::Open(mission)) if mission.command.action_type.is_stop())
    }

    fn report(self: &Arc<Self>, report: Report) {
        let found = self.index().by_mission_id(report.mission.as_str());
        match found {
            Some(Found::Open(mission)) => {
                let id = &mission.command.robot_id;
                let Some(robot) = self.robot(id) else { return };
                self.take_report(&robot, &report);
            }
            Some(Found::Ended { position, .. }) => {
                self.unfollowed_stop(&report);
                self.late_word(position);
            }
            // Of another gateway, or no longer kept.
            None => {
                self.unfollowed_stop(&report);
                tracing::debug!(mission = %report.mission, "a report on a mission that is not known here")
            }
        }
    }

    fn take_report(self: &Arc<Self>, robot: &Arc<Robot>, report: &Report) {
        let at = stamp(self.world.clock.now());
        let mut records = Vec::new();
        {
            let mut state = robot.lock();
            if state.take_report(report, &at, &mut records) == Change::None {
                return;
            }
            if !records.is_empty() {
                self.journal.append(Append {
                    records,
                    ..Append::default()
                });
            }
        }
        robot.stop_word.notify_waiters();
        robot.wake.notify_one();
    }

    /// A stop may have the name of one that has ended, or no mission by which it is followed. Of a
    /// topic that thousands may share nobody is looked for: the stop is sent once more in vain.
    fn unfollowed_stop(&self, report: &Report) {
        let Speaker::Robot(id) = &report.speaker else {
            return;
        };
        let Some(robot) = self.robot(id) else { return };
        let mut state = robot.lock();
        let number = state.stop.unheard_as(&report.mission);
        if number.is_some_and(|number| state.stop_reported(number, report.status)) {
            drop(state);
            robot.wake.notify_one();
        }
    }

    /// A status that stays on the wire after its mission's end is cleared again.
    fn late_word(self: &Arc<Self>, position: u64) {
        let Ok(turn) = self.late.clone().try_acquire_owned() else {
            return;
        };
        let inner = self.clone();
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                // Not even a disk that hangs keeps the engine from ending.
                () = inner.closing.cancelled() => return,
                ended = inner.journal.reader().ended(position) => ended,
            };
            if let Ok(Some(ended)) = ended
                && let Some(adapter) = inner.adapter(&ended.command.robot_id)
            {
                adapter.settle(&ended.command);
            }
            drop(turn);
        });
    }

    fn link(&self, id: &RobotId, link: Link) {
        // Not while robots are exchanged: one that is just coming in was asked for its link, and
        // would miss what became of it since.
        let index = self.index();
        let Some(robot) = self.robot(id) else { return };
        drop(index);
        {
            let mut state = robot.lock();
            match link {
                // Also one that was believed to be there: its absence was shorter than the news of it.
                Link::Up => state.returned(),
                Link::Down { reason } => {
                    state.link = Err(reason);
                    state.reconciled = false;
                }
            }
        }
        robot.wake.notify_one();
    }
}

impl RobotState {
    /// It can be reached again: what is kept for it goes out at once, and once more what it has not
    /// answered; its missions are asked for.
    fn returned(&mut self) {
        self.link = Ok(());
        self.reconciled = self.active.is_none();
        (self.retry_at, self.unsent) = (None, 0);
        self.stop.retry_at = None;
        self.unanswered.end();
        self.stop.repeat_unheard();
        if let Some(active) = &mut self.active
            && matches!(
                active.cancel,
                CancelPhase::Wanted(_) | CancelPhase::Delivered(Some(_))
            )
        {
            active.cancel = CancelPhase::Wanted(None);
        }
    }

    /// Applies a robot's word on one of its missions or stops.
    pub(super) fn take_report(
        &mut self,
        report: &Report,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) -> Change {
        let id = &report.mission;
        let Some(open) = self.open.get(id) else {
            return Change::None;
        };
        let robot = &open.mission.command.robot_id;
        if !report.speaker.may_be(robot) {
            self.disbelieve(report, "it is on the mission of another robot");
            return Change::None;
        }
        match open.mission.command.action_type {
            ActionType::Stop | ActionType::EstopRequest => {
                let number = open.stop_number;
                return self.stop_report(number, report, at, records);
            }
            // Never sent as such.
            ActionType::CancelAction => return Change::None,
            ActionType::ExecuteAction => {}
        }
        if !open.offered {
            self.disbelieve(report, "it is on a mission that was not sent");
            return Change::None;
        }
        // Robots call theirs pending what they have and have not begun.
        let status = match report.status {
            MissionStatus::Pending => MissionStatus::Dispatched,
            said => said,
        };
        if report.said == Said::Before && !says_more(&open.state, status) {
            return Change::None;
        }
        self.robot_has(id);
        let observed_at = if report.observed_at.is_empty() {
            at
        } else {
            report.observed_at.as_str()
        };
        let word = Word {
            detail: &report.detail,
            action_execution_id: &report.action_execution_id,
            observed_at,
            heard: true,
        };
        self.take_word(status, id, &word, records)
    }

    fn disbelieve(&mut self, report: &Report, why: &'static str) {
        if self.strangers.is_due(Instant::now()) {
            tracing::warn!(mission = %report.mission, speaker = %report.speaker, "a report is not believed: {why}; such are ignored");
        }
        self.observer.disbelieved(&Disbelieved {
            speaker: report.speaker.clone(),
            mission: Some(report.mission.clone()),
            reason: why,
        });
    }

    fn take_word(
        &mut self,
        status: MissionStatus,
        id: &MissionId,
        word: &Word<'_>,
        records: &mut Vec<Record>,
    ) -> Change {
        let Some(open) = self.open.get_mut(id) else {
            return Change::None;
        };
        let manual = open.mission.command.completion_mode == CompletionMode::ManualOnly;
        let state = &mut open.state;
        let news = !word.detail.is_empty() && *state.detail != *word.detail
            || !word.action_execution_id.is_empty()
                && *state.action_execution_id != *word.action_execution_id;
        if status == state.status && !state.outcome_unknown && !news {
            // Said before. Known without a row of its own.
            return if std::mem::replace(&mut state.heard, true) {
                Change::None
            } else {
                Change::Made
            };
        }
        // A beginning, an end and what resolves an unknown outcome come once; all else a robot may
        // say for ever.
        let begins = status != state.status
            && matches!(
                state.status,
                MissionStatus::Pending | MissionStatus::Dispatched
            );
        let ends = status.is_terminal() && !state.awaiting_confirmation;
        let once = begins || ends || state.outcome_unknown;
        let now = Instant::now();
        if !once && !self.words.take(now) {
            state.heard = true;
            if self.wordy.is_due(now) {
                tracing::warn!(mission = %id, "a robot changes what it says of its mission too often; only some of that is kept");
            }
            return Change::None;
        }
        if status == MissionStatus::Succeeded && manual {
            // Its end is the operator's to say.
            let came = self.advance(id, MissionStatus::Executing, word, records);
            let waits = self.edit(id, records, |state| state.awaiting_confirmation = true);
            return if came == Change::None { waits } else { came };
        }
        self.advance(id, status, word, records)
    }

    /// A robot that reports on a mission has it, whatever was believed.
    fn robot_has(&mut self, id: &MissionId) {
        if let Some(place) = self.queue.iter().position(|queued| queued == id)
            && self.active.is_none()
        {
            self.queue.remove(place);
            let word_by = Instant::now();
            self.active = Some(Active::new(
                id.clone(),
                Phase::Sent,
                CancelPhase::Idle,
                word_by,
            ));
        }
        let Some(active) = self.active.as_mut().filter(|a| &a.id == id) else {
            return;
        };
        active.words += 1;
        active.silent_since = Instant::now();
        if matches!(active.phase, Phase::Committing(_) | Phase::Lost) {
            active.phase = Phase::Sent;
        }
        let first = self.open.get(id).is_some_and(|open| !open.state.heard);
        active.cancel = match active.cancel {
            // What was on a connection that broke may have come behind the cancel on the next one.
            CancelPhase::Delivered(Some(_)) if first => CancelPhase::Wanted(None),
            // What speaks of it has not forgotten it: its end is awaited from here.
            CancelPhase::Delivered(Some(_)) => CancelPhase::Delivered(Some(Instant::now())),
            as_before => as_before,
        };
    }

    /// Whether the stop that is handed over to be sent again is answered by it.
    fn stop_reported(&mut self, number: u64, status: MissionStatus) -> bool {
        let silent = [
            MissionStatus::Pending,
            MissionStatus::Dispatched,
            MissionStatus::Cancelled,
        ];
        let answered = !silent.contains(&status) && self.stop.reported(number);
        self.row_behind |= answered;
        answered
    }

    fn stop_report(
        &mut self,
        number: u64,
        report: &Report,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) -> Change {
        self.stop_reported(number, report.status);
        let answer = match report.status {
            MissionStatus::Executing | MissionStatus::WaitingPreemption => StopAnswer::Accepted,
            MissionStatus::Succeeded => StopAnswer::Stationary,
            MissionStatus::Failed => {
                tracing::error!(speaker = %report.speaker, stop = %report.mission, reason = report.detail, "the robot did not stop");
                if self.stop.answered.0 <= number {
                    self.stop.answered = (number, Some(Err(report.detail.clone())));
                }
                let detail = format!("the robot did not stop: {}", report.detail);
                let word = Word {
                    detail: &detail,
                    observed_at: at,
                    heard: true,
                    ..Word::default()
                };
                return self.advance(&report.mission, MissionStatus::Failed, &word, records);
            }
            MissionStatus::Pending | MissionStatus::Dispatched | MissionStatus::Cancelled => {
                return Change::None;
            }
        };
        if self.stop.answered.0 <= number {
            self.stop.answered = (number, Some(Ok(answer)));
        }
        self.stopped(number, answer, at, records);
        Change::Made
    }
}

/// Until which a mission may be sent, on the clock that is not stepped.
pub(super) fn deliver_by(
    accepted_ago: std::time::Duration,
    within: std::time::Duration,
) -> Instant {
    Instant::now() + within.saturating_sub(accepted_ago)
}
