//! `dev --demo`: the main job, shown while it happens, and judged.

use super::{
    stage::{GRPC_ROBOT, MQTT_ROBOT, Stage, hints},
    tell,
};
use crate::supervisor::Addresses;
use anyhow::{Context as _, bail};
use portarium_identity::SvidManager;
use portarium_protocols::grpc::{
    Channel, Connection,
    pb::{self, mission_service_client::MissionServiceClient},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// How long the missions take that are under way while SVIDs rotate; the authority renews every
/// 5 s.
const JOURNEY_SECONDS: &str = "11";

/// How long a mission may take to come to its end.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is known of the missions, from the watch.
type Seen = Arc<Mutex<BTreeMap<String, pb::MissionUpdate>>>;

struct Demo {
    started: Instant,
    control_plane: Arc<Connection>,
    seen: Seen,
}

/// One line of the verdict.
struct Row {
    mission: String,
    robot: &'static str,
    expected: &'static str,
    came_to: String,
}

/// Dispatches to every robot, rotates SVIDs meanwhile, cancels one mission and stops one robot.
/// Returns whether all ended as they should.
pub(super) async fn perform(stage: &Stage, addresses: Addresses) -> anyhow::Result<bool> {
    let started = Instant::now();
    stage.ready(addresses).await?;
    let (control_plane, identity) = stage.client(hints::CONTROL_PLANE, addresses).await?;
    control_plane
        .ready()
        .await
        .context("the gateway cannot be reached")?;
    let first = identity.ready().await.generation;
    let demo = Demo {
        started,
        control_plane: Arc::new(control_plane),
        seen: Seen::default(),
    };
    demo.say(&format!(
        "the gateway serves {} as {}",
        addresses.grpc,
        super::stage::spiffe_id(hints::GATEWAY)
    ));
    demo.say("every connection is mutual TLS with SVIDs that live 10 s; no file, no password");
    let watch = tokio::spawn(watch(
        demo.control_plane.clone(),
        demo.seen.clone(),
        started,
    ));
    let rotations = tokio::spawn(tell_rotations(identity.clone(), started));
    let rows = demo.play().await;
    let generations = identity.current().map_or(0, |svid| svid.generation - first);
    watch.abort();
    rotations.abort();
    // It is to have let go of the connection before the gateway ends, which would be news to it.
    let _ = watch.await;
    Ok(demo.judge(&rows?, generations))
}

impl Demo {
    async fn play(&self) -> anyhow::Result<Vec<Row>> {
        self.say(&format!(
            "two journeys of {JOURNEY_SECONDS} s each begin, one for each robot"
        ));
        self.dispatch("journey-mqtt", MQTT_ROBOT, JOURNEY_SECONDS)
            .await?;
        self.dispatch("journey-grpc", GRPC_ROBOT, JOURNEY_SECONDS)
            .await?;
        self.say(&format!(
            "a third mission has to wait for {MQTT_ROBOT}, and is cancelled"
        ));
        self.dispatch("cancelled-while-waiting", MQTT_ROBOT, "1")
            .await?;
        let cancel = pb::CancelMissionRequest {
            mission_id: "cancelled-while-waiting".into(),
            reason: "demo".into(),
            ..Default::default()
        };
        let answer = self.client()?.cancel_mission(cancel).await?.into_inner();
        self.say(&format!("  {}", answer.message));
        for mission in ["journey-mqtt", "journey-grpc", "cancelled-while-waiting"] {
            self.end(mission).await?;
        }
        self.say(&format!(
            "{GRPC_ROBOT} is stopped in the middle of a journey"
        ));
        self.dispatch("journey-stopped", GRPC_ROBOT, JOURNEY_SECONDS)
            .await?;
        self.reach("journey-stopped", "Executing").await?;
        let asked = Instant::now();
        let answer = self
            .client()?
            .dispatch_mission(stop("stop", GRPC_ROBOT))
            .await?
            .into_inner();
        self.say(&format!(
            "  answered after {:.1} ms: {}",
            asked.elapsed().as_secs_f64() * 1e3,
            answer.message
        ));
        for mission in ["journey-stopped", "stop"] {
            self.end(mission).await?;
        }
        let row = |mission: &str, robot, expected| Row {
            came_to: self.status(mission).unwrap_or_else(|| "unknown".into()),
            mission: mission.into(),
            robot,
            expected,
        };
        Ok(vec![
            row("journey-mqtt", MQTT_ROBOT, "Succeeded"),
            row("journey-grpc", GRPC_ROBOT, "Succeeded"),
            row("cancelled-while-waiting", MQTT_ROBOT, "Cancelled"),
            row("journey-stopped", GRPC_ROBOT, "Cancelled"),
            row("stop", GRPC_ROBOT, "Succeeded"),
        ])
    }

    fn judge(&self, rows: &[Row], rotations: u64) -> bool {
        tell(format_args!(
            "\n{:26}{:12}{:12}CAME TO",
            "MISSION", "ROBOT", "EXPECTED"
        ));
        for row in rows {
            tell(format_args!(
                "{:26}{:12}{:12}{}",
                row.mission, row.robot, row.expected, row.came_to
            ));
        }
        tell(format_args!(
            "\n{rotations} SVID rotations meanwhile, no failed call, {:.0} s",
            self.started.elapsed().as_secs_f64()
        ));
        let wrong = wrong(rows, rotations);
        wrong.iter().for_each(tell);
        wrong.is_none()
    }

    async fn dispatch(&self, mission: &str, robot: &str, seconds: &str) -> anyhow::Result<()> {
        let request = pb::DispatchMissionRequest {
            mission_id: mission.into(),
            plan_effect_idempotency_key: format!("plan-{mission}"),
            idempotency_key: format!("key-{mission}"),
            robot_id: robot.into(),
            action_type: "robot:execute_action".into(),
            action_name: "navigate_to".into(),
            parameters: Some(pb::ActionParameters {
                fields: [("duration".to_owned(), seconds.to_owned())].into(),
            }),
            supports_preemption: true,
            completion_mode: "Auto".into(),
            ..Default::default()
        };
        let answer = self.client()?.dispatch_mission(request).await?.into_inner();
        if answer.status() != pb::DispatchStatus::Dispatched {
            bail!("mission {mission}: {}", answer.message);
        }
        self.say(&format!(
            "  {mission}: accepted and durable, {}",
            answer.gateway_request_id
        ));
        Ok(())
    }

    async fn end(&self, mission: &str) -> anyhow::Result<()> {
        let ended = |status: &str| matches!(status, "Succeeded" | "Failed" | "Cancelled");
        self.until(mission, ended).await
    }

    async fn reach(&self, mission: &str, wanted: &str) -> anyhow::Result<()> {
        self.until(mission, |status| status == wanted).await
    }

    async fn until(&self, mission: &str, reached: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let reached = async {
            while !self.status(mission).is_some_and(|status| reached(&status)) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, reached).await.with_context(|| {
            format!(
                "mission {mission} is still {:?} after {PATIENCE:?}",
                self.status(mission)
            )
        })
    }

    fn status(&self, mission: &str) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(mission).map(|update| update.status.clone())
    }

    fn client(&self) -> anyhow::Result<MissionServiceClient<Channel>> {
        Ok(MissionServiceClient::new(self.control_plane.channel()?))
    }

    fn say(&self, text: &str) {
        say(self.started, text);
    }
}

