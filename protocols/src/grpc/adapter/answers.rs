//! What a robot's answers mean.

use crate::{
    adapter::{
        Disbelieved, DispatchError, Handover, Reconciled, Report, Said, SignalError, Speaker,
        StopAnswer,
    },
    grpc::{ChannelError, Down, channel::with_sources, convert::printable, pb},
    ids::{MissionId, RobotId},
};
use portarium_identity::JwtSvids;
use tonic::{Code, Status};

/// The most that is kept of a robot's explanation, in bytes.
const MAX_DETAIL: usize = 512;
/// The most that is kept of a robot's name for an execution, in bytes.
const MAX_EXECUTION_ID: usize = 200;
/// The longest RFC 3339 text that is kept, in bytes.
const MAX_TIME: usize = 64;

/// What a dispatch came to, as far as its answer tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dispatched {
    /// It tells.
    Settled(Result<Handover, DispatchError>),
    /// The robot calls it a duplicate: whether it has this mission is to be asked.
    Duplicate,
}

fn words(texts: &[&str]) -> String {
    let said = texts.iter().find(|text| !text.is_empty());
    printable(said.unwrap_or(&"it gave no reason"), MAX_DETAIL)
}

pub(super) fn of_dispatch(answer: &pb::DispatchMissionResponse) -> Dispatched {
    use pb::DispatchStatus as S;
    let reason = || {
        let reason = &answer.reject_reason;
        match (reason.as_str(), answer.message.as_str()) {
            ("", message) => words(&[message]),
            (kind, "") => words(&[kind]),
            (kind, message) => words(&[&format!("{kind}: {message}")]),
        }
    };
    Dispatched::Settled(match answer.status() {
        S::Dispatched => Ok(Handover::Accepted),
        S::Rejected if answer.reject_reason == "DuplicateRequest" => return Dispatched::Duplicate,
        S::Rejected => Err(DispatchError::Rejected { reason: reason() }),
        S::PolicyBlocked => Err(DispatchError::Rejected {
            reason: words(&[&answer.policy_reason, &answer.message]),
        }),
        S::GatewayUnreachable => Err(DispatchError::Unreachable { reason: reason() }),
        S::Unspecified => Err(DispatchError::Unknown {
            reason: "the robot answered without a status".to_owned(),
        }),
    })
}

/// Whether the other end itself gave this answer, and not the transport on the way or our own
/// decoder, which cannot take what the other end did answer: one that is too long is out of range
/// to it, and one that is compressed unimplemented, with a list of what it takes.
fn is_peers_word(status: &Status) -> bool {
    std::error::Error::source(status).is_none()
        && status.code() != Code::OutOfRange
        && !status.metadata().contains_key("grpc-accept-encoding")
}

/// Whether a call of which this came may reach the other end all the same.
pub(super) fn may_still_arrive(status: &Status) -> bool {
    !is_peers_word(status) && !ChannelError::was_not_sent(status)
}

/// Whether a robot that asks for a JWT-SVID turned a call away for the one that it came with, or for
/// want of one. It has not looked at the call, which is made again with the next.
fn wants_another(status: &Status, jwt: Option<&JwtSvids>) -> bool {
    let jwt = jwt.filter(|_| is_peers_word(status) && status.code() == Code::Unauthenticated);
    jwt.inspect(|jwt| jwt.refused()).is_some()
}

/// Answers that are given instead of processing a request.
fn refuses(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::Unauthenticated
    )
}

fn explain(status: &Status) -> String {
    let code = status.code();
    match (is_peers_word(status), status.message()) {
        (true, "") => format!("{code:?}"),
        (true, message) => format!("{code:?}: {}", printable(message, MAX_DETAIL)),
        (false, _) => printable(&with_sources(status), MAX_DETAIL),
    }
}

