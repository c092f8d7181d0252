//! How the manager stands with the Workload API.
use crate::clock::Doubt;
use std::{fmt, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// How the manager stands with the Workload API, told apart for people, metrics and readiness.
///
/// `Display` is a sentence for people that says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityState {
    /// Not connected yet.
    Starting,
    /// The socket file is not there.
    NoSocket,
    /// The socket is there but nobody listens, or the call fails.
    Refused {
        /// What the transport said.
        reason: String,
    },
    /// The agent knows no entry for this workload (yet).
    PermissionDenied,
    /// SVIDs arrive, but none with the wanted hint.
    NoSuchHint {
        /// The hint wanted, if any.
        wanted: Option<String>,
        /// The hints offered; an SVID without a hint counts as an empty one.
        offered: Vec<String>,
    },
    /// A current SVID is there.
    Ready,
    /// The last good SVID has expired.
    Expired,
    /// The wall clock cannot be believed: nobody can be verified.
    ClockInDoubt(Doubt),
}

impl IdentityState {
    /// The state's name for metrics and JSON, `no_socket` and so on.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::NoSocket => "no_socket",
            Self::Refused { .. } => "refused",
            Self::PermissionDenied => "permission_denied",
            Self::NoSuchHint { .. } => "no_such_hint",
            Self::Ready => "ready",
            Self::Expired => "expired",
            Self::ClockInDoubt(_) => "clock_in_doubt",
        }
    }
}

impl fmt::Display for IdentityState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("waiting for the first answer of the Workload API"),
            Self::NoSocket => f.write_str(
                "the Workload API socket does not exist; start the SPIRE agent, mount its socket, \
                 or correct the endpoint socket",
            ),
            Self::Refused { reason } => write!(
                f,
                "the Workload API cannot be used ({reason}); check that the SPIRE agent runs and \
                 that this user may open its socket"
            ),
            Self::PermissionDenied => f.write_str(
                "the SPIRE agent has no entry for this workload (normal for some seconds after \
                 the start); register one if this lasts",
            ),
            Self::NoSuchHint { wanted, offered } => no_such_hint(f, wanted.as_deref(), offered),
            Self::Ready => f.write_str("a current SVID is there"),
            Self::Expired => f.write_str(
                "the SVID has expired and no new one came; check the SPIRE agent, its server, and \
                 the clocks of both",
            ),
            Self::ClockInDoubt(doubt) => write!(
                f,
                "the wall clock is in doubt ({doubt}): no new connection is made or taken until it \
                 is set right, or a new SVID goes with it"
            ),
        }
    }
}

/// The SVID ends soon and no new one has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewalOverdue {
    /// When it ends.
    pub not_after: SystemTime,
    /// What is wrong, where that shows; else the Workload API answers and brings none.
    pub problem: Option<IdentityState>,
}

impl fmt::Display for RenewalOverdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = rfc3339(self.not_after);
        write!(f, "the SVID ends at {end} and no new one has come: ")?;
        match &self.problem {
            Some(problem) => problem.fmt(f),
            None => f.write_str(
                "the SPIRE agent answers and brings none; check its server, and its log",
            ),
        }
    }
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_else(|_| "a time beyond the calendar".into())
}

fn no_such_hint(
    f: &mut fmt::Formatter<'_>,
    wanted: Option<&str>,
    offered: &[String],
) -> fmt::Result {
    let of_wanted = wanted.map_or(0, |w| offered.iter().filter(|o| *o == w).count());
    match wanted {
        None if offered.is_empty() => f.write_str("the Workload API sent no SVID")?,
        None => write!(
            f,
            "the Workload API offers {} SVIDs and no hint is configured; configure one of the \
             hints",
            offered.len()
        )?,
        Some(wanted) if of_wanted > 1 => write!(
            f,
            "the Workload API offers {of_wanted} SVIDs with the hint {wanted:?}; give each \
             registration entry a hint of its own. Hints"
        )?,
        Some(wanted) => write!(
            f,
            "the Workload API offers no SVID with the hint {wanted:?}; set the hint on the \
             registration entry or configure one of the hints"
        )?,
    }
    write!(f, " offered: {offered:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_reads_as_a_sentence_and_says_what_is_offered() {
        let hint = |wanted: Option<&str>, offered: &[&str]| {
            IdentityState::NoSuchHint {
                wanted: wanted.map(str::to_owned),
                offered: offered.iter().map(|o| (*o).to_owned()).collect(),
            }
            .to_string()
        };
        assert!(hint(Some("gw"), &["a", "b"]).contains(r#"no SVID with the hint "gw""#));
        assert!(hint(Some("gw"), &["a", "b"]).ends_with(r#"offered: ["a", "b"]"#));
        assert!(hint(Some("a"), &["a", "a"]).contains("2 SVIDs with the hint"));
        assert!(hint(None, &["a", ""]).contains("no hint is configured"));
        assert!(hint(None, &[]).contains("sent no SVID"));
        assert!(
            IdentityState::NoSocket
                .to_string()
                .contains("start the SPIRE agent")
        );
        assert!(
            IdentityState::PermissionDenied
                .to_string()
                .contains("register")
        );
        let refused = IdentityState::Refused {
            reason: "nobody listens".into(),
        };
        assert!(refused.to_string().contains("nobody listens"));
    }
}
