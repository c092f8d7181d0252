//! Whether what robots did and what the gateway said of it go together.

use crate::{happened, watch::is_end};
use portarium_gateway::dev::robot::{LogEntry, LogEvent};
use portarium_protocols::grpc::pb::MissionUpdate;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// What became of one acknowledged mission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Executed once, and the gateway says Succeeded.
    Done,
    /// Executed at most once, and the gateway says Failed or Cancelled and why.
    Ended,
    /// The gateway says that nothing can tell, and it was executed at most once.
    Unknown,
    /// The gateway says Succeeded, and it was not executed.
    Phantom,
    /// Executed, while the gateway says that it never was sent.
    Denied,
    /// Executed more than once.
    Doubled,
    /// Not at its end.
    Open,
    /// Ended without a word why.
    Silent,
}

/// How many missions came to which fate, and some that came to a bad one.
#[derive(Debug, Default)]
pub struct Verdict {
    /// By fate.
    pub counts: BTreeMap<Fate, usize>,
    /// For people.
    pub bad: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missions = self.counts.values().sum();
        let bad = happened(self.bad.len(), missions);
        write!(f, "{:?}, lost, doubled or lied about {bad}", self.counts)
    }
}

impl Verdict {
    /// How many came to this fate.
    pub fn count(&self, fate: Fate) -> usize {
        self.counts.get(&fate).copied().unwrap_or(0)
    }

    /// Panics where a mission was lost, doubled, or not told the truth about.
    pub fn assert_good(&self) {
        assert!(
            self.bad.is_empty(),
            "{:?}\n{}",
            self.counts,
            self.bad.join("\n")
        );
    }
}

/// Judges acknowledged missions by the robots' execution log and the gateway's last words.
pub fn fates(
    missions: &[String],
    log: &[LogEntry],
    last: &BTreeMap<String, MissionUpdate>,
) -> Verdict {
    let mut executions: HashMap<&str, usize> = HashMap::new();
    for entry in log.iter().filter(|e| e.event == LogEvent::MotionStart) {
        *executions.entry(entry.mission.as_str()).or_default() += 1;
    }
    let mut verdict = Verdict::default();
    for mission in missions {
        let executed = executions.get(mission.as_str()).copied().unwrap_or(0);
        let fate = fate(executed, last.get(mission));
        *verdict.counts.entry(fate).or_default() += 1;
        if fate > Fate::Unknown {
            verdict.bad.push(format!(
                "{mission}: {fate:?}, executed {executed} times, {:?}",
                last.get(mission)
            ));
        }
    }
    verdict
}

fn fate(executed: usize, last: Option<&MissionUpdate>) -> Fate {
    let Some(last) = last else { return Fate::Open };
    if executed > 1 {
        return Fate::Doubled;
    }
    if !is_end(&last.status) {
        return if last.outcome_unknown {
            Fate::Unknown
        } else {
            Fate::Open
        };
    }
    match (last.status.as_str(), executed) {
        ("Succeeded", 1) => Fate::Done,
        ("Succeeded", _) => Fate::Phantom,
        _ if last.detail.is_empty() => Fate::Silent,
        (_, 1) if last.detail.contains("before it was sent") => Fate::Denied,
        _ => Fate::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(status: &str, detail: &str, outcome_unknown: bool) -> MissionUpdate {
        MissionUpdate {
            status: status.into(),
            detail: detail.into(),
            outcome_unknown,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_lost_doubled_or_lied_about_is_told_from_what_went_well() {
        let of = |executed, status, detail, unknown| {
            fate(executed, Some(&update(status, detail, unknown)))
        };
        assert_eq!(of(1, "Succeeded", "", false), Fate::Done);
        assert_eq!(of(0, "Succeeded", "", false), Fate::Phantom);
        assert_eq!(of(2, "Succeeded", "", false), Fate::Doubled);
        assert_eq!(of(0, "Failed", "not sent within 60 s", false), Fate::Ended);
        assert_eq!(of(0, "Failed", "", false), Fate::Silent);
        assert_eq!(
            of(1, "Cancelled", "cancelled before it was sent: x", false),
            Fate::Denied
        );
        assert_eq!(of(0, "Dispatched", "", true), Fate::Unknown);
        assert_eq!(of(1, "Dispatched", "", false), Fate::Open);
        assert_eq!(fate(0, None), Fate::Open);
    }
}
