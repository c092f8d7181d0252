//! Callers and operators: each call is a task that may lose patience, and hears nothing from a
//! gateway that died.

use super::{super::make, run::Run, world::World};
use crate::engine::{Cancelled, Engine, OperatorError};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{ActionType, Command, CompletionMode, MissionStatus},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

const CALLERS: [&str; 3] = [
    "spiffe://example.org/ns/control/sa/a",
    "spiffe://example.org/ns/control/sa/b",
    "spiffe://example.org/ns/other/sa/a",
];

/// What a call needs.
struct Call {
    engine: Engine,
    world: super::world::Shared,
    life: u64,
    patience: Duration,
}

impl Run {
    fn call(&self) -> Call {
        let mut world = self.world.lock();
        let patience = match world.random.u32(0..4) {
            _ if world.healed => Duration::from_secs(60),
            0 => world.millis(0..50),
            _ => world.millis(50..20_000),
        };
        Call {
            engine: self.engine(),
            world: self.world.clone(),
            life: world.life,
            patience,
        }
    }

    pub(super) fn dispatch(&self) {
        let (caller, command) = {
            let mut world = self.world.lock();
            match world.random.u32(0..100) {
                0..60 => world.new_mission(),
                60..66 => world.new_cancel_action(),
                66..74 => match world.other_content() {
                    Some((caller, command)) => {
                        drop(world);
                        return self.ask_other(caller, command);
                    }
                    None => world.new_mission(),
                },
                _ => match world.some_entry(|_| true) {
                    Some(id) => world.again(&id),
                    None => world.new_mission(),
                },
            }
        };
        self.ask(caller, command);
    }

    pub(super) fn ask(&self, caller: Arc<str>, command: Command) {
        let call = self.call();
        let command = Arc::new(command);
        tokio::spawn(async move {
            {
                let mut world = call.world.lock();
                if !world.goes_on(call.life) {
                    return;
                }
                world.ask(&caller, &command);
            }
            let asked = call.engine.dispatch(caller.clone(), (*command).clone());
            let Ok(answer) = timeout(call.patience, asked).await else {
                return call.world.lock().gave_up(&command.mission_id);
            };
            let mut world = call.world.lock();
            let id = &command.mission_id;
            if world.does(
                call.life,
                format_args!("the caller of {id} hears {answer:?}"),
            ) {
                world.answered(&caller, &command, &answer);
            }
        });
    }

    /// Asks for something else under a key or a name that was acknowledged.
    fn ask_other(&self, caller: Arc<str>, command: Command) {
        let call = self.call();
        tokio::spawn(async move {
            if !call.world.lock().goes_on(call.life) {
                return;
            }
            let asked = call.engine.dispatch(caller, command.clone());
            let Ok(answer) = timeout(call.patience, asked).await else {
                return;
            };
            let mut world = call.world.lock();
            let id = &command.mission_id;
            let heard = format_args!("who asks for another {id} hears {answer:?}");
            if world.does(call.life, heard) && answer.is_ok() {
                world.broken(format_args!("another {id} was accepted"));
            }
        });
    }

    pub(super) fn stop(&self) {
        let command = {
            let mut world = self.world.lock();
            let robot = world.some_robot();
            let kind = match world.random.u32(0..5) {
                0 => ActionType::EstopRequest,
                _ => ActionType::Stop,
            };
            // Sometimes the same once more.
            let n = self.turn - self.turn % 5;
            make::stop(robot.as_str(), &format!("s{n}-{robot}"), kind)
        };
        let call = self.call();
        tokio::spawn(async move {
            let seq = {
                let mut world = call.world.lock();
                if !world.goes_on(call.life) {
                    return;
                }
                world.ask_stop(&command)
            };
            let asked = Instant::now();
            let answer = call.engine.stop(CALLERS[0].into(), command.clone()).await;
            let mut world = call.world.lock();
            let id = &command.mission_id;
            if !world.does(
                call.life,
                format_args!("who asked for {id} hears {answer:?}"),
            ) {
                return;
            }
            if asked.elapsed() > Duration::from_millis(22) {
                let took = asked.elapsed();
                world.broken(format_args!("stop {id} was answered after {took:?}"));
            }
            match answer {
                Ok(answer) => world.stop_answered(&command, seq, &answer),
                Err(refusal) => world.broken(format_args!("stop {id} was refused: {refusal:?}")),
            }
        });
    }

