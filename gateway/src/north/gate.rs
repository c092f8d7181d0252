//! Who calls, what they may, and the line in the audit that says so.

use super::{
    tokens::{Call, Tokens},
    unread::{self, Arrived},
};
use crate::{
    audit::{Audit, Decision, Entry},
    config::Development,
    policy::{Action, Method, Policy, Principal, RobotRef},
};
use arc_swap::ArcSwap;
use portarium_identity::Peer;
use portarium_protocols::{grpc::Crowded, mission::Command};
use std::{future, sync::Arc, time::SystemTime};
use tonic::{Extensions, Request, Status};

/// Decides on calls and writes the decisions down.
#[derive(Clone)]
pub(super) struct Gate {
    policy: Arc<ArcSwap<Policy>>,
    audit: Audit,
    development: Option<Development>,
    tokens: Option<Arc<Tokens>>,
}

/// What a decision is about, for the audit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct About<'a> {
    pub(super) mission_id: &'a str,
    pub(super) robot_id: &'a str,
    pub(super) action_type: &'a str,
    pub(super) action_name: &'a str,
}

impl<'a> About<'a> {
    pub(super) fn command(command: &'a Command) -> Self {
        Self {
            mission_id: command.mission_id.as_str(),
            robot_id: command.robot_id.as_str(),
            action_type: command.action_type.as_str(),
            action_name: &command.action_name,
        }
    }

    pub(super) fn robot(robot_id: &'a str) -> Self {
        Self {
            robot_id,
            ..Self::default()
        }
    }

    pub(super) fn mission(mission_id: &'a str) -> Self {
        Self {
            mission_id,
            ..Self::default()
        }
    }
}

impl Gate {
    pub(super) fn new(
        policy: Arc<ArcSwap<Policy>>,
        audit: Audit,
        development: Option<Development>,
        tokens: Option<Arc<Tokens>>,
    ) -> Self {
        Self {
            policy,
            audit,
            development,
            tokens,
        }
    }

    /// Who calls, if they may call this method at all.
    pub(super) fn enter<T>(
        &self,
        request: &Request<T>,
        method: Method,
    ) -> Result<Principal, Status> {
        self.enter_as(request, Call::Other(method))
    }

    /// As [`Gate::enter`], for a method whose calls differ in what they need.
    pub(super) fn enter_as<T>(
        &self,
        request: &Request<T>,
        call: Call,
    ) -> Result<Principal, Status> {
        let method = call.method();
        let principal = self.principal(request.extensions());
        let principal = principal.ok_or_else(unauthenticated)?;
        if let Some(arrived) = request.extensions().get::<Arrived>() {
            arrived.set();
        }
        let crowded = request.extensions().get::<Crowded>();
        if let Some(crowded) = crowded.filter(|_| !matches!(call, Call::Stop)) {
            let (status, about) = (crowded.status(), About::default());
            let outcome = unread::outcome(status.code());
            self.refused(&principal, method, about, outcome, status.message());
            return Err(status);
        }
        if self.policy.load().may_call(&principal, method) {
            let Some(tokens) = &self.tokens else {
                return Ok(principal);
            };
            let checked = tokens.check(call, &principal, request.metadata());
            let token = checked.inspect_err(|status| self.no_token(&principal, method, status))?;
            return Ok(principal.showing(token));
        }
        let reason = format!("no policy rule lets {principal} call {}", method.as_str());
        self.refused(
            &principal,
            method,
            About::default(),
            "PERMISSION_DENIED",
            &reason,
        );
        Err(Status::permission_denied(reason))
    }

    fn no_token(&self, principal: &Principal, method: Method, status: &Status) {
        let (outcome, about) = (unread::outcome(status.code()), About::default());
        self.refused(principal, method, about, outcome, status.message());
    }

    /// When the token that this call was let in with ends; never where it needed none.
    pub(super) async fn token_ends(&self, principal: &Principal) {
        match (&self.tokens, principal.token()) {
            (Some(tokens), Some(token)) => tokens.ends(token).await,
            _ => future::pending().await,
        }
    }

    /// Whether it has.
    pub(super) fn token_is_over(&self, principal: &Principal) -> bool {
        let tokens = self.tokens.as_ref().zip(principal.token());
        tokens.is_some_and(|(tokens, token)| tokens.is_over(token))
    }

    /// Who calls.
    pub(super) fn principal(&self, extensions: &Extensions) -> Option<Principal> {
        match (extensions.get::<Arc<Peer>>(), self.development) {
            (Some(peer), _) => Some(Principal::Spiffe(peer.clone(), None)),
            (None, Some(proof)) => Some(Principal::Development(proof)),
            (None, None) => None,
        }
    }

    /// Reflection is open to everyone who got a connection; that it was asked is written down.
    pub(super) fn reflected(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let principal = self.principal(request.extensions());
        let principal = principal.ok_or_else(unauthenticated)?;
        let (method, about) = ("ServerReflectionInfo", About::default());
        self.record(Decision::Allowed, &principal, method, about, "answered", "");
        Ok(request)
    }