pub(super) fn of_failed_dispatch(status: &Status, jwt: Option<&JwtSvids>) -> Dispatched {
    let reason = explain(status);
    Dispatched::Settled(Err(if ChannelError::was_not_sent(status) {
        DispatchError::Unreachable { reason }
    } else if !is_peers_word(status) {
        DispatchError::Unknown { reason }
    } else if status.code() == Code::AlreadyExists {
        return Dispatched::Duplicate;
    } else if wants_another(status, jwt) {
        DispatchError::Unreachable { reason }
    } else if refuses(status.code()) {
        DispatchError::Rejected { reason }
    } else if status.code() == Code::ResourceExhausted {
        // Given before a request is taken up; the robot may have room later.
        DispatchError::Unreachable { reason }
    } else {
        DispatchError::Unknown { reason }
    }))
}

pub(super) fn of_failed_signal(status: &Status, jwt: Option<&JwtSvids>) -> SignalError {
    let reason = explain(status);
    if is_peers_word(status) && refuses(status.code()) && !wants_another(status, jwt) {
        SignalError::Refused { reason }
    } else {
        SignalError::Unreachable { reason }
    }
}

pub(super) fn of_cancel(answer: &pb::CancelMissionResponse) -> Result<(), SignalError> {
    if answer.accepted {
        return Ok(());
    }
    Err(SignalError::Refused {
        reason: words(&[&answer.message]),
    })
}

pub(super) fn of_stop(answer: &pb::DispatchMissionResponse) -> Result<StopAnswer, SignalError> {
    let stop = answer.stop.unwrap_or_default();
    if stop.robot_unreachable {
        return Err(SignalError::Unreachable {
            reason: words(&[&answer.message]),
        });
    }
    match of_dispatch(answer) {
        Dispatched::Settled(Ok(_)) if stop.state() == pb::StopState::Refused => {
            Err(SignalError::Refused {
                reason: words(&[&answer.message]),
            })
        }
        Dispatched::Settled(Ok(_)) => Ok(match stop.state() {
            pb::StopState::Stationary => StopAnswer::Stationary,
            pb::StopState::Requested => StopAnswer::Requested,
            _ => StopAnswer::Accepted,
        }),
        // The second of the two that every stop is sent as.
        Dispatched::Duplicate => Ok(StopAnswer::Accepted),
        Dispatched::Settled(Err(DispatchError::Rejected { reason })) => {
            Err(SignalError::Refused { reason })
        }
        Dispatched::Settled(Err(
            DispatchError::Unreachable { reason } | DispatchError::Unknown { reason },
        )) => Err(SignalError::Unreachable { reason }),
    }
}

pub(super) fn of_status(
    robot: &RobotId,
    mission: &MissionId,
    answer: Result<pb::GetMissionStatusResponse, Status>,
    jwt: Option<&JwtSvids>,
) -> Result<Reconciled, SignalError> {
    match answer {
        Ok(answer) if answer.outcome_unknown => Ok(Reconciled::CannotAsk),
        Ok(answer) => match report_of_status(robot, mission, &answer) {
            Some(report) => Ok(Reconciled::Known(report)),
            None => Err(SignalError::Refused {
                reason: format!(
                    "it answered with the status {:?}",
                    printable(&answer.status, 64)
                ),
            }),
        },
        Err(status) if is_peers_word(&status) && status.code() == Code::NotFound => {
            Ok(Reconciled::NotKnown)
        }
        Err(status) if is_peers_word(&status) && status.code() == Code::Unimplemented => {
            Ok(Reconciled::CannotAsk)
        }
        Err(status) => Err(of_failed_signal(&status, jwt)),
    }
}

fn report_of_status(
    robot: &RobotId,
    mission: &MissionId,
    answer: &pb::GetMissionStatusResponse,
) -> Option<Report> {
    Some(Report {
        speaker: Speaker::Robot(robot.clone()),
        said: Said::Now,
        mission: mission.clone(),
        status: answer.status.parse().ok()?,
        action_execution_id: printable(&answer.action_execution_id, MAX_EXECUTION_ID),
        observed_at: printable(&answer.observed_at, MAX_TIME),
        detail: printable(&answer.detail, MAX_DETAIL),
    })
}