    pub(super) fn cancel(&self) {
        let Some(id) = self.world.lock().some_entry(|_| true) else {
            return;
        };
        self.cancel_one(id);
    }

    pub(super) fn cancel_one(&self, id: MissionId) {
        let call = self.call();
        tokio::spawn(async move {
            let seq = {
                let mut world = call.world.lock();
                if !world.does(call.life, format_args!("somebody cancels {id}")) {
                    return;
                }
                if let Some(entry) = world.book.entries.get_mut(&id) {
                    entry.end_wanted = true;
                }
                world.trace.steps()
            };
            let asked = call.engine.cancel(&id, "");
            let Ok(answer) = timeout(call.patience, asked).await else {
                return;
            };
            let mut world = call.world.lock();
            if !world.does(call.life, format_args!("who cancels {id} hears {answer:?}")) {
                return;
            }
            match answer {
                Ok(Cancelled::Now(_)) => {
                    if let Some(entry) = world.book.entries.get_mut(&id) {
                        entry.over = true;
                    }
                }
                Ok(Cancelled::Requested) => world.cancel_promised(&id, seq),
                Ok(Cancelled::Nothing(_) | Cancelled::Unknown) | Err(_) => {}
            }
        });
    }

    pub(super) fn operate(&self) {
        let (dice, robot) = {
            let mut world = self.world.lock();
            (world.random.u32(0..10), world.some_robot())
        };
        match dice {
            0..2 => self.hold(robot),
            2..5 => self.release(robot),
            _ => self.end_what_is_unknown(),
        }
    }

    fn hold(&self, robot: RobotId) {
        let call = self.call();
        tokio::spawn(async move {
            {
                let mut world = call.world.lock();
                if !world.does(call.life, format_args!("an operator holds {robot}")) {
                    return;
                }
                world.ask_hold(&robot);
            }
            let held = timeout(call.patience, call.engine.hold(&robot, "")).await;
            let mut world = call.world.lock();
            if matches!(held, Ok(Ok(()))) && world.does(call.life, format_args!("{robot} is held"))
            {
                world.is_held(&robot);
            }
        });
    }

    pub(super) fn release(&self, robot: RobotId) {
        let call = self.call();
        tokio::spawn(async move {
            let before = {
                let mut world = call.world.lock();
                if !world.does(call.life, format_args!("an operator releases {robot}")) {
                    return;
                }
                world.ask_release(&robot)
            };
            let released = timeout(call.patience, call.engine.release(&robot)).await;
            let mut world = call.world.lock();
            if !world.goes_on(call.life) {
                return;
            }
            if let Ok(released) = released {
                world.happens(format_args!("who releases {robot} hears {released:?}"));
                if matches!(released, Err(OperatorError::State(_))) {
                    world.not_released(&robot, before);
                }
            }
        });
    }

    /// Operators look at the robots and say how missions ended.
    pub(super) fn end_what_is_unknown(&self) {
        let said = self.world.lock().what_operators_know();
        for (id, status) in said {
            let call = self.call();
            tokio::spawn(async move {
                {
                    let mut world = call.world.lock();
                    let says = format_args!("an operator says {id} {status:?}");
                    if !world.does(call.life, says) {
                        return;
                    }
                    if let Some(entry) = world.book.entries.get_mut(&id) {
                        entry.said = true;
                    }
                }
                let result = match status {
                    Some(status) => call.engine.resolve(&id, status, "").await,
                    None => call.engine.confirm(&id, "").await,
                };
                let mut world = call.world.lock();
                world.does(call.life, format_args!("who says it hears {result:?}"));
            });
        }
    }
}

impl World {
    fn some_caller(&mut self) -> Arc<str> {
        CALLERS[self.random.usize(0..CALLERS.len())].into()
    }

    fn new_mission(&mut self) -> (Arc<str>, Command) {
        let (robot, n) = (self.some_robot(), self.book.new_name());
        let mut command = match self.chance(8) {
            true => make::manual(robot.as_str(), &format!("m{n}")),
            false => make::mission(robot.as_str(), &format!("m{n}")),
        };
        if self.chance(25) {
            // Keys are a caller's own: others have the same.
            let n = self.random.u32(0..4);
            command.plan_effect_idempotency_key = format!("shared-{n}");
        }
        (self.some_caller(), command)
    }

