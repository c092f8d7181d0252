//! What is known of the robots: who they are, whether they can be reached, what they said last.

use super::config::MqttRobot;
use crate::{
    adapter::{Link, Report, Speaker},
    ids::{MissionId, RobotId, TenantId},
};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, watch};

/// Missions whose last status is kept. The engine has one open mission for each robot, so this
/// is six for each of 10,000 robots; beyond it statuses still pass, they are only not kept.
const MAX_TRACKED: usize = 65_536;

/// The robots as configured. Replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    robots: HashMap<RobotId, Arc<MqttRobot>>,
    tenants: BTreeMap<TenantId, Arc<BTreeSet<RobotId>>>,
}

impl Fleet {
    pub(crate) fn new(robots: Vec<MqttRobot>) -> Self {
        let mut tenants: BTreeMap<TenantId, BTreeSet<RobotId>> = BTreeMap::new();
        for robot in &robots {
            let theirs = tenants.entry(robot.tenant.clone()).or_default();
            theirs.insert(robot.robot_id.clone());
        }
        let shared = tenants
            .into_iter()
            .map(|(id, robots)| (id, Arc::new(robots)));
        let tenants = shared.collect();
        let robots = robots
            .into_iter()
            .map(|r| (r.robot_id.clone(), Arc::new(r)))
            .collect();
        Self { robots, tenants }
    }

    pub(crate) fn robot(&self, id: &str) -> Option<&Arc<MqttRobot>> {
        self.robots.get(id)
    }

    pub(crate) fn tenants(&self) -> BTreeSet<TenantId> {
        self.tenants.keys().cloned().collect()
    }

    /// Whoever may write the status topic that all robots of a tenant share.
    pub(crate) fn speakers(&self, tenant: &str) -> Option<Speaker> {
        self.tenants.get(tenant).cloned().map(Speaker::OneOf)
    }

    fn ids(&self) -> impl Iterator<Item = &RobotId> {
        self.robots.keys()
    }
}

/// A mission whose statuses are kept.
#[derive(Debug)]
struct Tracked {
    robot: Arc<MqttRobot>,
    last: Option<Report>,
    /// Statuses came on the topic that all robots share.
    on_shared: bool,
    /// Statuses came on the robot's own topic.
    on_robots: bool,
    asked: Option<Arc<Notify>>,
}

/// On which topics a mission may have left a retained status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) on_shared: bool,
    pub(crate) on_robots: bool,
}

/// Whose link is to be told. `true`: even where it looks unchanged, since it was interrupted.
#[derive(Debug, Default)]
struct Unsaid {
    robots: HashMap<RobotId, bool>,
    wake: Arc<Notify>,
}

/// Shared by the adapter and its tasks. No lock is held across a wait.
#[derive(Debug)]
pub(crate) struct Router {
    fleet: ArcSwap<Fleet>,
    /// Changes with the fleet.
    pub(crate) fleet_changed: watch::Sender<()>,
    /// Why the command connection is down; `None` while it is up.
    down: Mutex<Option<Arc<str>>>,
    offline: Mutex<BTreeSet<RobotId>>,
    deaf: Mutex<HashMap<TenantId, Arc<str>>>,
    tracked: Mutex<HashMap<MissionId, Tracked>>,
    unsaid: Mutex<Unsaid>,
    pub(crate) shared_status_topic: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is consistent after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Router {
    pub(crate) fn new(robots: Vec<MqttRobot>, shared_status_topic: bool) -> Self {
        Self {
            fleet: ArcSwap::from_pointee(Fleet::new(robots)),
            fleet_changed: watch::Sender::new(()),
            down: Mutex::new(Some(Arc::from("the broker is not connected yet"))),
            offline: Mutex::default(),
            deaf: Mutex::default(),
            tracked: Mutex::default(),
            unsaid: Mutex::default(),
            shared_status_topic,
        }
    }

    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        self.fleet.load_full()
    }

    pub(crate) fn replace_fleet(&self, robots: Vec<MqttRobot>) {
        let fleet = Arc::new(Fleet::new(robots));
        self.fleet.store(Arc::clone(&fleet));
        lock(&self.offline).retain(|r| fleet.robots.contains_key(r));
        lock(&self.deaf).retain(|t, _| fleet.tenants.contains_key(t));
        self.fleet_changed.send_replace(());
        self.say_all(false);
    }

    /// Why a robot cannot be reached, if so.
    pub(crate) fn obstacle(&self, robot: &RobotId) -> Option<String> {
        let fleet = self.fleet.load();
        let Some(known) = fleet.robot(robot.as_str()) else {
            return Some("it is not configured on this broker".to_owned());
        };
        if let Some(reason) = &*lock(&self.down) {
            return Some(reason.to_string());
        }
        if let Some(reason) = lock(&self.deaf).get(&known.tenant) {
            return Some(reason.to_string());
        }
        self.gone(robot).map(str::to_owned)
    }

