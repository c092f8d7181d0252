//! The stream of mission updates.

use super::{
    Service,
    gate::{About, Gate},
    missions::{journal, unknown},
    places::Place,
};
use crate::{
    engine::Engine,
    journal::Update,
    policy::{Method, Principal, RobotRef},
};
use futures::{Stream, StreamExt as _, stream};
use portarium_protocols::{grpc::pb, ids::FleetId};
use std::{collections::VecDeque, pin::Pin};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataValue};

/// Rows read at a time; nothing is read before the caller took what was read last, so a watcher
/// that does not read costs this much and no more.
const PAGE: usize = 64;

/// The response header that says where the watch begins: a caller that is cut off before its
/// first update resumes from there.
pub const POSITION: &str = "portarium-position";

pub(super) type Updates = Pin<Box<dyn Stream<Item = Result<pb::MissionUpdate, Status>> + Send>>;

/// One watcher.
struct Watcher {
    engine: Engine,
    gate: Gate,
    principal: Principal,
    wanted: pb::WatchMissionsRequest,
    after: u64,
    mission: Option<Wanted>,
    head: watch::Receiver<u64>,
    page: VecDeque<Update>,
    closing: CancellationToken,
    over: bool,
    _place: Place,
}

/// The one mission that is watched.
#[derive(Clone, Copy)]
struct Wanted {
    number: u64,
    /// Where its end is, if it had ended when the watch began.
    ended_at: Option<u64>,
}

impl Service {
    pub(super) async fn watch(
        &self,
        request: Request<pb::WatchMissionsRequest>,
    ) -> Result<Response<Updates>, Status> {
        let method = Method::WatchMissions;
        let principal = self.gate.enter(&request, method)?;
        let wanted = request.into_inner();
        let about = About {
            mission_id: &wanted.mission_id,
            robot_id: &wanted.robot_id,
            ..About::default()
        };
        let place = self.watches.enter(principal.caller()).ok_or_else(|| {
            let reason = "as many watches are open as the gateway takes, of all callers or of this one; try again later";
            self.gate
                .refused(&principal, method, about, "RESOURCE_EXHAUSTED", reason);
            Status::resource_exhausted(reason)
        })?;
        let head = self.engine.journal().head();
        let newest = *head.borrow();
        if !wanted.from_now && wanted.after_position > newest {
            let reason = format!(
                "after_position {} is ahead of this gateway's journal ({newest}); is it another gateway's, or was the journal replaced? Begin again from 0",
                wanted.after_position
            );
            self.gate
                .refused(&principal, method, about, "OUT_OF_RANGE", &reason);
            return Err(Status::out_of_range(reason));
        }
        let mut after = if wanted.from_now {
            newest
        } else {
            wanted.after_position
        };
        let mission = self.wanted_mission(&principal, &wanted).await?;
        self.gate.shown(&principal, method, about, "opened");
        if let Some(Wanted { number, .. }) = mission {
            // The number is the position of the mission's first state: what is before it need
            // not be searched.
            after = after.max(number.saturating_sub(1));
        }
        let watcher = Watcher {
            engine: self.engine.clone(),
            gate: self.gate.clone(),
            principal,
            after,
            wanted,
            mission,
            head,
            page: VecDeque::new(),
            closing: self.closing.clone(),
            over: false,
            _place: place,
        };
        let mut response = Response::new(stream::unfold(watcher, Watcher::next).boxed() as Updates);
        response
            .metadata_mut()
            .insert(POSITION, MetadataValue::from(after));
        Ok(response)
    }

