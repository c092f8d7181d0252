//! Robots: list, show, hold, release.

use super::{
    JOURNAL_PATIENCE, Service,
    gate::About,
    missions::{journal, reason, within},
};
use crate::{
    engine::{OperatorError, RobotView},
    policy::{Method, Principal, RobotRef},
};
use portarium_protocols::{grpc::pb, ids::RobotId};
use std::future::Future;
use tonic::{Request, Status};

impl Service {
    pub(super) fn list(
        &self,
        request: &Request<pb::ListRobotsRequest>,
    ) -> Result<pb::ListRobotsResponse, Status> {
        let method = Method::ListRobots;
        let principal = self.gate.enter(request, method)?;
        let wanted = request.get_ref().fleet_id.as_str();
        let robots = self
            .engine
            .robots()
            .into_iter()
            .filter(|view| {
                wanted.is_empty()
                    || view
                        .spec
                        .fleet
                        .as_ref()
                        .is_some_and(|f| f.as_str() == wanted)
            })
            .filter(|view| self.gate.may_see(&principal, method, robot_ref(view)))
            .map(message)
            .collect();
        self.gate
            .shown(&principal, method, About::default(), "answered");
        Ok(pb::ListRobotsResponse { robots })
    }

    pub(super) fn show(&self, request: &Request<pb::GetRobotRequest>) -> Result<pb::Robot, Status> {
        let method = Method::GetRobot;
        let principal = self.gate.enter(request, method)?;
        let view = self.known(&principal, method, &request.get_ref().robot_id)?;
        let about = About::robot(view.spec.id.as_str());
        if !self.gate.may_see(&principal, method, robot_ref(&view)) {
            let reason = format!("no policy rule lets {principal} see robot {}", view.spec.id);
            self.gate
                .refused(&principal, method, about, "PERMISSION_DENIED", &reason);
            return Err(Status::permission_denied(reason));
        }
        self.gate.shown(&principal, method, about, "answered");
        Ok(message(view))
    }

    pub(super) async fn hold(
        &self,
        request: Request<pb::HoldRobotRequest>,
    ) -> Result<pb::Robot, Status> {
        let method = Method::HoldRobot;
        let principal = self.gate.enter(&request, method)?;
        let request = request.into_inner();
        let why = reason(&request.reason);
        self.set(&principal, method, &request.robot_id, &why, |id| {
            let why = why.clone();
            async move { self.engine.hold(&id, &why).await }
        })
        .await
    }

    pub(super) async fn release(
        &self,
        request: Request<pb::ReleaseRobotRequest>,
    ) -> Result<pb::Robot, Status> {
        let method = Method::ReleaseRobot;
        let principal = self.gate.enter(&request, method)?;
        let request = request.into_inner();
        let why = reason(&request.reason);
        self.set(
            &principal,
            method,
            &request.robot_id,
            &why,
            |id| async move { self.engine.release(&id).await },
        )
        .await
    }

    async fn set<F>(
        &self,
        principal: &Principal,
        method: Method,
        robot_id: &str,
        why: &str,
        set: impl FnOnce(RobotId) -> F,
    ) -> Result<pb::Robot, Status>
    where
        F: Future<Output = Result<(), OperatorError>>,
    {
        let view = self.known(principal, method, robot_id)?;
        let id = view.spec.id.clone();
        let about = About::robot(id.as_str());
        self.gate
            .command(principal, method, robot_ref(&view), None, about)?;
        let _place = self.place(&self.others, principal, method, about)?;
        let permitted = self.gate.permitted(principal, method, about);
        match within(JOURNAL_PATIENCE, set(id.clone())).await? {
            Ok(()) => {
                permitted.allowed("accepted", why);
                self.view(id.as_str()).map(message)
            }
            Err(OperatorError::Journal(error)) => Err(journal(&error)),
            Err(error) => {
                let reason = error.to_string();
                permitted.refused("InvalidState", &reason);
                Err(Status::failed_precondition(reason))
            }
        }
    }

    /// The robot as it stands; that there is none is written down.
    fn known(
        &self,
        principal: &Principal,
        method: Method,
        robot_id: &str,
    ) -> Result<RobotView, Status> {
        self.view(robot_id).inspect_err(|status| {
            let about = About::robot(robot_id);
            self.gate
                .refused(principal, method, about, "not known", status.message());
        })
    }

    fn view(&self, robot_id: &str) -> Result<RobotView, Status> {
        let id = robot_id.parse::<RobotId>().ok();
        id.and_then(|id| self.engine.robot(&id)).ok_or_else(|| {
            Status::not_found(format!("robot {} is not configured", reason(robot_id)))
        })
    }
}

fn robot_ref(view: &RobotView) -> RobotRef<'_> {
    RobotRef {
        robot: &view.spec.id,
        fleet: view.spec.fleet.as_ref(),
    }
}

fn message(view: RobotView) -> pb::Robot {
    let spec = &view.spec;
    pb::Robot {
        robot_id: spec.id.to_string(),
        fleet_id: spec
            .fleet
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        adapter: spec.adapter_name.into(),
        reachable: view.link.is_ok(),
        reconciled: view.reconciled,
        latched: view.latched,
        hold_reason: view.hold.unwrap_or_default(),
        active_mission_id: view.active.map(|id| id.to_string()).unwrap_or_default(),
        queued_missions: u32::try_from(view.queued).unwrap_or(u32::MAX),
        unknown_mission_ids: view.unknown.iter().map(ToString::to_string).collect(),
        stop_pending: view.stop_pending,
        actions: spec.actions.iter().cloned().collect(),
        idempotent: spec.idempotent,
        reachability_detail: view.link.err().unwrap_or_default(),
    }
}
