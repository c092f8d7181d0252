//! What is heard on the command connection, on its way to the engine.

use super::{
    lane_state::Counters,
    payload::{self, PayloadError},
    router::Router,
    topic::{self, Heard},
};
use crate::{
    adapter::{Disbelieved, Report, Said, Speaker, Update, UpdateSender},
    ids::MissionId,
};
use rumqttc::v5::mqttbytes::v5::{Publish, SubscribeReasonCode};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;
use tracing::warn;

/// Statuses (QoS 1) that the broker sends ahead of our acknowledgement. We acknowledge one once
/// the engine has it, so a slow engine makes the *broker* wait, while PUBACKs of commands are
/// still read. The broker keeps the rest in our session, and the last of each as retained.
pub(crate) const RECEIVE_MAXIMUM: u16 = 1_024;
/// Statuses that wait here before nothing more is read. Only QoS 0, which robots of this contract
/// do not use, gets beyond [`RECEIVE_MAXIMUM`].
const MAX_WAITING: usize = 4_096;
const COMPLAIN_EVERY: Duration = Duration::from_secs(15);

/// When the broker may hear that we have a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledge {
    Now,
    /// When [`Inbox::hand_over`] says so.
    Later,
}

pub(crate) struct Inbox {
    router: Arc<Router>,
    updates: UpdateSender,
    /// Each with the packet id to acknowledge, if the broker waits for that.
    waiting: VecDeque<(u16, Update)>,
    counters: Arc<Counters>,
    complained: Option<Instant>,
}

