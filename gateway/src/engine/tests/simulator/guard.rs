//! Stops, cancels and operators: what was asked, and what was said to be durable.

use super::{book::StopDue, world::World};
use crate::engine::Stopped;
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{ActionType, Command},
};
use tokio::time::Instant;

impl World {
    pub(super) fn ask_stop(&mut self, command: &Command) -> u64 {
        let robot = &command.robot_id;
        self.happens(format_args!(
            "somebody asks for {} {} of {robot}",
            command.action_type.as_str(),
            command.mission_id
        ));
        let seq = self.trace.steps();
        let guard = self.book.guard(robot);
        guard.fence.0 = seq;
        guard.fenced_at = Some(Instant::now());
        guard.latch.0 |= command.action_type == ActionType::EstopRequest;
        guard.stops.push(StopDue {
            seq,
            at: Instant::now(),
            durable: false,
            lost: false,
        });
        self.want_ends(robot);
        seq
    }

    /// Somebody wants whatever the robot is at to end.
    pub(super) fn want_ends(&mut self, robot: &RobotId) {
        for entry in self.book.entries.values_mut() {
            entry.end_wanted |= entry.command.robot_id == *robot;
        }
    }

    pub(super) fn stop_answered(&mut self, command: &Command, seq: u64, answer: &Stopped) {
        let guard = self.book.guard(&command.robot_id);
        if !answer.fence_durable {
            return;
        }
        guard.fence.1 = guard.fence.1.max(seq);
        guard.latch.1 |= guard.latch.0 && command.action_type == ActionType::EstopRequest;
        for stop in guard.stops.iter_mut().filter(|stop| stop.seq == seq) {
            stop.durable = true;
        }
    }

    /// A cancel was promised to reach the robot.
    pub(super) fn cancel_promised(&mut self, mission: &MissionId, seq: u64) {
        let Some(entry) = self.book.entries.get_mut(mission) else {
            return;
        };
        entry.end_promised = true;
        if entry.cancel_reached < seq {
            entry.cancel_due = Some((seq, Instant::now()));
        }
    }

    pub(super) fn ask_hold(&mut self, robot: &RobotId) {
        self.book.guard(robot).hold.0 = true;
    }

    /// It is held, unless somebody has asked for its release since.
    pub(super) fn is_held(&mut self, robot: &RobotId) {
        let guard = self.book.guard(robot);
        guard.hold.1 |= guard.hold.0;
    }

    /// From now on it is not known what holds; returned is what did, and the release's name.
    pub(super) fn ask_release(&mut self, robot: &RobotId) -> (u64, bool, bool) {
        let seq = self.trace.steps();
        let guard = self.book.guard(robot);
        let before = (seq, guard.latch.1, guard.hold.1);
        guard.latch = (false, false);
        guard.hold = (false, false);
        guard.release = seq;
        before
    }

    /// It holds after all, unless somebody else has asked for its release meanwhile.
    pub(super) fn not_released(&mut self, robot: &RobotId, before: (u64, bool, bool)) {
        let (seq, latched, held) = before;
        let guard = self.book.guard(robot);
        if guard.release == seq {
            guard.latch.0 |= latched;
            guard.latch.1 |= latched;
            guard.hold.0 |= held;
            guard.hold.1 |= held;
        }
    }
}
