//! What the tests of the shipped binary share: the stage of `dev` in the test's process, the
//! binary as a child on it, and clients with any certificate.

#![allow(dead_code, unused_imports, unreachable_pub)] // each test file uses a part of it
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod process;
pub mod world;

use portarium_protocols::grpc::pb;
use std::{fmt::Debug, future::Future, time::Duration};
use tokio::time::{Instant, sleep};

pub use process::{Ended, Process};
pub use world::{Client, World, id};

/// How long anything may take on a machine that does much else.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Asks until the answer is there.
pub async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// An id of its own for each call.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{:016x}", fastrand::u64(..))
}

/// A mission that keeps every rule of the contract.
pub fn mission(robot: &str, action: &str) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: unique("mission"),
        correlation_id: unique("correlation"),
        plan_effect_idempotency_key: unique("plan"),
        robot_id: robot.into(),
        fleet_id: String::new(),
        action_type: "robot:execute_action".into(),
        action_name: action.into(),
        parameters: parameters(&[("duration", "0.05")]),
        idempotency_key: unique("key"),
        supports_preemption: true,
        bypass_tier_evaluation: false,
        completion_mode: "Auto".into(),
        requires_operator_confirmation: false,
        requested_at: "2026-01-02T03:04:05Z".into(),
    }
}

pub fn parameters(fields: &[(&str, &str)]) -> Option<pb::ActionParameters> {
    let fields = fields.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    Some(pb::ActionParameters {
        fields: fields.collect(),
    })
}

/// A stop (`robot:stop`) or e-stop request (`robot:estop_request`).
pub fn stop(robot: &str, action_type: &str) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: unique("stop"),
        robot_id: robot.into(),
        action_type: action_type.into(),
        bypass_tier_evaluation: true,
        completion_mode: "Auto".into(),
        ..pb::DispatchMissionRequest::default()
    }
}

/// Fails with both texts unless one contains the other.
pub fn assert_contains(text: impl AsRef<str> + Debug, part: &str) {
    assert!(
        text.as_ref().contains(part),
        "expected {part:?} in {text:?}"
    );
}
