//! `robot …`

use super::{
    Done,
    client::{ClientArgs, call, request},
    output::{clean, line, table},
};
use clap::{Args, Subcommand};
use portarium_protocols::grpc::pb;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub(super) enum Robot {
    /// List the robots that the caller may see.
    List(ListArgs),
    /// Show one robot.
    Show(ShowArgs),
    /// Keep new missions from a robot until it is released.
    Hold(ReasonArgs),
    /// End an operator's hold, or the latch of an e-stop request.
    Release(ReasonArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Only those of this fleet.
    #[arg(long, default_value = "", hide_default_value = true)]
    fleet: String,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The robot.
    #[arg(value_name = "ROBOT")]
    robot: String,
}

#[derive(Debug, Args)]
pub(super) struct ReasonArgs {
    #[command(flatten)]
    robot: ShowArgs,
    /// Why, for people.
    #[arg(long, default_value = "no reason given")]
    reason: String,
}

impl Robot {
    pub(super) async fn execute(self) -> anyhow::Result<Done> {
        match self {
            Self::List(args) => list(args).await,
            Self::Show(args) => {
                let message = pb::GetRobotRequest {
                    robot_id: args.robot.clone(),
                };
                let mut client = args.client.connect().await?;
                args.tell(&call(|| client.get_robot(request(message))).await?)
            }
            Self::Hold(ReasonArgs {
                robot: args,
                reason,
            }) => {
                let message = pb::HoldRobotRequest {
                    robot_id: args.robot.clone(),
                    reason,
                };
                let mut client = args.client.connect().await?;
                args.tell(&call(|| client.hold_robot(request(message))).await?)
            }
            Self::Release(ReasonArgs {
                robot: args,
                reason,
            }) => {
                let message = pb::ReleaseRobotRequest {
                    robot_id: args.robot.clone(),
                    reason,
                };
                let mut client = args.client.connect().await?;
                args.tell(&call(|| client.release_robot(request(message))).await?)
            }
        }
    }
}

impl ShowArgs {
    fn tell(&self, robot: &pb::Robot) -> anyhow::Result<Done> {
        if self.client.json {
            line(robot_json(robot))?
        } else {
            line(robot_told(robot))?
        }
        Ok(Done::Well)
    }
}

async fn list(args: ListArgs) -> anyhow::Result<Done> {
    let mut client = args.client.connect().await?;
    let message = pb::ListRobotsRequest {
        fleet_id: args.fleet,
    };
    let robots = call(|| client.list_robots(request(message))).await?.robots;
    if args.client.json {
        for robot in &robots {
            line(robot_json(robot))?;
        }
    } else if robots.is_empty() {
        line("no robots")?;
    } else {
        line(robots_told(&robots))?;
    }
    Ok(Done::Well)
}

pub(super) fn robots_told(robots: &[pb::Robot]) -> String {
    let row = |robot: &pb::Robot| {
        [
            clean(&robot.robot_id),
            or_dash(&robot.fleet_id),
            clean(&robot.adapter),
            or_dash(&robot.active_mission_id),
            robot.queued_missions.to_string(),
            state(robot).join(", "),
        ]
    };
    let rows: Vec<_> = robots.iter().map(row).collect();
    table(
        ["ROBOT", "FLEET", "ADAPTER", "MISSION", "QUEUED", "STATE"],
        &rows,
    )
}

/// What keeps missions from the robot; `ready` where nothing does.
fn state(robot: &pb::Robot) -> Vec<String> {
    let mut state = Vec::new();
    if !robot.reachable {
        state.push("out of reach".to_owned());
    }
    if !robot.reconciled {
        state.push("not reconciled yet".to_owned());
    }
    if robot.latched {
        state.push("latched by an e-stop request".to_owned());
    }
    if robot.stop_pending {
        state.push("stop pending".to_owned());
    }
    if !robot.hold_reason.is_empty() {
        state.push(format!("held: {}", clean(&robot.hold_reason)));
    }
    match robot.unknown_mission_ids.len() {
        0 => {}
        1 => state.push("1 mission of unknown outcome".to_owned()),
        n => state.push(format!("{n} missions of unknown outcome")),
    }
    if state.is_empty() {
        state.push("ready".to_owned());
    }
    state
}

fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        clean(text)
    }
}

pub(super) fn robot_told(robot: &pb::Robot) -> String {
    let unknown: Vec<String> = robot
        .unknown_mission_ids
        .iter()
        .map(|id| clean(id))
        .collect();
    let actions: Vec<String> = robot.actions.iter().map(|action| clean(action)).collect();
    let redelivery = if robot.idempotent {
        "idempotent"
    } else {
        "never"
    };
    let lines = [
        ("robot", clean(&robot.robot_id)),
        ("fleet", or_dash(&robot.fleet_id)),
        ("adapter", clean(&robot.adapter)),
        ("state", state(robot).join(", ")),
        ("reachability", clean(&robot.reachability_detail)),
        ("mission", or_dash(&robot.active_mission_id)),
        ("queued", robot.queued_missions.to_string()),
        ("unknown", unknown.join(", ")),
        ("actions", actions.join(", ")),
        ("redelivery", redelivery.to_owned()),
    ];
    let told = lines.iter().filter(|(_, text)| !text.is_empty());
    told.map(|(label, text)| format!("{label:<13} {text}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn robot_json(robot: &pb::Robot) -> serde_json::Value {
    json!({
        "robot_id": robot.robot_id,
        "fleet_id": robot.fleet_id,
        "adapter": robot.adapter,
        "reachable": robot.reachable,
        "reachability_detail": robot.reachability_detail,
        "reconciled": robot.reconciled,
        "latched": robot.latched,
        "hold_reason": robot.hold_reason,
        "active_mission_id": robot.active_mission_id,
        "queued_missions": robot.queued_missions,
        "unknown_mission_ids": robot.unknown_mission_ids,
        "stop_pending": robot.stop_pending,
        "actions": robot.actions,
        "idempotent": robot.idempotent,
    })
}
