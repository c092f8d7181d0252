//! `mission watch`, and `mission dispatch --follow`.

use super::{
    Done,
    client::ClientArgs,
    output::{clean, line, remark},
};
use crate::north::POSITION;
use anyhow::anyhow;
use clap::Args;
use portarium_protocols::{
    grpc::{
        Connection,
        pb::{MissionUpdate, WatchMissionsRequest},
    },
    mission::MissionStatus,
};
use serde_json::json;
use std::{io, time::Duration};
use tokio::{signal, time::sleep};
use tonic::{Code, Response, Status};

/// The pause before a stream that ended is opened again.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Only this mission, from its beginning. The gateway has to know it.
    #[arg(value_name = "ID")]
    mission: Option<String>,
    /// Only missions of this robot.
    #[arg(long)]
    robot: Option<String>,
    /// Only missions of this fleet.
    #[arg(long)]
    fleet: Option<String>,
    /// Only what comes after this position; 0: all that is kept. Without it and without ID, only
    /// what comes from now on.
    #[arg(long, value_name = "POSITION")]
    after: Option<u64>,
}

impl WatchArgs {
    pub(super) async fn execute(self) -> anyhow::Result<Done> {
        let from_now = self.after.is_none() && self.mission.is_none();
        let selected = WatchMissionsRequest {
            mission_id: self.mission.unwrap_or_default(),
            robot_id: self.robot.unwrap_or_default(),
            fleet_id: self.fleet.unwrap_or_default(),
            after_position: self.after.unwrap_or_default(),
            from_now,
        };
        let json = self.client.json;
        let single = !selected.mission_id.is_empty();
        let show = |update: MissionUpdate| {
            line(told(&update, json))?;
            // Nothing follows the end of the one mission that is watched.
            Ok((single && ended(&update).is_some()).then_some(Done::Well))
        };
        let interrupted = signal::ctrl_c();
        tokio::select! {
            end = watch(&self.client, selected, show) => end,
            // Without a handler the signal ends the process as it always did.
            Ok(()) = interrupted => Ok(Done::Well),
        }
    }
}

/// Shows a mission's updates until it has ended; well where it succeeded.
pub(super) async fn follow(client: &ClientArgs, mission_id: String) -> anyhow::Result<Done> {
    let selected = WatchMissionsRequest {
        mission_id,
        ..WatchMissionsRequest::default()
    };
    let json = client.json;
    let show = |update: MissionUpdate| {
        line(told(&update, json))?;
        Ok(ended(&update).map(|status| match status {
            MissionStatus::Succeeded => Done::Well,
            _ => Done::Badly,
        }))
    };
    watch(client, selected, show).await
}

/// The status that a mission ended in, if it has.
fn ended(update: &MissionUpdate) -> Option<MissionStatus> {
    update
        .status
        .parse()
        .ok()
        .filter(|status: &MissionStatus| status.is_terminal())
}

/// Why a stream ended before anyone had enough of it.
enum Ended {
    /// Opening it again may help.
    Interrupted(String),
    /// It would bring the same again.
    ForGood(anyhow::Error),
}

/// Shows every update until told that it is enough. Opens the stream again behind the last
/// position seen whenever it ends.
async fn watch(
    client: &ClientArgs,
    selected: WatchMissionsRequest,
    show: impl FnMut(MissionUpdate) -> io::Result<Option<Done>>,
) -> anyhow::Result<Done> {
    let kept = client.keep_connected().await?;
    tokio::select! {
        end = resume(client, &kept.connection, selected, show) => end,
        never = kept.recheck() => match never {},
    }
}

async fn resume(
    client: &ClientArgs,
    connection: &Connection,
    mut selected: WatchMissionsRequest,
    mut show: impl FnMut(MissionUpdate) -> io::Result<Option<Done>>,
) -> anyhow::Result<Done> {
    let mut last_told = None;
    loop {
        match stream(client, connection, &mut selected, &mut show).await {
            Ok(done) => return Ok(done),
            Err(Ended::ForGood(error)) => return Err(error),
            Err(Ended::Interrupted(reason)) => {
                // An outage is told once, however many attempts it outlasts.
                if last_told != Some(selected.after_position) {
                    last_told = Some(selected.after_position);
                    remark(format_args!(
                        "the watch was interrupted ({reason}); resuming"
                    ));
                }
                sleep(PAUSE).await;
            }
        }
    }
}

