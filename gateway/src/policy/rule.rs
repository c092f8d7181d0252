//! What a rule consists of.

use portarium_identity::{SpiffeId, SpiffeIdPattern};
use portarium_protocols::{
    ids::{FleetId, RobotId},
    mission::ActionType,
};
use std::{collections::HashSet, hash::Hash};

/// An RPC of `MissionService`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named as in the contract, where each is explained
pub enum Method {
    DispatchMission,
    CancelMission,
    GetMissionStatus,
    WatchMissions,
    ConfirmMission,
    ResolveMission,
    ListRobots,
    GetRobot,
    HoldRobot,
    ReleaseRobot,
    ListPeers,
}

impl Method {
    /// All methods, in the order of the contract.
    pub const ALL: [Self; 11] = [
        Self::DispatchMission,
        Self::CancelMission,
        Self::GetMissionStatus,
        Self::WatchMissions,
        Self::ConfirmMission,
        Self::ResolveMission,
        Self::ListRobots,
        Self::GetRobot,
        Self::HoldRobot,
        Self::ReleaseRobot,
        Self::ListPeers,
    ];

    /// The name in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DispatchMission => "DispatchMission",
            Self::CancelMission => "CancelMission",
            Self::GetMissionStatus => "GetMissionStatus",
            Self::WatchMissions => "WatchMissions",
            Self::ConfirmMission => "ConfirmMission",
            Self::ResolveMission => "ResolveMission",
            Self::ListRobots => "ListRobots",
            Self::GetRobot => "GetRobot",
            Self::HoldRobot => "HoldRobot",
            Self::ReleaseRobot => "ReleaseRobot",
            Self::ListPeers => "ListPeers",
        }
    }

    /// Whether it commands a mission, so that a rule's `actions` count.
    pub fn carries_action(self) -> bool {
        matches!(
            self,
            Self::DispatchMission
                | Self::CancelMission
                | Self::ConfirmMission
                | Self::ResolveMission
        )
    }

    /// What it asks of the robot, as words after "no rule lets X".
    pub(super) fn asks(self, robot: RobotRef<'_>, action: Option<Action<'_>>) -> String {
        let robot = robot.robot;
        let action = action.map_or_else(|| "a mission".to_owned(), Action::shown);
        match self {
            Self::DispatchMission => format!("send {action} to robot {robot}"),
            Self::CancelMission => format!("cancel {action} of robot {robot}"),
            Self::ConfirmMission => format!("confirm {action} of robot {robot}"),
            Self::ResolveMission => format!("resolve {action} of robot {robot}"),
            Self::HoldRobot => format!("hold robot {robot}"),
            Self::ReleaseRobot => format!("release robot {robot}"),
            Self::GetMissionStatus
            | Self::WatchMissions
            | Self::ListRobots
            | Self::GetRobot
            | Self::ListPeers => format!("call {} for robot {robot}", self.as_str()),
        }
    }
}

/// Some of the methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodSet(u16);

impl MethodSet {
    /// Whether the method is one of them.
    pub fn contains(self, method: Method) -> bool {
        self.0 & (1 << method as u16) != 0
    }
}

impl FromIterator<Method> for MethodSet {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Self {
        Self(
            methods
                .into_iter()
                .fold(0, |set, method| set | (1 << method as u16)),
        )
    }
}

/// All, or only these.
#[derive(Debug, Clone)]
pub enum Selection<T: Eq + Hash> {
    /// `"*"`
    All,
    /// Those listed.
    Only(HashSet<T>),
}

impl<T: Eq + Hash> Selection<T> {
    fn contains(&self, one: Option<&T>) -> bool {
        match (self, one) {
            (Self::All, _) => true,
            (Self::Only(set), Some(one)) => set.contains(one),
            (Self::Only(_), None) => false,
        }
    }
}

/// The actions of a rule.
#[derive(Debug, Clone)]
pub enum Actions {
    /// None: the rule's methods have nothing to do with actions.
    None,
    /// `"*"`
    All,
    /// Those listed.
    Only {
        /// Action types other than `robot:execute_action`, whatever the action's name.
        kinds: Vec<ActionType>,
        /// Names of actions of `robot:execute_action`.
        names: HashSet<String>,
    },
}

impl Actions {
    /// A name never allows a stop, nor a type an action of the robot: the two are apart.
    pub(super) fn contain(&self, action: Action<'_>) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Only { names, .. } if action.kind == ActionType::ExecuteAction => {
                names.contains(action.name)
            }
            Self::Only { kinds, .. } => kinds.contains(&action.kind),
        }
    }
}

/// What a mission asks of a robot.
#[derive(Debug, Clone, Copy)]
pub struct Action<'a> {
    /// The mission's `action_type`.
    pub kind: ActionType,
    /// The mission's `action_name`.
    pub name: &'a str,
}

impl Action<'_> {
    /// Longest part of a caller's own text that is repeated in a reason, in characters.
    const SHOWN: usize = 100;

    fn shown(self) -> String {
        if self.kind != ActionType::ExecuteAction {
            return self.kind.as_str().to_owned();
        }
        let visible = self.name.chars().filter(|c| !c.is_control());
        visible.take(Self::SHOWN).collect()
    }
}

/// A robot and the fleet it is configured in.
#[derive(Debug, Clone, Copy)]
pub struct RobotRef<'a> {
    /// The robot.
    pub robot: &'a RobotId,
    /// Its fleet, by the configuration and not by the request.
    pub fleet: Option<&'a FleetId>,
}

/// Allows its peers the methods, on robots that both `robots` and `fleets` select, for the
/// actions.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Whom it names.
    pub peers: Vec<SpiffeIdPattern>,
    /// What they may call.
    pub methods: MethodSet,
    /// On which robots.
    pub robots: Selection<RobotId>,
    /// In which fleets; a robot without one is in `"*"` only.
    pub fleets: Selection<FleetId>,
    /// For which actions.
    pub actions: Actions,
}

impl Rule {
    pub(super) fn names(&self, id: &SpiffeId) -> bool {
        self.peers.iter().any(|pattern| pattern.matches(id))
    }

    pub(super) fn selects(&self, robot: RobotRef<'_>) -> bool {
        self.robots.contains(Some(robot.robot)) && self.fleets.contains(robot.fleet)
    }
}
