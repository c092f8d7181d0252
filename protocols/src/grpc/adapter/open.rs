//! The missions that a robot was sent and that have not been settled.

use crate::{
    adapter::Report,
    ids::MissionId,
    mission::{ActionType, Command, MissionStatus},
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Stops that are remembered for each robot: repeated ones are missions of their own, and only
/// the latest matter.
const MAX_STOPS: usize = 8;

/// What one robot was sent and what it last said of it. As many as the engine keeps open.
#[derive(Debug, Default)]
pub(super) struct OpenMissions {
    missions: Mutex<HashMap<MissionId, Open>>,
    /// Woken when there is one more.
    pub(super) added: Notify,
}

#[derive(Debug)]
struct Open {
    action_type: ActionType,
    since: Instant,
    asked: Instant,
    last: Option<(MissionStatus, String)>,
}

impl OpenMissions {
    pub(super) fn add(&self, command: &Command) {
        let now = Instant::now();
        let open = Open {
            action_type: command.action_type,
            since: now,
            asked: now,
            last: None,
        };
        let mut missions = self.missions();
        missions.entry(command.mission_id.clone()).or_insert(open);
        if command.action_type.is_stop() {
            forget_oldest_stop(&mut missions);
        }
        drop(missions);
        self.added.notify_one();
    }

    pub(super) fn remove(&self, mission: &MissionId) {
        self.missions().remove(mission);
    }

    /// All of them, to be asked for after a connection was lost.
    pub(super) fn all(&self) -> Vec<MissionId> {
        self.missions().keys().cloned().collect()
    }

    /// Whether the report says something new.
    pub(super) fn is_news(&self, report: &Report) -> bool {
        let missions = self.missions();
        let last = missions
            .get(&report.mission)
            .and_then(|open| open.last.as_ref());
        last.is_none_or(|(status, execution)| {
            (*status, execution) != (report.status, &report.action_execution_id)
        })
    }

    /// Remembers what the engine was told.
    pub(super) fn note(&self, report: &Report) {
        if let Some(open) = self.missions().get_mut(&report.mission) {
            open.last = Some((report.status, report.action_execution_id.clone()));
        }
    }

    /// What was last said of a mission: an answer that was under way while something newer
    /// arrived is told by it.
    pub(super) fn last(&self, mission: &MissionId) -> Option<(MissionStatus, String)> {
        self.missions()
            .get(mission)
            .and_then(|open| open.last.clone())
    }

    /// The mission to be asked for next and when; `None` where there is none.
    pub(super) fn next_due(&self, watched: bool) -> Option<(Instant, MissionId)> {
        let missions = self.missions();
        let due = missions
            .iter()
            .filter(|(_, open)| !open.has_ended())
            .map(|(id, open)| {
                let age = open.asked - open.since;
                (open.asked + poll_interval(age, watched), id)
            });
        due.min_by_key(|(at, _)| *at)
            .map(|(at, id)| (at, id.clone()))
    }

    /// It is being asked for now.
    pub(super) fn asked(&self, mission: &MissionId) {
        if let Some(open) = self.missions().get_mut(mission) {
            open.asked = Instant::now();
        }
    }

    fn missions(&self) -> MutexGuard<'_, HashMap<MissionId, Open>> {
        self.missions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn has_ended(&self) -> bool {
        self.last
            .as_ref()
            .is_some_and(|(status, _)| status.is_terminal())
    }
}

fn forget_oldest_stop(missions: &mut HashMap<MissionId, Open>) {
    let stops = missions
        .iter()
        .filter(|(_, open)| open.action_type.is_stop());
    if stops.clone().count() <= MAX_STOPS {
        return;
    }
    let oldest = stops.min_by_key(|(_, open)| open.since);
    if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
        missions.remove(&oldest);
    }
}

/// Often while a mission is young, when most is decided; less often later. Where a watch stands,
/// a question now and then finds what it may have lost: a robot that restarted counts its updates
/// anew.
fn poll_interval(age: Duration, watched: bool) -> Duration {
    match (age.as_secs(), watched) {
        (0..5, false) => Duration::from_millis(50),
        (5..60, false) => Duration::from_millis(250),
        (_, false) => Duration::from_secs(1),
        (0..60, true) => Duration::from_secs(2),
        (_, true) => Duration::from_secs(10),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::{
        adapter::{Said, Speaker},
        grpc::{convert, pb},
    };

    fn command(id: &str, action_type: &str) -> Command {
        convert::parse(pb::DispatchMissionRequest {
            mission_id: id.into(),
            plan_effect_idempotency_key: "p".into(),
            robot_id: "r".into(),
            action_type: action_type.into(),
            action_name: "a".into(),
            idempotency_key: "i".into(),
            supports_preemption: true,
            bypass_tier_evaluation: true,
            completion_mode: "Auto".into(),
            ..Default::default()
        })
        .unwrap()
    }

    fn report(id: &str, status: MissionStatus) -> Report {
        Report {
            speaker: Speaker::Robot("r".parse().unwrap()),
            said: Said::Now,
            mission: id.parse().unwrap(),
            status,
            action_execution_id: String::new(),
            observed_at: String::new(),
            detail: String::new(),
        }
    }

    #[tokio::test]
    async fn only_the_latest_stops_are_remembered_and_never_at_the_cost_of_a_mission() {
        let open = OpenMissions::default();
        open.add(&command("m", "robot:execute_action"));
        for n in 0..100 {
            open.add(&command(&format!("s-{n}"), "robot:stop"));
        }
        let all = open.all();
        assert_eq!(all.len(), MAX_STOPS + 1);
        assert!(all.contains(&"m".parse().unwrap()) && all.contains(&"s-99".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_mission_is_asked_for_until_it_has_ended_and_each_state_is_news_once() {
        let open = OpenMissions::default();
        open.add(&command("m", "robot:execute_action"));
        let (due, id) = open.next_due(false).unwrap();
        assert!(due > Instant::now() && due <= Instant::now() + Duration::from_millis(50));
        for status in [MissionStatus::Executing, MissionStatus::Succeeded] {
            assert!(open.is_news(&report("m", status)));
            open.note(&report("m", status));
            assert!(!open.is_news(&report("m", status)));
        }
        assert_eq!(open.next_due(false), None);
        assert_eq!(open.all(), std::slice::from_ref(&id));
        open.remove(&id);
        assert_eq!(open.all(), []);
    }

    #[test]
    fn polling_slows_down_with_a_missions_age() {
        let of =
            |watched| [0, 4, 5, 59, 60].map(|s| poll_interval(Duration::from_secs(s), watched));
        assert_eq!(of(false).map(|i| i.as_millis()), [50, 50, 250, 250, 1000]);
        assert_eq!(
            of(true).map(|i| i.as_millis()),
            [2000, 2000, 2000, 2000, 10_000]
        );
    }
}