async fn stream(
    client: &ClientArgs,
    connection: &Connection,
    selected: &mut WatchMissionsRequest,
    show: &mut impl FnMut(MissionUpdate) -> io::Result<Option<Done>>,
) -> Result<Done, Ended> {
    let channel = connection.ready().await;
    let channel = channel.map_err(|down| Ended::Interrupted(down.to_string()))?;
    // A token that is not there may be about to be replaced.
    let missions = client.missions(channel).await;
    let answer = missions
        .map_err(|error| Ended::Interrupted(format!("{error:#}")))?
        .watch_missions(selected.clone())
        .await
        .map_err(|s| Ended::by(&s))?;
    if let Some(position) = position(&answer) {
        resume_after(selected, position);
    }
    let mut updates = answer.into_inner();
    let mut came = false;
    while let Some(update) = updates.message().await.map_err(|s| Ended::amid(&s))? {
        came = true;
        resume_after(selected, update.position);
        if let Some(done) = show(update).map_err(|error| Ended::ForGood(error.into()))? {
            return Ok(done);
        }
    }
    if came || selected.mission_id.is_empty() {
        return Err(Ended::Interrupted("the gateway ended it".to_owned()));
    }
    let over = "the mission has ended, and nothing came after this position";
    Err(Ended::ForGood(anyhow!(
        "{over} ({})",
        selected.after_position
    )))
}

/// The position that the stream began behind: what a watch from now on resumes from when it is
/// interrupted before its first update.
fn position<T>(answer: &Response<T>) -> Option<u64> {
    answer.metadata().get(POSITION)?.to_str().ok()?.parse().ok()
}

fn resume_after(selected: &mut WatchMissionsRequest, position: u64) {
    selected.after_position = position;
    selected.from_now = false;
}

impl Ended {
    /// Amid a stream that was opened: its token has expired, and the file may have the next one.
    fn amid(status: &Status) -> Self {
        match status.code() {
            Code::Unauthenticated => Self::Interrupted(clean(status.message())),
            _ => Self::by(status),
        }
    }

    fn by(status: &Status) -> Self {
        let reason = match clean(status.message()) {
            empty if empty.is_empty() => status.code().description().to_owned(),
            told => told,
        };
        match status.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::ResourceExhausted => Self::Interrupted(reason),
            _ => Self::ForGood(anyhow!(reason)),
        }
    }
}

pub(super) fn told(update: &MissionUpdate, json: bool) -> String {
    if json {
        return update_json(update).to_string();
    }
    let mut told = format!(
        "{:>6}  {}  {}  {}  {}",
        update.position,
        clean(&update.mission_id),
        clean(&update.robot_id),
        clean(if update.action_name.is_empty() {
            &update.action_type
        } else {
            &update.action_name
        }),
        clean(&update.status),
    );
    for (is, words) in [
        (update.outcome_unknown, "outcome unknown"),
        (
            // The detail mostly says it too, and by whom.
            update.cancel_requested && !update.detail.starts_with("cancel requested"),
            "cancel requested",
        ),
        (update.awaiting_confirmation, "awaits confirmation"),
    ] {
        if is {
            told.push_str(", ");
            told.push_str(words);
        }
    }
    if !update.detail.is_empty() {
        told.push_str(": ");
        told.push_str(&clean(&update.detail));
    }
    told
}

fn update_json(update: &MissionUpdate) -> serde_json::Value {
    json!({
        "position": update.position,
        "mission_id": update.mission_id,
        "correlation_id": update.correlation_id,
        "robot_id": update.robot_id,
        "fleet_id": update.fleet_id,
        "action_type": update.action_type,
        "action_name": update.action_name,
        "status": update.status,
        "action_execution_id": update.action_execution_id,
        "observed_at": update.observed_at,
        "outcome_unknown": update.outcome_unknown,
        "detail": update.detail,
        "cancel_requested": update.cancel_requested,
        "awaiting_confirmation": update.awaiting_confirmation,
    })
}
