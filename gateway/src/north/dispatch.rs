//! `DispatchMission`: missions and stops.

use super::{
    Service,
    answer::{Echo, reject_reason},
    gate::About,
    missions::patience,
    tokens::Call,
};
use crate::{
    engine::Refusal,
    policy::{Method, Principal, RobotRef},
};
use portarium_protocols::{
    grpc::{convert, pb},
    mission::{ActionType, Command},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::timeout;
use tonic::{Request, Status};

/// What the caller asked for in its own words, for the audit of what cannot be read as a command.
struct Asked {
    robot_id: String,
    action_type: String,
    action_name: String,
}

impl Asked {
    fn of(request: &pb::DispatchMissionRequest) -> Self {
        Self {
            robot_id: request.robot_id.clone(),
            action_type: request.action_type.clone(),
            action_name: request.action_name.clone(),
        }
    }

    fn about<'a>(&'a self, mission_id: &'a str) -> About<'a> {
        About {
            mission_id,
            robot_id: &self.robot_id,
            action_type: &self.action_type,
            action_name: &self.action_name,
        }
    }
}

/// What is asked for, if that can be read.
pub(super) fn kind(request: &pb::DispatchMissionRequest) -> Option<ActionType> {
    request.action_type.parse().ok()
}

fn call(request: &pb::DispatchMissionRequest) -> Call {
    match kind(request) {
        Some(kind) if kind.is_stop() => Call::Stop,
        Some(ActionType::CancelAction) => Call::Cancel(METHOD),
        _ => Call::Other(METHOD),
    }
}

const METHOD: Method = Method::DispatchMission;

impl Service {
    /// A final refusal is a response, never a gRPC error, which the control plane reads as
    /// "unreachable".
    pub(super) async fn dispatch(
        &self,
        request: Request<pb::DispatchMissionRequest>,
    ) -> Result<pb::DispatchMissionResponse, Status> {
        let principal = self.gate.enter_as(&request, call(request.get_ref()))?;
        let request = request.into_inner();
        let echo = Echo::of(&request);
        let asked = Asked::of(&request);
        Ok(match convert::parse(request) {
            Err(invalid) => {
                let about = asked.about(&echo.mission_id);
                let reason = invalid.to_string();
                self.gate
                    .refused(&principal, METHOD, about, "InvalidMission", &reason);
                echo.invalid(&invalid)
            }
            Ok(command) => match self.blocked(&principal, &command) {
                Some(reason) => {
                    let about = About::command(&command);
                    self.gate
                        .refused(&principal, METHOD, about, "POLICY_BLOCKED", &reason);
                    echo.blocked(reason)
                }
                None if command.action_type.is_stop() => self.stop(&principal, command, echo).await,
                None => self.mission(&principal, command, echo).await?,
            },
        })
    }

    fn blocked(&self, principal: &Principal, command: &Command) -> Option<String> {
        let spec = self.engine.robot(&command.robot_id).map(|view| view.spec);
        let robot = RobotRef {
            robot: &command.robot_id,
            fleet: spec.as_ref().and_then(|spec| spec.fleet.as_ref()),
        };
        self.gate
            .may_command(principal, METHOD, robot, Some(command))
            .err()
    }

    async fn stop(
        &self,
        principal: &Principal,
        command: Command,
        echo: Echo,
    ) -> pb::DispatchMissionResponse {
        let at = SystemTime::now();
        let caller = principal.caller().into();
        let about = About::command(&command);
        let permitted = self.gate.permitted(principal, METHOD, about);
        match self.engine.stop(caller, command.clone()).await {
            Ok(stopped) => {
                let response = echo.stopped(&command, &stopped, at);
                permitted.allowed("DISPATCHED", &response.message);
                response
            }
            Err(refusal) => {
                let outcome = reject_reason(&refusal);
                let response = echo.refused(refusal);
                permitted.refused(outcome, &response.message);
                response
            }
        }
    }

    async fn mission(
        &self,
        principal: &Principal,
        command: Command,
        echo: Echo,
    ) -> Result<pb::DispatchMissionResponse, Status> {
        let caller = principal.caller();
        let asked = Arc::new(command);
        let permitted = self
            .gate
            .permitted(principal, METHOD, About::command(&asked));
        let cancels = asked.action_type == ActionType::CancelAction;
        let places = if cancels {
            &self.cancels
        } else {
            &self.dispatches
        };
        let place = places.enter(caller.clone());
        let result = match self.wrong_fleet(&asked) {
            Some(refusal) => Err(refusal),
            None if place.is_none() && !cancels => Err(Refusal::Unreachable {
                message: "too many calls wait for the journal".into(),
                retry_after: Duration::from_secs(1),
            }),
            None => {
                let accepted = self.engine.dispatch(caller.into(), (*asked).clone());
                timeout(patience(place.as_ref()), accepted).await.map_err(|_| {
                    Status::unavailable(
                        "the journal has not answered; ask again with the same keys to learn what came of it",
                    )
                })?
            }
        };
        Ok(match result {
            Ok(dispatched) => {
                let response = echo.dispatched(&dispatched);
                permitted.allowed("DISPATCHED", &response.message);
                response
            }
            Err(refusal) => {
                let outcome = reject_reason(&refusal);
                let response = echo.refused(refusal);
                permitted.refused(outcome, &response.message);
                response
            }
        })
    }

    fn wrong_fleet(&self, command: &Command) -> Option<Refusal> {
        let asked = command.fleet_id.as_ref()?;
        let spec = self.engine.robot(&command.robot_id)?.spec;
        (spec.fleet.as_ref() != Some(asked)).then(|| {
            Refusal::Invalid(format!(
                "fleet_id: robot {} is not in fleet {asked}",
                spec.id
            ))
        })
    }
}
