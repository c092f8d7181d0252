//! Cancel, status, confirmation and resolution of single missions.

use super::{JOURNAL_PATIENCE, Service, gate::About, places::Place, tokens::Call};
use crate::{
    engine::{Cancelled, MissionView, OperatorError, rfc3339},
    journal::{JournalError, MissionState},
    policy::{Method, Principal, RobotRef},
};
use portarium_protocols::{
    grpc::pb,
    ids::MissionId,
    mission::{Command, MissionStatus},
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::timeout;
use tonic::{Request, Status};

impl Service {
    pub(super) async fn cancel(
        &self,
        request: Request<pb::CancelMissionRequest>,
    ) -> Result<pb::CancelMissionResponse, Status> {
        let method = Method::CancelMission;
        let principal = self.gate.enter_as(&request, Call::Cancel(method))?;
        let request = request.into_inner();
        let about = About::mission(&request.mission_id);
        let place = self.cancels.enter(principal.caller());
        let patience = patience(place.as_ref());
        let found = self.find(&principal, method, about, patience).await?;
        let Some((id, command)) = found else {
            let message = unknown(&request.mission_id);
            self.gate
                .refused(&principal, method, about, "not known", &message);
            return Ok(pb::CancelMissionResponse {
                message,
                ..Default::default()
            });
        };
        self.permit(&principal, method, &command)?;
        let about = About::command(&command);
        let permitted = self.gate.permitted(&principal, method, about);
        let reason = reason(&request.reason);
        let result = within(patience, self.engine.cancel(&id, &reason)).await?;
        let outcome = result.map_err(|e| journal(&e))?;
        let response = match outcome {
            Cancelled::Now(at) => pb::CancelMissionResponse {
                accepted: true,
                cancelled_at: rfc3339(at),
                message: "cancelled before it was sent".into(),
            },
            Cancelled::Requested => pb::CancelMissionResponse {
                accepted: true,
                cancelled_at: String::new(),
                message: "cancel requested; the mission ends by the robot's word".into(),
            },
            Cancelled::Nothing(message) => pb::CancelMissionResponse {
                message,
                ..Default::default()
            },
            Cancelled::Unknown => pb::CancelMissionResponse {
                message: unknown(id.as_str()),
                ..Default::default()
            },
        };
        let outcome = if response.accepted {
            "accepted"
        } else {
            "nothing to cancel"
        };
        permitted.allowed(outcome, &response.message);
        Ok(response)
    }

    pub(super) async fn status(
        &self,
        request: Request<pb::GetMissionStatusRequest>,
    ) -> Result<pb::GetMissionStatusResponse, Status> {
        let method = Method::GetMissionStatus;
        let principal = self.gate.enter(&request, method)?;
        let request = request.into_inner();
        let about = About::mission(&request.mission_id);
        let _place = self.place(&self.others, &principal, method, about)?;
        let (id, view) = self.see(&principal, method, &request.mission_id).await?;
        let about = About::command(&view.command);
        self.gate.shown(&principal, method, about, "answered");
        Ok(status_response(&id, &view.state))
    }

    /// A mission that the caller may see.
    pub(super) async fn see(
        &self,
        principal: &Principal,
        method: Method,
        mission_id: &str,
    ) -> Result<(MissionId, MissionView), Status> {
        let about = About::mission(mission_id);
        let not_found = || {
            let reason = unknown(mission_id);
            self.gate
                .refused(principal, method, about, "not known", &reason);
            Status::not_found(reason)
        };
        let id: MissionId = mission_id.parse().map_err(|_| not_found())?;
        let asked = self.engine.status(&id);
        let view = self
            .look_up(principal, method, about, JOURNAL_PATIENCE, asked)
            .await?;
        let view = view.ok_or_else(not_found)?;
        let fleet = self.fleet(&view.command);
        let robot = RobotRef {
            robot: &view.command.robot_id,
            fleet: fleet.as_ref(),
        };
        if !self.gate.may_see(principal, method, robot) {
            let reason = format!(
                "no policy rule lets {principal} see missions of robot {}",
                view.command.robot_id
            );
            let about = About::command(&view.command);
            self.gate
                .refused(principal, method, about, "PERMISSION_DENIED", &reason);
            return Err(Status::permission_denied(reason));
        }
        Ok((id, view))
    }

    pub(super) async fn confirm(
        &self,
        request: Request<pb::ConfirmMissionRequest>,
    ) -> Result<pb::ConfirmMissionResponse, Status> {
        let method = Method::ConfirmMission;
        let principal = self.gate.enter(&request, method)?;
        let request = request.into_inner();
        let note = reason(&request.note);
        let (accepted, message) = self
            .operate(&principal, method, &request.mission_id, |id| async move {
                self.engine.confirm(&id, &note).await
            })
            .await?;
        Ok(pb::ConfirmMissionResponse { accepted, message })
    }

    pub(super) async fn resolve(
        &self,
        request: Request<pb::ResolveMissionRequest>,
    ) -> Result<pb::ResolveMissionResponse, Status> {
        let method = Method::ResolveMission;
        let principal = self.gate.enter(&request, method)?;
        let request = request.into_inner();
        let status: MissionStatus = request.status.parse().map_err(|_| {
            let reason = "status: Succeeded, Failed or Cancelled";
            let about = About::mission(&request.mission_id);
            self.gate
                .refused(&principal, method, about, "INVALID_ARGUMENT", reason);
            Status::invalid_argument(reason)
        })?;
        let note = reason(&request.note);
        let (accepted, message) = self
            .operate(&principal, method, &request.mission_id, |id| async move {
                self.engine.resolve(&id, status, &note).await
            })
            .await?;
        Ok(pb::ResolveMissionResponse { accepted, message })
    }

    /// An operator's word on a mission: looked up, permitted, said and written down.
    async fn operate<F>(
        &self,
        principal: &Principal,
        method: Method,
        mission_id: &str,
        say: impl FnOnce(MissionId) -> F,
    ) -> Result<(bool, String), Status>
    where
        F: Future<Output = Result<(), OperatorError>>,
    {
        let about = About::mission(mission_id);
        let _place = self.place(&self.others, principal, method, about)?;
        let found = self
            .find(principal, method, about, JOURNAL_PATIENCE)
            .await?;
        let Some((id, command)) = found else {
            let message = unknown(mission_id);
            self.gate
                .refused(principal, method, about, "not known", &message);
            return Ok((false, message));
        };
        self.permit(principal, method, &command)?;
        let about = About::command(&command);
        let permitted = self.gate.permitted(principal, method, about);
        match within(JOURNAL_PATIENCE, say(id)).await? {
            Ok(()) => {
                permitted.allowed("accepted", "");
                Ok((true, String::new()))
            }
            Err(OperatorError::Journal(error)) => Err(journal(&error)),
            Err(error) => {
                let message = error.to_string();
                permitted.refused("InvalidState", &message);
                Ok((false, message))
            }
        }
    }

    async fn find(
        &self,
        principal: &Principal,
        method: Method,
        about: About<'_>,
        patience: Duration,
    ) -> Result<Option<(MissionId, Arc<Command>)>, Status> {
        let Ok(id) = about.mission_id.parse::<MissionId>() else {
            return Ok(None);
        };
        let asked = self.engine.command(&id);
        let command = self
            .look_up(principal, method, about, patience, asked)
            .await?;
        Ok(command.map(|command| (id, command)))
    }

    /// What the journal knows; where it does not answer, nothing can be decided, which is written
    /// down.
    async fn look_up<T>(
        &self,
        principal: &Principal,
        method: Method,
        about: About<'_>,
        patience: Duration,
        asked: impl Future<Output = Result<T, JournalError>>,
    ) -> Result<T, Status> {
        let answer = within(patience, asked).await;
        let answer = answer.and_then(|answer| answer.map_err(|e| journal(&e)));
        answer.inspect_err(|status| {
            self.gate
                .refused(principal, method, about, "UNAVAILABLE", status.message());
        })
    }

    fn permit(
        &self,
        principal: &Principal,
        method: Method,
        command: &Command,
    ) -> Result<(), Status> {
        let fleet = self.fleet(command);
        let robot = RobotRef {
            robot: &command.robot_id,
            fleet: fleet.as_ref(),
        };
        self.gate.command(
            principal,
            method,
            robot,
            Some(command),
            About::command(command),
        )
    }

    /// The robot's fleet by the configuration.
    pub(super) fn fleet(&self, command: &Command) -> Option<portarium_protocols::ids::FleetId> {
        self.engine.robot(&command.robot_id)?.spec.fleet.clone()
    }
}

/// How long a cancel waits for the journal. One that has no place to wait is asked for all the
/// same: others that wait must not keep it from its robot.
pub(super) fn patience(place: Option<&Place>) -> Duration {
    place.map_or(Duration::ZERO, |_| JOURNAL_PATIENCE)
}

/// No call waits forever for a disk.
pub(super) async fn within<T>(
    patience: Duration,
    future: impl Future<Output = T>,
) -> Result<T, Status> {
    let late = |_| match patience.is_zero() {
        true => Status::resource_exhausted(
            "too many calls wait for the journal; what was asked is under way, ask again later",
        ),
        false => Status::unavailable(
            "the journal has not answered; what was asked is under way, ask again",
        ),
    };
    timeout(patience, future).await.map_err(late)
}

pub(super) fn journal(error: &JournalError) -> Status {
    Status::unavailable(error.for_callers())
}

/// What people wrote, bounded and on one line.
pub(super) fn reason(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

pub(super) fn unknown(mission_id: &str) -> String {
    format!("mission {} is not known", reason(mission_id))
}

fn status_response(id: &MissionId, state: &MissionState) -> pb::GetMissionStatusResponse {
    pb::GetMissionStatusResponse {
        mission_id: id.to_string(),
        status: state.status.as_str().into(),
        action_execution_id: state.action_execution_id.to_string(),
        observed_at: state.observed_at.to_string(),
        outcome_unknown: state.outcome_unknown,
        detail: state.detail.to_string(),
        cancel_requested: state.cancel_requested,
        awaiting_confirmation: state.awaiting_confirmation,
    }
}
