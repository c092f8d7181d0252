//! Robots, commands and reports to try things with.

use crate::engine::RobotSpec;
use portarium_protocols::{
    adapter::{Report, Said, Speaker},
    mission::{ActionType, Command, CompletionMode, MissionStatus},
};
use std::time::Duration;

pub(super) fn spec(id: &str) -> RobotSpec {
    RobotSpec {
        id: id.parse().unwrap(),
        fleet: None,
        adapter_name: "fake",
        address: format!("fake:{id}"),
        actions: ["navigate_to".to_owned()].into(),
        idempotent: false,
        deliver_within: Duration::from_secs(60),
        queue: 16,
        adapter: None,
    }
}

pub(super) fn mission(robot: &str, id: &str) -> Command {
    Command {
        mission_id: id.parse().unwrap(),
        correlation_id: String::new(),
        plan_effect_idempotency_key: format!("plan-{id}"),
        robot_id: robot.parse().unwrap(),
        fleet_id: None,
        action_type: ActionType::ExecuteAction,
        action_name: "navigate_to".into(),
        parameters: [("x".to_owned(), "1".to_owned())].into(),
        idempotency_key: format!("key-{id}"),
        supports_preemption: true,
        bypass_tier_evaluation: false,
        completion_mode: CompletionMode::Auto,
        requires_operator_confirmation: false,
        requested_at: String::new(),
    }
}

pub(super) fn manual(robot: &str, id: &str) -> Command {
    Command {
        completion_mode: CompletionMode::ManualOnly,
        requires_operator_confirmation: true,
        ..mission(robot, id)
    }
}

pub(super) fn cancel_action(robot: &str, id: &str) -> Command {
    Command {
        action_type: ActionType::CancelAction,
        ..mission(robot, id)
    }
}

pub(super) fn stop(robot: &str, id: &str, action_type: ActionType) -> Command {
    Command {
        action_type,
        plan_effect_idempotency_key: String::new(),
        idempotency_key: String::new(),
        bypass_tier_evaluation: true,
        ..mission(robot, id)
    }
}

pub(super) fn report(mission: &str, status: MissionStatus) -> Report {
    Report {
        speaker: Speaker::Robot("r".parse().unwrap()),
        said: Said::Now,
        mission: mission.parse().unwrap(),
        status,
        action_execution_id: String::new(),
        observed_at: String::new(),
        detail: String::new(),
    }
}