    fn new_cancel_action(&mut self) -> (Arc<str>, Command) {
        let (robot, n) = (self.some_robot(), self.book.new_name());
        let command = make::cancel_action(robot.as_str(), &format!("c{n}"));
        (self.some_caller(), command)
    }

    /// One of the last missions that somebody asked for.
    pub(super) fn some_entry(
        &mut self,
        is_it: impl Fn(&super::book::Entry) -> bool,
    ) -> Option<MissionId> {
        // Under the keys of what is no longer kept, it would be asked for anew.
        let keeps_all = self.keeps_all();
        let mut found: Vec<(u64, MissionId)> = self
            .book
            .entries
            .iter()
            .filter(|(_, entry)| {
                is_it(entry) && (keeps_all || entry.told.is_none() || entry.is_open())
            })
            .map(|(id, entry)| (entry.seq, id.clone()))
            .collect();
        found.sort();
        let from = found.len().saturating_sub(10);
        let recent = found.split_off(from);
        // Most often the very last.
        let last = recent.last()?.1.clone();
        match self.random.u32(0..3) {
            0 => Some(last),
            _ => Some(recent[self.random.usize(0..recent.len())].1.clone()),
        }
    }

    /// The same once more, as a caller's library sends it.
    pub(super) fn again(&mut self, id: &MissionId) -> (Arc<str>, Command) {
        let (again, entry) = (self.random.bool(), &self.book.entries[id]);
        let mut command = (*entry.command).clone();
        if again {
            command.correlation_id = "another".into();
            command.requested_at = "2026-01-01T00:00:00Z".into();
        }
        (entry.caller.clone(), command)
    }

    /// Something else under a name or a key that was acknowledged.
    fn other_content(&mut self) -> Option<(Arc<str>, Command)> {
        let id = self.some_entry(|entry| entry.acked.is_some())?;
        let (dice, entry) = (self.random.u32(0..4), &self.book.entries[&id]);
        let mut command = (*entry.command).clone();
        let mut caller = entry.caller.clone();
        match dice {
            0 => drop(command.parameters.insert("x".into(), "2".into())),
            1 => {
                command.completion_mode = match command.completion_mode {
                    CompletionMode::Auto => CompletionMode::ManualOnly,
                    CompletionMode::ManualOnly => CompletionMode::Auto,
                }
            }
            2 => command.plan_effect_idempotency_key.push_str("-other"),
            _ => {
                caller = "spiffe://example.org/ns/third/sa/x".into();
                command.idempotency_key.push_str("-other");
            }
        }
        Some((caller, command))
    }

    /// The missions that wait for a person's word, and what a person finds at the robot: nothing
    /// while the robot cannot be looked at, is still at it, or has not got everything yet. `None`
    /// confirms.
    fn what_operators_know(&self) -> Vec<(MissionId, Option<MissionStatus>)> {
        let mut known = Vec::new();
        for (id, told) in &self.book.stops {
            if told.ended.is_none() && told.state.outcome_unknown {
                known.push((id.clone(), Some(MissionStatus::Failed)));
            }
        }
        for (id, entry) in &self.book.entries {
            let Some(told) = entry.told.as_ref().filter(|t| t.ended.is_none()) else {
                continue;
            };
            if told.state.awaiting_confirmation && !told.state.outcome_unknown {
                known.push((id.clone(), None));
                continue;
            }
            let robot = &self.robots[&entry.command.robot_id];
            let settled = robot.powered
                && !robot.has_mail()
                && robot.wire.is_quiet()
                && robot.since.elapsed() > Duration::from_secs(10)
                && robot.wire.since.elapsed() > Duration::from_secs(10)
                && robot.at().is_none_or(|e| e.mission != *id);
            if !told.state.outcome_unknown || !settled {
                continue;
            }
            let done = robot.executions.iter().rfind(|e| e.mission == *id);
            let status = done
                .and_then(|done| done.outcome)
                .unwrap_or(MissionStatus::Failed);
            known.push((id.clone(), Some(status)));
        }
        known
    }
}