    /// Writes down a call that did not come to its method.
    pub(super) fn unread(&self, caller: Option<&Principal>, method: &str, status: &Status) {
        let entry = Entry {
            caller: caller.map(|caller| caller as _),
            serial: caller.and_then(Principal::serial).unwrap_or_default(),
            outcome: unread::outcome(status.code()),
            reason: status.message(),
            ..Entry::new(Decision::Refused, method)
        };
        self.audit.record(SystemTime::now(), &entry);
    }

    /// Whether they may do this to this robot; the reason if not.
    pub(super) fn may_command(
        &self,
        principal: &Principal,
        method: Method,
        robot: RobotRef<'_>,
        command: Option<&Command>,
    ) -> Result<(), String> {
        let action = command.map(|c| Action {
            kind: c.action_type,
            name: &c.action_name,
        });
        let policy = self.policy.load();
        policy
            .may_command(principal, method, robot, action)
            .map_err(crate::policy::Refusal::into_reason)
    }

    /// As [`Gate::may_command`], for calls whose refusal is a gRPC status; audited.
    pub(super) fn command(
        &self,
        principal: &Principal,
        method: Method,
        robot: RobotRef<'_>,
        command: Option<&Command>,
        about: About<'_>,
    ) -> Result<(), Status> {
        self.may_command(principal, method, robot, command)
            .map_err(|reason| {
                self.refused(principal, method, about, "PERMISSION_DENIED", &reason);
                Status::permission_denied(reason)
            })
    }

    pub(super) fn may_see(
        &self,
        principal: &Principal,
        method: Method,
        robot: RobotRef<'_>,
    ) -> bool {
        self.policy.load().may_see(principal, method, robot)
    }

    pub(super) fn refused(
        &self,
        principal: &Principal,
        method: Method,
        about: About<'_>,
        outcome: &str,
        reason: &str,
    ) {
        let method = method.as_str();
        self.record(Decision::Refused, principal, method, about, outcome, reason);
    }

    /// A call that only looks, and may.
    pub(super) fn shown(
        &self,
        principal: &Principal,
        method: Method,
        about: About<'_>,
        outcome: &str,
    ) {
        let method = method.as_str();
        self.record(Decision::Allowed, principal, method, about, outcome, "");
    }

    /// A call that may go on; what came of it is to be told to the answer.
    pub(super) fn permitted<'a>(
        &'a self,
        principal: &'a Principal,
        method: Method,
        about: About<'a>,
    ) -> Permitted<'a> {
        Permitted {
            gate: self,
            principal,
            method,
            about,
            told: false,
        }
    }

    fn record(
        &self,
        decision: Decision,
        principal: &Principal,
        method: &str,
        about: About<'_>,
        outcome: &str,
        reason: &str,
    ) {
        let token = principal.token();
        self.audit.record(
            SystemTime::now(),
            &Entry {
                caller: Some(principal),
                serial: principal.serial().unwrap_or_default(),
                token_sub: token.and_then(|t| t.subject.as_deref()).unwrap_or_default(),
                token_jti: token.and_then(|t| t.id.as_deref()).unwrap_or_default(),
                mission_id: about.mission_id,
                robot_id: about.robot_id,
                action_type: about.action_type,
                action_name: about.action_name,
                outcome,
                reason,
                ..Entry::new(decision, method)
            },
        );
    }
}

fn unauthenticated() -> Status {
    Status::unauthenticated("no client certificate")
}

/// A call that was let through and is under way. Its future is dropped when its caller resets the
/// stream, while what was asked goes on: that is written down then, so that nobody can act without
/// a line by not waiting for the answer.
pub(super) struct Permitted<'a> {
    gate: &'a Gate,
    principal: &'a Principal,
    method: Method,
    about: About<'a>,
    told: bool,
}

impl Permitted<'_> {
    pub(super) fn allowed(self, outcome: &str, reason: &str) {
        self.tell(Decision::Allowed, outcome, reason);
    }

    pub(super) fn refused(self, outcome: &str, reason: &str) {
        self.tell(Decision::Refused, outcome, reason);
    }

    fn tell(mut self, decision: Decision, outcome: &str, reason: &str) {
        self.told = true;
        self.record(decision, outcome, reason);
    }

    fn record(&self, decision: Decision, outcome: &str, reason: &str) {
        let Self { gate, about, .. } = self;
        gate.record(
            decision,
            self.principal,
            self.method.as_str(),
            *about,
            outcome,
            reason,
        );
    }
}

impl Drop for Permitted<'_> {
    fn drop(&mut self) {
        if !self.told {
            let reason = "the call ended before its outcome was known: its caller went away, or the journal did not answer";
            self.record(Decision::Allowed, "not known", reason);
        }
    }
}
