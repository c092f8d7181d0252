//! What fuzz targets call and nothing else can: this module is there under `--cfg fuzzing` alone.

use super::answers;
use crate::{
    adapter::Reconciled,
    grpc::pb,
    ids::{MissionId, RobotId},
};
use prost::Message as _;

/// A robot's answer to each kind of call, and an update of its watch. Returns the texts that are kept.
pub fn robots_words(robot: &RobotId, mission: &MissionId, bytes: &[u8]) -> Vec<String> {
    let mut kept = Vec::new();
    if let Ok(answer) = pb::DispatchMissionResponse::decode(bytes) {
        kept.push(format!("{:?}", answers::of_dispatch(&answer)));
        kept.push(format!("{:?}", answers::of_stop(&answer)));
    }
    if let Ok(answer) = pb::CancelMissionResponse::decode(bytes) {
        kept.push(format!("{:?}", answers::of_cancel(&answer)));
    }
    if let Ok(answer) = pb::GetMissionStatusResponse::decode(bytes) {
        let nonsense = answers::nonsense(robot, mission, &answer);
        let status = answers::of_status(robot, mission, Ok(answer), None);
        assert_eq!(nonsense.is_some(), status.is_err(), "{status:?}");
        if let Ok(Reconciled::Known(report)) = status {
            assert_eq!(&report.mission, mission);
            kept.extend([
                report.detail,
                report.observed_at,
                report.action_execution_id,
            ]);
        }
    }
    if let Ok(update) = pb::MissionUpdate::decode(bytes)
        && let Ok(Some(report)) = answers::report_of_update(robot, |_| false, &update)
    {
        kept.extend([
            report.detail,
            report.observed_at,
            report.action_execution_id,
        ]);
    }
    kept
}
