//! `mission …`

use super::{
    Done,
    client::{CallError, ClientArgs, call, request},
    mission_told::{dispatch_json, dispatch_told, status_json, status_told, stop_told},
    output::{clean, line, remark, timestamp},
    watch::{self, WatchArgs},
};
use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use portarium_protocols::{
    grpc::pb::{
        ActionParameters, CancelMissionRequest, ConfirmMissionRequest, DispatchMissionRequest,
        DispatchStatus, GetMissionStatusRequest, ResolveMissionRequest, StopState,
    },
    mission::{ActionType, CompletionMode, MissionStatus},
};
use serde_json::json;
use std::time::SystemTime;
use uuid::Uuid;

#[derive(Debug, Subcommand)]
pub(super) enum Mission {
    /// Send a mission to a robot.
    Dispatch(DispatchArgs),
    /// Cancel a mission.
    Cancel(NotedArgs),
    /// Stop a robot, and cancel what waits for it.
    Stop(StopArgs),
    /// Show where a mission is.
    Status(StatusArgs),
    /// Follow missions until interrupted, or one to its end.
    Watch(WatchArgs),
    /// Confirm, as an operator, that a mission succeeded.
    Confirm(NotedArgs),
    /// Say, as an operator, what a mission of unknown outcome came to.
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
pub(super) struct DispatchArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The robot.
    #[arg(long)]
    robot: String,
    /// What it is to do, for example navigate_to.
    #[arg(long)]
    action: String,
    /// A parameter of the action; may be given several times.
    #[arg(long = "param", value_name = "K=V", value_parser = parameter)]
    parameters: Vec<(String, String)>,
    /// The fleet that the robot must be in.
    #[arg(long)]
    fleet: Option<String>,
    /// The mission's name; a new one otherwise.
    #[arg(long, value_name = "ID")]
    mission_id: Option<String>,
    /// The key of the plan's effect: what was dispatched under it is not dispatched again.
    #[arg(long, value_name = "KEY")]
    plan_key: Option<String>,
    /// The key under which an idempotent robot carries it out once.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// It succeeds only once an operator confirms it.
    #[arg(long)]
    manual: bool,
    /// Follow it to its end, and fail unless it succeeds.
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct NotedArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The mission.
    #[arg(value_name = "ID")]
    mission: String,
    /// Why, for people.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The robot.
    #[arg(long)]
    robot: String,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The mission.
    #[arg(value_name = "ID")]
    mission: String,
}

#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    #[command(flatten)]
    noted: NotedArgs,
    /// What it came to.
    #[arg(long = "as", value_name = "STATUS", ignore_case = true)]
    status: End,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "lower")]
enum End {
    Succeeded,
    Failed,
    Cancelled,
}

impl From<End> for MissionStatus {
    fn from(end: End) -> Self {
        match end {
            End::Succeeded => Self::Succeeded,
            End::Failed => Self::Failed,
            End::Cancelled => Self::Cancelled,
        }
    }
}

impl Mission {
    pub(super) async fn execute(self) -> anyhow::Result<Done> {
        match self {
            Self::Dispatch(args) => dispatch(args).await,
            Self::Cancel(args) => cancel(args).await,
            Self::Stop(args) => stop(args).await,
            Self::Status(args) => status(args).await,
            Self::Watch(args) => args.execute().await,
            Self::Confirm(args) => confirm(args).await,
            Self::Resolve(args) => resolve(args).await,
        }
    }
}

fn parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

fn new_id() -> String {
    Uuid::now_v7().to_string()
}

async fn dispatch(args: DispatchArgs) -> anyhow::Result<Done> {
    let mode = if args.manual {
        CompletionMode::ManualOnly
    } else {
        CompletionMode::Auto
    };
    let message = DispatchMissionRequest {
        mission_id: args.mission_id.unwrap_or_else(new_id),
        correlation_id: new_id(),
        plan_effect_idempotency_key: args.plan_key.unwrap_or_else(new_id),
        robot_id: args.robot,
        fleet_id: args.fleet.unwrap_or_default(),
        action_type: ActionType::ExecuteAction.as_str().to_owned(),
        action_name: args.action,
        parameters: Some(ActionParameters {
            fields: args.parameters.into_iter().collect(),
        }),
        idempotency_key: args.key.unwrap_or_else(new_id),
        supports_preemption: true,
        bypass_tier_evaluation: false,
        completion_mode: mode.as_str().to_owned(),
        requires_operator_confirmation: args.manual,
        requested_at: timestamp(SystemTime::now()),
    };
    let mut client = args.client.connect().await?;
    let again = format!(
        "--mission-id {} --plan-key {} --key {}",
        message.mission_id, message.plan_effect_idempotency_key, message.idempotency_key
    );
    let robot = message.robot_id.clone();
    let answer = match call(|| client.dispatch_mission(request(message))).await {
        Err(error @ CallError::Unknown(_)) => bail!("{error}; to be sure, repeat it with {again}"),
        other => other?,
    };
    if args.client.json {
        line(dispatch_json(&answer))?;
    } else {
        line(dispatch_told(&answer, &robot))?;
    }
    match answer.status() {
        DispatchStatus::Dispatched if args.follow => {
            watch::follow(&args.client, answer.mission_id).await
        }
        DispatchStatus::Dispatched => Ok(Done::Well),
        _ => Ok(Done::Badly),
    }
}