impl Inbox {
    pub(crate) fn new(router: Arc<Router>, updates: UpdateSender, counters: Arc<Counters>) -> Self {
        Self {
            router,
            updates,
            waiting: VecDeque::new(),
            counters,
            complained: None,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The connection that the packet ids belong to is gone. The broker sends again what was not
    /// acknowledged; the engine may see a status twice, which it can tell.
    pub(crate) fn connection_gone(&mut self) {
        for (id, _) in &mut self.waiting {
            *id = 0;
        }
    }

    pub(crate) fn accept(&mut self, publish: &Publish) -> Acknowledge {
        match self.read(publish) {
            Ok(Some(report)) => self.pass_on(publish.pkid, report),
            Ok(None) => Acknowledge::Now,
            Err((error, disbelieved)) => {
                self.complain(&publish.topic, &error);
                // What finds no place is counted all the same.
                let _ = self.updates.try_send(Update::Disbelieved(disbelieved));
                Acknowledge::Now
            }
        }
    }

    /// `None`: it says nothing to the engine.
    fn read(&self, publish: &Publish) -> Result<Option<Report>, (PayloadError, Disbelieved)> {
        let Some(heard) = topic::parse(&publish.topic) else {
            return Ok(None);
        };
        // An empty message says that a retained one was cleared.
        if publish.payload.is_empty() {
            if let Heard::Presence { tenant, robot } = heard {
                // Then it counts as one that never said anything: reachable as far as is known.
                self.router.presence(tenant, robot, true, true);
            }
            return Ok(None);
        }
        let (speaker, mission) = match heard {
            Heard::Presence { tenant, robot } => {
                let Some(speaker) = self.robot(tenant, robot) else {
                    return Ok(None);
                };
                let online = payload::parse_presence(&publish.payload)
                    .map_err(|error| disbelieved(error, speaker, None))?;
                self.router.presence(tenant, robot, online, publish.retain);
                return Ok(None);
            }
            Heard::SharedStatus { tenant, mission } => {
                let fleet = self.router.fleet();
                let heeded = self.router.shared_status_topic;
                match fleet.speakers(tenant).filter(|_| heeded) {
                    Some(speakers) => (speakers, mission),
                    None => return Ok(None),
                }
            }
            Heard::RobotStatus {
                tenant,
                robot,
                mission,
            } => match self.robot(tenant, robot) {
                Some(speaker) => (speaker, mission),
                None => return Ok(None),
            },
        };
        let Ok(mission) = mission.parse::<MissionId>() else {
            return Err(disbelieved(PayloadError::MissionId, speaker, None));
        };
        if self.router.is_of_another(&speaker, &mission) {
            return Err(disbelieved(PayloadError::Speaker, speaker, Some(mission)));
        }
        let read = match payload::parse_status(&publish.payload) {
            Ok(read) => read,
            Err(error) => return Err(disbelieved(error, speaker, Some(mission))),
        };
        Ok(Some(Report {
            speaker,
            said: match publish.retain {
                true => Said::Before,
                false => Said::Now,
            },
            mission,
            status: read.status,
            action_execution_id: read.action_execution_id,
            observed_at: read.observed_at,
            detail: read.detail,
        }))
    }

    fn robot(&self, tenant: &str, robot: &str) -> Option<Speaker> {
        let fleet = self.router.fleet();
        let known = fleet
            .robot(robot)
            .filter(|known| known.tenant.as_str() == tenant)?;
        Some(Speaker::Robot(known.robot_id.clone()))
    }

    fn pass_on(&mut self, id: u16, report: Report) -> Acknowledge {
        self.counters.reports.fetch_add(1, Ordering::Relaxed);
        self.router.note(&report);
        if self.waiting.is_empty() {
            match self.updates.try_reserve() {
                Ok(permit) => {
                    permit.send(Update::Report(report));
                    return Acknowledge::Now;
                }
                Err(tokio::sync::mpsc::error::TrySendError::Closed(())) => return Acknowledge::Now,
                Err(tokio::sync::mpsc::error::TrySendError::Full(())) => {}
            }
        }
        self.waiting.push_back((id, Update::Report(report)));
        Acknowledge::Later
    }

    /// Hands the status that waits longest to the engine when it has room, and says which packet
    /// id to acknowledge (0: none). Cancel safe.
    pub(crate) async fn hand_over(&mut self) -> u16 {
        let permit = self.updates.reserve().await;
        let Some((id, update)) = self.waiting.pop_front() else {
            return 0;
        };
        // An error means that the engine is gone, and with it whoever might miss a status.
        if let Ok(permit) = permit {
            permit.send(update);
        }
        id
    }

    /// The broker's answer to a subscription. All filters of a tenant come in one.
    pub(crate) fn subscribed(&mut self, filters: &[String], codes: &[SubscribeReasonCode]) {
        let mut refused_by_tenant = BTreeMap::new();
        for (filter, code) in filters.iter().zip(codes) {
            let refused = !matches!(code, SubscribeReasonCode::Success(_));
            if refused {
                warn!(
                    filter,
                    ?code,
                    "the broker refuses the subscription; grant the gateway's user `read` on it \
                     in the broker's ACL. It is asked again with the next connection"
                );
            }
            if let Some(tenant) = topic::tenant_of_status_filter(filter) {
                *refused_by_tenant.entry(tenant).or_insert(false) |= refused;
            }
        }
        for (tenant, refused) in refused_by_tenant {
            let reason = "the broker's ACL does not let the gateway hear its tenant's statuses";
            self.router.set_deaf(tenant, refused.then_some(reason));
        }
    }

    fn complain(&mut self, topic: &[u8], error: &PayloadError) {
        self.counters.invalid.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        if self
            .complained
            .is_none_or(|last| now - last >= COMPLAIN_EVERY)
        {
            self.complained = Some(now);
            // Escaped and cut: robots choose it.
            let topic: String = String::from_utf8_lossy(topic).chars().take(300).collect();
            warn!(
                ?topic,
                %error,
                "a message of a robot is not understood and was dropped"
            );
        }
    }
}

fn disbelieved(
    error: PayloadError,
    speaker: Speaker,
    mission: Option<MissionId>,
) -> (PayloadError, Disbelieved) {
    let disbelieved = Disbelieved {
        speaker,
        mission,
        reason: error.reason(),
    };
    (error, disbelieved)
}

#[cfg(test)]
#[path = "inbox_tests.rs"]
mod tests;
