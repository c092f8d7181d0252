//! Who may command which robots, fleets and actions.
//!
//! Rules only allow; what no rule allows is refused. The same rules work on two levels: whoever
//! no rule names does not get through the TLS handshake, and each request is checked on its own.

mod principal;
mod rule;
#[cfg(test)]
mod tests;

pub use principal::{Caller, Principal};
pub use rule::{Action, Actions, Method, MethodSet, RobotRef, Rule, Selection};

use portarium_identity::{PeerPolicy, SpiffeId};
use std::{fmt::Write as _, sync::Arc};
use thiserror::Error;

/// All rules. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Arc<[Rule]>,
}

/// Why a request is refused, for people: for the response's `policy_reason` and the audit.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct Refusal {
    reason: String,
}

impl Refusal {
    /// The reason, bounded in length and on one line.
    pub fn into_reason(self) -> String {
        self.reason
    }
}

impl Policy {
    /// A policy of these rules; without any it allows nothing but in development.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            rules: rules.into(),
        }
    }

    /// The number of rules.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// Who may connect at all: everyone that some rule names.
    pub fn peer_policy(&self) -> PeerPolicy {
        PeerPolicy::new(
            self.rules
                .iter()
                .flat_map(|rule| rule.peers.iter().cloned()),
        )
    }

    /// Whether some rule names this ID.
    pub fn admits(&self, id: &SpiffeId) -> bool {
        self.rules.iter().any(|rule| rule.names(id))
    }

    /// Whether some rule allows the method at all, whatever the robot.
    pub fn may_call(&self, who: &Principal, method: Method) -> bool {
        self.any(who, |rule| rule.methods.contains(method))
    }

    /// Whether one single rule allows all of it. `action` is what the mission asks of the robot;
    /// methods that are about the robot alone ([`Method::carries_action`]) ignore it.
    pub fn may_command(
        &self,
        who: &Principal,
        method: Method,
        robot: RobotRef<'_>,
        action: Option<Action<'_>>,
    ) -> Result<(), Refusal> {
        let about = action.filter(|_| method.carries_action());
        let allows = |rule: &Rule| {
            rule.methods.contains(method)
                && rule.selects(robot)
                && match about {
                    Some(action) => rule.actions.contain(action),
                    None => !method.carries_action(),
                }
        };
        if self.any(who, allows) {
            Ok(())
        } else {
            Err(self.refusal(who, method, robot, about))
        }
    }

    /// Whether missions of this robot, or the robot itself, may be shown by a reading method:
    /// status, watch and lists. Actions do not count.
    pub fn may_see(&self, who: &Principal, method: Method, robot: RobotRef<'_>) -> bool {
        self.any(who, |rule| {
            rule.methods.contains(method) && rule.selects(robot)
        })
    }

    /// The cheap tests come first; nothing here allocates.
    fn any(&self, who: &Principal, allows: impl Fn(&Rule) -> bool) -> bool {
        match who {
            Principal::Spiffe(peer, _) => {
                let names = |rule: &Rule| rule.names(&peer.spiffe_id);
                self.rules.iter().any(|rule| allows(rule) && names(rule))
            }
            Principal::Development(_) => true,
        }
    }

    fn refusal(
        &self,
        who: &Principal,
        method: Method,
        robot: RobotRef<'_>,
        action: Option<Action<'_>>,
    ) -> Refusal {
        let mut reason = format!("no rule lets {who} {}", method.asks(robot, action));
        let admitting: Vec<String> = match who {
            Principal::Spiffe(peer, _) => {
                let rules = self.rules.iter().zip(1..);
                rules
                    .filter(|(rule, _)| rule.names(&peer.spiffe_id))
                    .map(|(_, n)| n.to_string())
                    .collect()
            }
            Principal::Development(_) => Vec::new(),
        };
        // Writing to a text cannot fail.
        let _ = match admitting.as_slice() {
            [] => write!(reason, " (no policy rule admits this caller)"),
            [one] => write!(reason, " (policy rule {one} admits this caller)"),
            all => write!(
                reason,
                " (policy rules {} admit this caller)",
                all.join(", ")
            ),
        };
        Refusal { reason }
    }
}
