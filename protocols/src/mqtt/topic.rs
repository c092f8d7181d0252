//! The topics of the contract: made for what is sent, read for what is heard.

use crate::ids::{MissionId, RobotId, TenantId};

pub(crate) fn command(tenant: &TenantId, robot: &RobotId, mission: &MissionId) -> String {
    format!("portarium/{tenant}/robots/{robot}/commands/{mission}")
}

pub(crate) fn cancel(tenant: &TenantId, mission: &MissionId) -> String {
    format!("portarium/{tenant}/missions/{mission}/cancel")
}

pub(crate) fn shared_status(tenant: &TenantId, mission: &MissionId) -> String {
    format!("portarium/{tenant}/missions/{mission}/status")
}

pub(crate) fn robot_status(tenant: &TenantId, robot: &RobotId, mission: &MissionId) -> String {
    format!("portarium/{tenant}/robots/{robot}/missions/{mission}/status")
}

/// What the gateway listens to for one tenant. Three filters, however many robots it has.
pub(crate) fn filters(tenant: &TenantId, shared_status: bool) -> Vec<String> {
    let mut filters = vec![
        format!("portarium/{tenant}/robots/+/missions/+/status"),
        format!("portarium/{tenant}/robots/+/presence"),
    ];
    if shared_status {
        filters.push(format!("portarium/{tenant}/missions/+/status"));
    }
    filters
}

/// The tenant of one of [`filters`] on which statuses arrive; `None` for any other filter.
pub(crate) fn tenant_of_status_filter(filter: &str) -> Option<&str> {
    let mut levels = filter.split('/').skip(1);
    let tenant = levels.next()?;
    (filter.contains('+') && filter.ends_with("/status")).then_some(tenant)
}

/// What a topic says about the message on it. The texts are not checked to be identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard<'a> {
    /// A status on the topic that all robots of a tenant share.
    SharedStatus {
        /// The tenant's branch.
        tenant: &'a str,
        /// The mission.
        mission: &'a str,
    },
    /// A status in a robot's own branch, which the broker lets only that robot write.
    RobotStatus {
        /// The tenant's branch.
        tenant: &'a str,
        /// The robot's branch.
        robot: &'a str,
        /// The mission.
        mission: &'a str,
    },
    /// A robot's presence.
    Presence {
        /// The tenant's branch.
        tenant: &'a str,
        /// The robot's branch.
        robot: &'a str,
    },
}

/// Reads a topic that a message came on; `None` for topics that are not the contract's.
pub fn parse(topic: &[u8]) -> Option<Heard<'_>> {
    let topic = std::str::from_utf8(topic).ok()?;
    let mut levels = topic.strip_prefix("portarium/")?.split('/');
    let tenant = levels.next()?;
    let heard = match levels.next()? {
        "missions" => {
            let mission = levels.next()?;
            (levels.next()? == "status").then_some(Heard::SharedStatus { tenant, mission })?
        }
        "robots" => {
            let robot = levels.next()?;
            match levels.next()? {
                "presence" => Heard::Presence { tenant, robot },
                "missions" => {
                    let mission = levels.next()?;
                    (levels.next()? == "status").then_some(Heard::RobotStatus {
                        tenant,
                        robot,
                        mission,
                    })?
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    levels.next().is_none().then_some(heard)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_published_goes_to_the_topics_of_the_contract() {
        let (t, r, m) = (
            "t1".parse().unwrap(),
            "r1".parse().unwrap(),
            "m1".parse().unwrap(),
        );
        assert_eq!(command(&t, &r, &m), "portarium/t1/robots/r1/commands/m1");
        assert_eq!(cancel(&t, &m), "portarium/t1/missions/m1/cancel");
    }

    #[test]
    fn statuses_and_presence_are_told_apart_by_topic() {
        let (t, r, m) = (
            "t1".parse().unwrap(),
            "r1".parse().unwrap(),
            "m1".parse().unwrap(),
        );
        assert_eq!(
            parse(shared_status(&t, &m).as_bytes()),
            Some(Heard::SharedStatus {
                tenant: "t1",
                mission: "m1"
            })
        );
        assert_eq!(
            parse(robot_status(&t, &r, &m).as_bytes()),
            Some(Heard::RobotStatus {
                tenant: "t1",
                robot: "r1",
                mission: "m1"
            })
        );
        assert_eq!(
            parse(b"portarium/t1/robots/r1/presence"),
            Some(Heard::Presence {
                tenant: "t1",
                robot: "r1"
            })
        );
    }

    #[test]
    fn topics_that_are_longer_shorter_or_other_are_not_the_contracts() {
        for topic in [
            "",
            "portarium",
            "portarium/t",
            "portarium/t/missions/m/status/x",
            "portarium/t/missions/m/cancel",
            "portarium/t/robots/r/commands/m",
            "portarium/t/robots/r/presence/x",
            "other/t/missions/m/status",
        ] {
            assert_eq!(parse(topic.as_bytes()), None, "{topic}");
        }
        assert_eq!(parse(b"portarium/\xff/missions/m/status"), None);
    }

    #[test]
    fn only_wildcard_status_filters_name_a_tenant_whose_statuses_are_missed() {
        let t: TenantId = "t1".parse().unwrap();
        let named: Vec<_> = filters(&t, true)
            .iter()
            .map(|f| tenant_of_status_filter(f).is_some())
            .collect();
        assert_eq!(named, [true, false, true]);
        assert_eq!(
            tenant_of_status_filter("portarium/t1/missions/m/status"),
            None
        );
    }
}
