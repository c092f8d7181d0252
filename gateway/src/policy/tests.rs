#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::Config;
use portarium_protocols::{
    ids::{FleetId, RobotId},
    mission::ActionType,
};
use std::path::Path;

const RULES: &str = r#"
[[policy]]
peers = ["spiffe://a.b/ns/*/sa/planner/*"]
methods = ["DispatchMission", "CancelMission", "GetMissionStatus"]
robots = ["amr-7", "amr-8"]
fleets = ["*"]
actions = ["navigate_to", "robot:stop"]

[[policy]]
peers = ["spiffe://a.b/ns/p/sa/operator/1"]
methods = ["HoldRobot", "ListRobots"]
robots = ["*"]
fleets = ["amr"]

[[policy]]
peers = ["spiffe://a.b/ns/p/sa/planner/*", "spiffe://a.b/ns/p/sa/operator/*"]
methods = ["DispatchMission", "WatchMissions"]
robots = ["*"]
fleets = ["cell"]
actions = ["*"]
"#;

fn config(rules: &str) -> Config {
    let frame = r#"
[identity]
endpoint_socket = "unix:///run/agent.sock"
[journal]
path = "j"
[audit]
path = "a"
"#;
    Config::from_text(Path::new("gateway.toml"), &format!("{rules}{frame}"), &[]).unwrap()
}

fn policy() -> Policy {
    config(RULES).reloadable.policy
}

fn who(id: &str) -> Principal {
    Principal::workload(id)
}

fn planner() -> Principal {
    who("spiffe://a.b/ns/p/sa/planner/pod-1")
}

/// What the policy says to a command for an action of `robot:execute_action`, as text.
fn says(
    policy: &Policy,
    who: &Principal,
    method: Method,
    (robot, fleet): (&str, Option<&str>),
    (kind, name): (ActionType, &str),
) -> String {
    let robot: RobotId = robot.parse().unwrap();
    let fleet: Option<FleetId> = fleet.map(|fleet| fleet.parse().unwrap());
    let robot = RobotRef {
        robot: &robot,
        fleet: fleet.as_ref(),
    };
    match policy.may_command(who, method, robot, Some(Action { kind, name })) {
        Ok(()) => "yes".to_owned(),
        Err(refusal) => refusal.into_reason(),
    }
}

#[test]
fn a_rule_allows_only_what_all_of_its_parts_allow() {
    use {ActionType as T, Method as M};
    let policy = policy();
    let navigate = (T::ExecuteAction, "navigate_to");
    let amr = ("amr-7", Some("amr"));
    for (method, robot, action, line) in [
        (M::DispatchMission, amr, navigate, "yes"),
        (M::DispatchMission, ("amr-8", None), navigate, "yes"),
        (M::CancelMission, amr, navigate, "yes"),
        (M::DispatchMission, amr, (T::Stop, "whatever"), "yes"),
        (
            M::DispatchMission,
            ("arm-1", Some("cell")),
            (T::EstopRequest, ""),
            "yes",
        ),
        (
            M::DispatchMission,
            amr,
            (T::ExecuteAction, "dock"),
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 send dock to robot amr-7 (policy rules 1, 3 admit this caller)",
        ),
        (
            M::DispatchMission,
            amr,
            (T::ExecuteAction, "robot:stop"),
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 send robot:stop to robot amr-7 (policy rules 1, 3 admit this caller)",
        ),
        (
            M::DispatchMission,
            amr,
            (T::EstopRequest, "navigate_to"),
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 send robot:estop_request to robot amr-7 (policy rules 1, 3 admit this caller)",
        ),
        (
            M::DispatchMission,
            ("amr-9", Some("amr")),
            navigate,
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 send navigate_to to robot amr-9 (policy rules 1, 3 admit this caller)",
        ),
        (
            M::CancelMission,
            ("arm-1", Some("cell")),
            navigate,
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 cancel navigate_to of robot arm-1 (policy rules 1, 3 admit this caller)",
        ),
        (
            M::ConfirmMission,
            amr,
            navigate,
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 confirm navigate_to of robot amr-7 (policy rules 1, 3 admit this caller)",
        ),
        (
            M::ResolveMission,
            amr,
            navigate,
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 resolve navigate_to of robot amr-7 (policy rules 1, 3 admit this caller)",
        ),
        (
            M::HoldRobot,
            amr,
            navigate,
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 hold robot amr-7 (policy rules 1, 3 admit this caller)",
        ),
        (
            M::ReleaseRobot,
            amr,
            navigate,
            "no rule lets spiffe://a.b/ns/p/sa/planner/pod-1 release robot amr-7 (policy rules 1, 3 admit this caller)",
        ),
    ] {
        assert_eq!(says(&policy, &planner(), method, robot, action), line);
    }
}