/// What is wrong with the answer to a question about a mission, if anything is.
pub(super) fn nonsense(
    robot: &RobotId,
    mission: &MissionId,
    answer: &pb::GetMissionStatusResponse,
) -> Option<Disbelieved> {
    let understood = answer.outcome_unknown || report_of_status(robot, mission, answer).is_some();
    let reason = "an answer that names a state that the contract does not have";
    (!understood).then(|| disbelieved(robot, Some(mission.clone()), reason))
}

/// `None` where it is of unknown outcome, or of another robot that is known to be behind the same
/// server.
pub(super) fn report_of_update(
    robot: &RobotId,
    shares_server: impl FnOnce(&str) -> bool,
    update: &pb::MissionUpdate,
) -> Result<Option<Report>, Disbelieved> {
    let disbelieved = |mission, reason| Err(disbelieved(robot, mission, reason));
    let mission = update.mission_id.parse::<MissionId>();
    if !update.robot_id.is_empty() && update.robot_id != robot.as_str() {
        return match shares_server(&update.robot_id) {
            true => Ok(None),
            false => disbelieved(mission.ok(), "an update in the name of another robot"),
        };
    }
    if update.outcome_unknown {
        return Ok(None);
    }
    let Ok(mission) = mission else {
        return disbelieved(None, "an update that names no mission");
    };
    let Ok(status) = update.status.parse() else {
        let reason = "an update that names a state that the contract does not have";
        return disbelieved(Some(mission), reason);
    };
    Ok(Some(Report {
        speaker: Speaker::Robot(robot.clone()),
        said: Said::Now,
        mission,
        status,
        action_execution_id: printable(&update.action_execution_id, MAX_EXECUTION_ID),
        observed_at: printable(&update.observed_at, MAX_TIME),
        detail: printable(&update.detail, MAX_DETAIL),
    }))
}

fn disbelieved(robot: &RobotId, mission: Option<MissionId>, reason: &'static str) -> Disbelieved {
    Disbelieved {
        speaker: Speaker::Robot(robot.clone()),
        mission,
        reason,
    }
}