    /// Why a robot does not listen to its broker, if it or its last will said so.
    pub(crate) fn gone(&self, robot: &RobotId) -> Option<&'static str> {
        lock(&self.offline)
            .contains(robot)
            .then_some("it says itself, or its last will does, that it is offline")
    }

    pub(crate) fn link(&self, robot: &RobotId) -> Link {
        match self.obstacle(robot) {
            None => Link::Up,
            Some(reason) => Link::Down { reason },
        }
    }

    pub(crate) fn broker_up(&self) {
        if lock(&self.down).take().is_some() {
            self.say_all(true);
        }
    }

    pub(crate) fn broker_down(&self, reason: &str) {
        let was_up = lock(&self.down).replace(Arc::from(reason)).is_none();
        if was_up {
            self.say_all(false);
        }
    }

    /// A robot's own word, or its last will's. `retained`: it is an old one.
    pub(crate) fn presence(&self, tenant: &str, robot: &str, online: bool, retained: bool) {
        let fleet = self.fleet.load();
        let Some(known) = fleet.robot(robot).filter(|r| r.tenant.as_str() == tenant) else {
            return;
        };
        let changed = if online {
            lock(&self.offline).remove(robot)
        } else {
            lock(&self.offline).insert(known.robot_id.clone())
        };
        // A live "online" says that the robot has just subscribed: what found nobody there before
        // is worth another try.
        let returned = online && (changed || !retained);
        if changed || returned {
            self.say([&known.robot_id], returned);
        }
    }

    /// The broker does not let us hear a tenant's robots: commands would go out blind.
    pub(crate) fn set_deaf(&self, tenant: &str, reason: Option<&str>) {
        let Ok(tenant) = tenant.parse::<TenantId>() else {
            return;
        };
        let changed = match reason {
            Some(reason) => lock(&self.deaf).insert(tenant, Arc::from(reason)).is_none(),
            None => lock(&self.deaf).remove(&tenant).is_some(),
        };
        if changed {
            self.say_all(reason.is_none());
        }
    }

    fn say_all(&self, interrupted: bool) {
        let fleet = self.fleet.load();
        self.say(fleet.ids(), interrupted);
    }

    fn say<'a>(&self, robots: impl IntoIterator<Item = &'a RobotId>, interrupted: bool) {
        let mut unsaid = lock(&self.unsaid);
        for robot in robots {
            *unsaid.robots.entry(robot.clone()).or_default() |= interrupted;
        }
        unsaid.wake.notify_one();
    }

    /// The robots whose link may have changed since the last call; waits until there are some.
    pub(crate) async fn unsaid(&self) -> HashMap<RobotId, bool> {
        loop {
            let wake = {
                let mut unsaid = lock(&self.unsaid);
                if !unsaid.robots.is_empty() {
                    return std::mem::take(&mut unsaid.robots);
                }
                Arc::clone(&unsaid.wake)
            };
            wake.notified().await;
        }
    }

    /// Keeps the last status of a robot's mission from now on.
    pub(crate) fn track(&self, mission: &MissionId, robot: &Arc<MqttRobot>) {
        let mut tracked = lock(&self.tracked);
        if tracked.len() < MAX_TRACKED && !tracked.contains_key(mission) {
            let entry = Tracked {
                robot: Arc::clone(robot),
                last: None,
                on_shared: false,
                on_robots: false,
                asked: None,
            };
            tracked.insert(mission.clone(), entry);
        }
    }

    /// Whether a mission is known to be that of a robot that cannot have said this.
    pub(crate) fn is_of_another(&self, speaker: &Speaker, mission: &MissionId) -> bool {
        let tracked = lock(&self.tracked);
        let entry = tracked.get(mission);
        entry.is_some_and(|entry| !speaker.may_be(&entry.robot.robot_id))
    }

    /// Forgets a mission's last status and keeps it from now on; the signal comes with each status.
    /// What was heard before the question is no answer to it: the mission may have gone on since.
    pub(crate) fn ask(&self, mission: &MissionId, robot: &Arc<MqttRobot>) -> Arc<Notify> {
        self.track(mission, robot);
        let noted = Arc::<Notify>::default();
        if let Some(entry) = lock(&self.tracked).get_mut(mission) {
            entry.last = None;
            entry.asked = Some(Arc::clone(&noted));
        }
        noted
    }

    pub(crate) fn last(&self, mission: &MissionId) -> Option<Report> {
        lock(&self.tracked).get(mission)?.last.clone()
    }

    /// Notes a status, if its mission is tracked. What a robot wrote in its own branch counts
    /// more than what anybody may have written on the shared topic.
    pub(crate) fn note(&self, report: &Report) {
        let mut tracked = lock(&self.tracked);
        let Some(entry) = tracked.get_mut(&report.mission) else {
            return;
        };
        let is_own = |report: &Report| matches!(report.speaker, Speaker::Robot(_));
        let own = is_own(report);
        entry.on_robots |= own;
        entry.on_shared |= !own;
        let better_is_known = !own && entry.last.as_ref().is_some_and(is_own);
        if !better_is_known {
            entry.last = Some(report.clone());
        }
        if let Some(asked) = &entry.asked {
            asked.notify_one();
        }
    }

    /// Forgets a mission and says where it may have left something.
    pub(crate) fn forget(&self, mission: &MissionId) -> Left {
        match lock(&self.tracked).remove(mission) {
            Some(entry) => Left {
                on_shared: entry.on_shared,
                on_robots: entry.on_robots,
            },
            // Not seen since the start: it may have left something anywhere.
            None => Left {
                on_shared: self.shared_status_topic,
                on_robots: true,
            },
        }
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