#[test]
fn a_refusal_counts_the_rules_that_admit_the_caller() {
    let policy = policy();
    let refused = |id| {
        let reason = says(
            &policy,
            &who(id),
            Method::DispatchMission,
            ("amr-7", None),
            (ActionType::ExecuteAction, "dock"),
        );
        reason.split_once(" (").unwrap().1.to_owned()
    };
    assert_eq!(
        refused("spiffe://a.b/ns/other/sa/planner/1"),
        "policy rule 1 admits this caller)"
    );
    assert_eq!(
        refused("spiffe://a.b/ns/p/sa/operator/1"),
        "policy rules 2, 3 admit this caller)"
    );
    assert_eq!(
        refused("spiffe://b/ns/p/sa/planner/1"),
        "no policy rule admits this caller)"
    );
}

#[test]
fn a_mission_without_an_action_is_no_way_around_the_actions() {
    let robot: RobotId = "amr-7".parse().unwrap();
    let robot = RobotRef {
        robot: &robot,
        fleet: None,
    };
    let refused = policy().may_command(&planner(), Method::DispatchMission, robot, None);
    assert!(refused.is_err());
}

#[test]
fn what_is_about_the_robot_alone_needs_no_action() {
    let (robot, fleet): (RobotId, FleetId) = ("amr-7".parse().unwrap(), "amr".parse().unwrap());
    let operator = who("spiffe://a.b/ns/p/sa/operator/1");
    let held = |fleet| {
        policy().may_command(
            &operator,
            Method::HoldRobot,
            RobotRef {
                robot: &robot,
                fleet,
            },
            None,
        )
    };
    assert!(held(Some(&fleet)).is_ok());
    assert!(
        held(None).is_err(),
        "a robot without a fleet is in no fleet"
    );
}

#[test]
fn who_no_rule_names_is_not_admitted() {
    let policy = policy();
    for (id, admitted) in [
        ("spiffe://a.b/ns/x/sa/planner/1", true),
        ("spiffe://a.b/ns/p/sa/operator/2", true),
        ("spiffe://a.b/ns/x/sa/operator/2", false),
        ("spiffe://a.b/ns/p/sa/planner", false),
    ] {
        let id = SpiffeId::new(id).unwrap();
        assert_eq!(policy.admits(&id), admitted, "{id}");
        assert_eq!(policy.peer_policy().admits(&id), admitted, "{id}");
    }
}

#[test]
fn methods_are_allowed_by_name_and_views_by_robot_and_fleet() {
    let policy = policy();
    assert!(policy.may_call(&planner(), Method::WatchMissions));
    assert!(!policy.may_call(&planner(), Method::ListRobots));
    assert!(!policy.may_call(&who("spiffe://a.b/x"), Method::WatchMissions));
    let (robot, cell): (RobotId, FleetId) = ("r".parse().unwrap(), "cell".parse().unwrap());
    let sees = |method, fleet| {
        policy.may_see(
            &planner(),
            method,
            RobotRef {
                robot: &robot,
                fleet,
            },
        )
    };
    assert!(sees(Method::WatchMissions, Some(&cell)));
    assert!(!sees(Method::WatchMissions, None));
    assert!(!sees(Method::GetMissionStatus, Some(&cell)));
}

#[test]
fn what_a_caller_wrote_cannot_forge_or_flood_a_reason() {
    let name = format!("a\nb\u{1b}{}", "x".repeat(10_000));
    let action = (ActionType::ExecuteAction, &*name);
    let reason = says(
        &policy(),
        &planner(),
        Method::DispatchMission,
        ("amr-7", None),
        action,
    );
    assert!(reason.contains("send abxxx"), "{reason}");
    assert!(
        reason.len() < 400 && !reason.chars().any(char::is_control),
        "{reason}"
    );
}

#[test]
fn the_caller_is_the_id_without_the_pod() {
    for (id, caller) in [
        ("spiffe://a.b/ns/n/sa/s/pod-1", "spiffe://a.b/ns/n/sa/s"),
        ("spiffe://a.b/ns/n/sa/s/pod/more", "spiffe://a.b/ns/n/sa/s"),
        ("spiffe://a.b/ns/n/sa/s", "spiffe://a.b/ns/n/sa/s"),
        ("spiffe://a.b/ns/n/sa", "spiffe://a.b/ns/n/sa"),
        (
            "spiffe://a.b/x/ns/n/sa/s/pod",
            "spiffe://a.b/x/ns/n/sa/s/pod",
        ),
        (
            "spiffe://a.b/ns/n/account/s/pod",
            "spiffe://a.b/ns/n/account/s/pod",
        ),
        ("spiffe://a.b", "spiffe://a.b"),
    ] {
        assert_eq!(who(id).caller().to_string(), caller);
    }
}

#[test]
fn the_development_caller_may_everything_and_comes_from_the_configuration_only() {
    let config = config("development = true\n");
    let anyone = Principal::Development(config.development.unwrap());
    let policy = config.reloadable.policy;
    assert_eq!(anyone.caller().to_string(), "development");
    for method in Method::ALL {
        assert!(policy.may_call(&anyone, method));
        let said = says(
            &policy,
            &anyone,
            method,
            ("r", None),
            (ActionType::Stop, ""),
        );
        assert_eq!(said, "yes");
    }
}