impl From<Down> for SignalError {
    fn from(down: Down) -> Self {
        Self::Unreachable {
            reason: down.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn answer(status: pb::DispatchStatus) -> pb::DispatchMissionResponse {
        pb::DispatchMissionResponse {
            status: status.into(),
            message: "no\nway".into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_the_robot_refuses_is_rejected_and_what_nobody_can_tell_is_unknown() {
        use pb::DispatchStatus as S;
        let settled = |status| match of_dispatch(&answer(status)) {
            Dispatched::Settled(result) => result,
            Dispatched::Duplicate => panic!("no duplicate"),
        };
        let reason = "noway".to_owned();
        assert_eq!(settled(S::Dispatched), Ok(Handover::Accepted));
        assert_eq!(
            settled(S::Rejected),
            Err(DispatchError::Rejected {
                reason: reason.clone()
            })
        );
        assert_eq!(
            settled(S::PolicyBlocked),
            Err(DispatchError::Rejected {
                reason: reason.clone()
            })
        );
        assert_eq!(
            settled(S::GatewayUnreachable),
            Err(DispatchError::Unreachable { reason })
        );
        assert!(matches!(
            settled(S::Unspecified),
            Err(DispatchError::Unknown { .. })
        ));
        let duplicate = pb::DispatchMissionResponse {
            reject_reason: "DuplicateRequest".into(),
            ..answer(S::Rejected)
        };
        assert_eq!(of_dispatch(&duplicate), Dispatched::Duplicate);
        assert_eq!(of_stop(&duplicate), Ok(StopAnswer::Accepted));
    }

    #[test]
    fn a_grpc_error_is_a_refusal_only_where_it_is_given_instead_of_processing() {
        let of = |code| match of_failed_dispatch(&Status::new(code, "x"), None) {
            Dispatched::Settled(Err(error)) => error,
            other => panic!("{code:?}: {other:?}"),
        };
        for code in [
            Code::Unauthenticated,
            Code::PermissionDenied,
            Code::Unimplemented,
            Code::InvalidArgument,
        ] {
            assert!(
                matches!(of(code), DispatchError::Rejected { .. }),
                "{code:?}"
            );
        }
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Internal,
            Code::Unknown,
            Code::Cancelled,
        ] {
            assert!(
                matches!(of(code), DispatchError::Unknown { .. }),
                "{code:?}"
            );
        }
        assert!(matches!(
            of(Code::ResourceExhausted),
            DispatchError::Unreachable { .. }
        ));
    }

    #[test]
    fn a_stop_is_answered_with_what_the_robot_says_of_itself() {
        let with = |state: pb::StopState| {
            let stop = Some(pb::StopOutcome {
                state: state.into(),
                ..Default::default()
            });
            of_stop(&pb::DispatchMissionResponse {
                stop,
                ..answer(pb::DispatchStatus::Dispatched)
            })
        };
        assert_eq!(with(pb::StopState::Stationary), Ok(StopAnswer::Stationary));
        assert_eq!(with(pb::StopState::Accepted), Ok(StopAnswer::Accepted));
        assert_eq!(with(pb::StopState::Requested), Ok(StopAnswer::Requested));
        assert!(matches!(
            with(pb::StopState::Refused),
            Err(SignalError::Refused { .. })
        ));
        assert_eq!(
            of_stop(&answer(pb::DispatchStatus::Dispatched)),
            Ok(StopAnswer::Accepted)
        );
        assert!(matches!(
            of_stop(&answer(pb::DispatchStatus::Rejected)),
            Err(SignalError::Refused { .. })
        ));
        let behind_a_gateway = pb::StopOutcome {
            robot_unreachable: true,
            ..Default::default()
        };
        let answer = pb::DispatchMissionResponse {
            stop: Some(behind_a_gateway),
            ..answer(pb::DispatchStatus::Dispatched)
        };
        assert!(matches!(
            of_stop(&answer),
            Err(SignalError::Unreachable { .. })
        ));
    }

    #[test]
    fn reports_are_bounded_clean_and_of_this_robot_only() {
        let robot: RobotId = "r-1".parse().unwrap();
        let update = pb::MissionUpdate {
            mission_id: "m-1".into(),
            status: "EXECUTING".into(),
            detail: "a\u{1b}[31m".repeat(1000),
            action_execution_id: "e\n".repeat(1000),
            observed_at: "t".repeat(1000),
            ..Default::default()
        };
        let of = |update: &_| report_of_update(&robot, |id| id == "r-2", update);
        let report = of(&update).unwrap().unwrap();
        assert_eq!(report.speaker, Speaker::Robot(robot.clone()));
        assert!(report.detail.len() <= MAX_DETAIL && !report.detail.contains('\u{1b}'));
        assert_eq!(report.action_execution_id, "e".repeat(MAX_EXECUTION_ID));
        assert_eq!(report.observed_at.len(), MAX_TIME);
        let of_another = pb::MissionUpdate {
            robot_id: "r-2".into(),
            ..update.clone()
        };
        assert_eq!(of(&of_another), Ok(None));
        for (wrong, mission) in [
            (
                pb::MissionUpdate {
                    robot_id: "r-3".into(),
                    ..update.clone()
                },
                Some(&report.mission),
            ),
            (
                pb::MissionUpdate {
                    status: "dancing".into(),
                    ..update.clone()
                },
                Some(&report.mission),
            ),
            (
                pb::MissionUpdate {
                    mission_id: "a/b".into(),
                    ..update
                },
                None,
            ),
        ] {
            let told = of(&wrong).unwrap_err();
            assert_eq!(told.speaker, Speaker::Robot(robot.clone()));
            assert_eq!(told.mission.as_ref(), mission);
        }
    }
}