/// What is not as it should be.
fn wrong(rows: &[Row], rotations: u64) -> Option<&'static str> {
    if rows.iter().any(|row| row.came_to != row.expected) {
        Some("not all ended as they should")
    } else if rotations < 2 {
        Some("the SVIDs did not rotate as they should")
    } else {
        None
    }
}

fn say(started: Instant, text: &str) {
    tell(format_args!(
        "{:6.2} s  {text}",
        started.elapsed().as_secs_f64()
    ));
}

fn stop(mission: &str, robot: &str) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: mission.into(),
        robot_id: robot.into(),
        action_type: "robot:stop".into(),
        bypass_tier_evaluation: true,
        ..Default::default()
    }
}

/// Follows all missions, across the ends of connections, and tells of each change.
async fn watch(connection: Arc<Connection>, seen: Seen, started: Instant) {
    let mut after_position = 0;
    loop {
        if let Ok(channel) = connection.ready().await {
            let wanted = pb::WatchMissionsRequest {
                after_position,
                ..Default::default()
            };
            let opened = MissionServiceClient::new(channel)
                .watch_missions(wanted)
                .await;
            if let Ok(mut updates) = opened.map(tonic::Response::into_inner) {
                while let Ok(Some(update)) = updates.message().await {
                    after_position = update.position;
                    let why = match update.detail.as_str() {
                        "" => String::new(),
                        detail => format!(": {detail}"),
                    };
                    let (mission, status) = (&update.mission_id, &update.status);
                    say(started, &format!("  {mission}: {status}{why}"));
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.insert(update.mission_id.clone(), update);
                }
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn tell_rotations(identity: SvidManager, started: Instant) {
    let mut snapshots = identity.snapshots();
    let _seen = snapshots.borrow_and_update().clone();
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        if let Some(snapshot) = snapshot {
            say(
                started,
                &format!(
                    "  new SVID, generation {}, serial {}…",
                    snapshot.generation,
                    &snapshot.serial[..8.min(snapshot.serial.len())]
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_well_only_if_all_ended_as_expected_and_the_svids_rotated() {
        let row = |came_to: &str| Row {
            mission: "m".into(),
            robot: MQTT_ROBOT,
            expected: "Cancelled",
            came_to: came_to.into(),
        };
        assert_eq!(wrong(&[row("Cancelled")], 2), None);
        assert!(wrong(&[row("Cancelled")], 1).is_some());
        for other in ["Succeeded", "Executing", "unknown"] {
            assert!(wrong(&[row("Cancelled"), row(other)], 2).is_some());
        }
    }
}
