//! All missions as a watching caller sees them.

use crate::{Caller, until_within};
use portarium_protocols::grpc::pb;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{task::JoinHandle, time::sleep};

/// Follows every mission, across the ends of connections and gateways.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    last: BTreeMap<String, pb::MissionUpdate>,
    position: u64,
    backwards: u64,
}

impl Watch {
    /// Starts watching with a caller.
    pub fn start(caller: Arc<Caller>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(follow(caller, seen.clone()));
        Self { seen, task }
    }

    /// The last update on a mission.
    pub fn last(&self, mission: &str) -> Option<pb::MissionUpdate> {
        self.seen.lock().unwrap().last.get(mission).cloned()
    }

    /// All last updates.
    pub fn all(&self) -> BTreeMap<String, pb::MissionUpdate> {
        self.seen.lock().unwrap().last.clone()
    }

    /// How many updates came out of order or twice.
    pub fn backwards(&self) -> u64 {
        self.seen.lock().unwrap().backwards
    }

    /// Waits until a mission has this status.
    pub async fn reaches(&self, mission: &str, status: &str) {
        crate::until(&format!("{mission} to be {status}"), async || {
            self.last(mission).is_some_and(|last| last.status == status)
        })
        .await;
    }

    /// Waits until all of these have ended.
    pub async fn ended(&self, missions: &[String], patience: Duration) {
        let open = |mission: &&String| {
            let last = self.last(mission);
            last.is_none_or(|last| !is_end(&last.status))
        };
        let what = "all missions to end".to_owned();
        let waited = tokio::time::timeout(
            patience,
            until_within(Duration::MAX, &what, async || {
                !missions.iter().any(|mission| open(&mission))
            }),
        );
        if waited.await.is_err() {
            let left: Vec<_> = missions
                .iter()
                .filter(open)
                .map(|mission| (mission, self.last(mission)))
                .collect();
            panic!(
                "{} missions have not ended after {patience:?}: {left:#?}",
                left.len()
            );
        }
    }
}

/// Whether a status is an end.
pub(crate) fn is_end(status: &str) -> bool {
    matches!(status, "Succeeded" | "Failed" | "Cancelled")
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(caller: Arc<Caller>, seen: Arc<Mutex<Seen>>) {
    loop {
        let after_position = seen.lock().unwrap().position;
        let wanted = pb::WatchMissionsRequest {
            after_position,
            ..Default::default()
        };
        let opened = match caller.client() {
            Ok(mut client) => client.watch_missions(wanted).await,
            Err(status) => Err(status),
        };
        if let Ok(mut updates) = opened.map(tonic::Response::into_inner) {
            while let Ok(Some(update)) = updates.message().await {
                let mut seen = seen.lock().unwrap();
                if update.position <= seen.position {
                    seen.backwards += 1;
                }
                seen.position = seen.position.max(update.position);
                seen.last.insert(update.mission_id.clone(), update);
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}