async fn stop(args: StopArgs) -> anyhow::Result<Done> {
    let message = DispatchMissionRequest {
        mission_id: new_id(),
        correlation_id: new_id(),
        robot_id: args.robot.clone(),
        action_type: ActionType::Stop.as_str().to_owned(),
        action_name: "stop".to_owned(),
        bypass_tier_evaluation: true,
        completion_mode: CompletionMode::Auto.as_str().to_owned(),
        requested_at: timestamp(SystemTime::now()),
        ..DispatchMissionRequest::default()
    };
    let mut client = args.client.connect_to_stop().await?;
    let answer = call(|| client.dispatch_mission(request(message))).await?;
    if args.client.json {
        line(dispatch_json(&answer))?;
    } else {
        line(stop_told(&answer, &args.robot))?;
    }
    let refused = answer.stop.unwrap_or_default().state() == StopState::Refused;
    let done = answer.status() == DispatchStatus::Dispatched && !refused;
    Ok(if done { Done::Well } else { Done::Badly })
}

async fn cancel(args: NotedArgs) -> anyhow::Result<Done> {
    let mut client = args.client.connect().await?;
    let message = CancelMissionRequest {
        mission_id: args.mission.clone(),
        correlation_id: new_id(),
        plan_effect_idempotency_key: String::new(),
        reason: args.reason.clone(),
    };
    let answer = call(|| client.cancel_mission(request(message))).await?;
    let told = match (answer.accepted, answer.cancelled_at.as_str()) {
        (true, "") => "is asked to end; it ends by the robot's word".to_owned(),
        (true, at) => format!("is cancelled since {}", clean(at)),
        (false, _) => "is not cancelled".to_owned(),
    };
    let more = json!({ "cancelled_at": answer.cancelled_at });
    args.tell(answer.accepted, &told, &answer.message, more)
}

async fn confirm(args: NotedArgs) -> anyhow::Result<Done> {
    let mut client = args.client.connect().await?;
    let message = ConfirmMissionRequest {
        mission_id: args.mission.clone(),
        note: args.reason.clone(),
    };
    let answer = call(|| client.confirm_mission(request(message))).await?;
    let told = if answer.accepted {
        "is confirmed"
    } else {
        "is not confirmed"
    };
    args.tell(answer.accepted, told, &answer.message, json!({}))
}

async fn resolve(args: ResolveArgs) -> anyhow::Result<Done> {
    let ResolveArgs { noted, status } = args;
    let status = MissionStatus::from(status);
    let mut client = noted.client.connect().await?;
    let message = ResolveMissionRequest {
        mission_id: noted.mission.clone(),
        status: status.as_str().to_owned(),
        note: noted.reason.clone(),
    };
    let answer = call(|| client.resolve_mission(request(message))).await?;
    let told = if answer.accepted {
        format!("is resolved as {status}")
    } else {
        "is not resolved".into()
    };
    noted.tell(answer.accepted, &told, &answer.message, json!({}))
}

impl NotedArgs {
    fn tell(
        &self,
        accepted: bool,
        told: &str,
        message: &str,
        mut more: serde_json::Value,
    ) -> anyhow::Result<Done> {
        if self.client.json {
            more["mission_id"] = json!(self.mission);
            more["accepted"] = json!(accepted);
            more["message"] = json!(message);
            line(more)?;
        } else {
            let why = if message.is_empty() {
                String::new()
            } else {
                format!(": {}", clean(message))
            };
            line(format_args!("mission {} {told}{why}", clean(&self.mission)))?;
        }
        Ok(if accepted { Done::Well } else { Done::Badly })
    }
}

async fn status(args: StatusArgs) -> anyhow::Result<Done> {
    let mut client = args.client.connect().await?;
    let message = GetMissionStatusRequest {
        mission_id: args.mission,
        correlation_id: new_id(),
    };
    let answer = call(|| client.get_mission_status(request(message))).await?;
    if args.client.json {
        line(status_json(&answer))?;
    } else {
        line(status_told(&answer))?;
        if answer.outcome_unknown {
            remark(format_args!(
                "what it came to is unknown; find out, then say so with: mission resolve {} --as STATUS",
                answer.mission_id
            ));
        }
    }
    Ok(Done::Well)
}