    /// Who watches a mission that is not known, or that he may not see, would wait in vain.
    async fn wanted_mission(
        &self,
        principal: &Principal,
        wanted: &pb::WatchMissionsRequest,
    ) -> Result<Option<Wanted>, Status> {
        if wanted.mission_id.is_empty() {
            return Ok(None);
        }
        let method = Method::WatchMissions;
        let (id, _) = self.see(principal, method, &wanted.mission_id).await?;
        let number = self.engine.number(&id);
        Ok(Some(Wanted {
            number: number.ok_or_else(|| Status::not_found(unknown(&wanted.mission_id)))?,
            ended_at: self.engine.ended_at(&id),
        }))
    }
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<pb::MissionUpdate, Status>, Self)> {
        loop {
            if self.over {
                return None;
            }
            if self.gate.token_is_over(&self.principal) {
                self.over = true;
                return Some((Err(self.no_longer()), self));
            }
            while let Some(update) = self.page.pop_front() {
                self.after = update.position;
                let Some(message) = self.message(update) else {
                    continue;
                };
                return Some((Ok(message), self));
            }
            let newest = *self.head.borrow_and_update();
            let ended_at = self.mission.and_then(|mission| mission.ended_at);
            if ended_at.is_some_and(|end| self.after >= end) {
                // The caller has seen its end: the rest of the journal need not be searched.
                return None;
            }
            if self.after < newest || ended_at.is_some() {
                if let Err(status) = self.read(newest).await {
                    self.over = true;
                    return Some((Err(status), self));
                }
                continue;
            }
            tokio::select! {
                () = self.closing.cancelled() => {
                    self.over = true;
                    let status = Status::unavailable("the gateway is shutting down; resume from the last position");
                    return Some((Err(status), self));
                }
                () = self.gate.token_ends(&self.principal) => {}
                changed = self.head.changed() => if changed.is_err() { return None },
            }
        }
    }

    /// What was let in by its token goes no further than that.
    fn no_longer(&self) -> Status {
        let reason =
            "access token: it has expired (exp); mint a new one and resume from the last position";
        let about = About {
            mission_id: &self.wanted.mission_id,
            robot_id: &self.wanted.robot_id,
            ..About::default()
        };
        let (method, outcome) = (Method::WatchMissions, "UNAUTHENTICATED");
        self.gate
            .refused(&self.principal, method, about, outcome, reason);
        Status::unauthenticated(reason)
    }

    async fn read(&mut self, newest: u64) -> Result<(), Status> {
        let reader = self.engine.journal().reader();
        let page = reader
            .updates(self.after, self.mission.map(|m| m.number), PAGE)
            .await
            .map_err(|e| journal(&e))?;
        match page.last() {
            // It is no longer kept.
            None if self.mission.is_some_and(|m| m.ended_at.is_some()) => self.over = true,
            None => self.after = self.after.max(newest),
            Some(_) => self.page = page.into(),
        }
        Ok(())
    }

    fn message(&mut self, update: Update) -> Option<pb::MissionUpdate> {
        let Update {
            position,
            command,
            state,
        } = update;
        let fleet: Option<FleetId> = self
            .engine
            .robot(&command.robot_id)
            .and_then(|view| view.spec.fleet.clone());
        let wanted = |filter: &str, value: &str| filter.is_empty() || filter == value;
        let fleet_id = fleet.as_ref().map(ToString::to_string).unwrap_or_default();
        let matches = wanted(&self.wanted.mission_id, command.mission_id.as_str())
            && wanted(&self.wanted.robot_id, command.robot_id.as_str())
            && wanted(&self.wanted.fleet_id, &fleet_id);
        let robot = RobotRef {
            robot: &command.robot_id,
            fleet: fleet.as_ref(),
        };
        if !matches
            || !self
                .gate
                .may_see(&self.principal, Method::WatchMissions, robot)
        {
            return None;
        }
        // The stream of a single mission ends with it.
        self.over = !self.wanted.mission_id.is_empty() && state.status.is_terminal();
        Some(pb::MissionUpdate {
            position,
            mission_id: command.mission_id.to_string(),
            robot_id: command.robot_id.to_string(),
            fleet_id,
            status: state.status.as_str().into(),
            action_execution_id: state.action_execution_id.to_string(),
            observed_at: state.observed_at.to_string(),
            outcome_unknown: state.outcome_unknown,
            detail: state.detail.to_string(),
            cancel_requested: state.cancel_requested,
            awaiting_confirmation: state.awaiting_confirmation,
            action_type: command.action_type.as_str().into(),
            action_name: command.action_name.clone(),
            correlation_id: command.correlation_id.clone(),
        })
    }
}
