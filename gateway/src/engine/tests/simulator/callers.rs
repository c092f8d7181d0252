//! Callers and operators: each call is a task that may lose patience, and hears nothing from a
//! gateway that died.

use super::{super::make, run::Run};
use crate::engine::{Cancelled, Engine, OperatorError};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{ActionType, Command},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

pub(super) const CALLERS: [&str; 3] = [
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
    /// When it comes; at once, or in the middle of something.
    moment: Option<Arc<Notify>>,
}

impl Call {
    async fn moment(&self) {
        if let Some(moment) = &self.moment {
            // Nothing may be happening.
            let _ = timeout(Duration::from_secs(1), moment.notified()).await;
        }
    }
}

impl Run {
    fn call(&self) -> Call {
        let mut world = self.world.lock();
        let patience = match world.random.u32(0..4) {
            _ if world.healed => Duration::from_secs(60),
            0 => world.millis(0..50),
            _ => world.millis(50..20_000),
        };
        let moment = match !world.healed && world.chance(40) {
            true => {
                let effects = world.random.u64(0..25);
                Some(world.moment_in(effects))
            }
            false => None,
        };
        Call {
            engine: self.engine(),
            world: self.world.clone(),
            life: world.life,
            patience,
            moment,
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
            call.moment().await;
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
        let id = {
            let mut world = self.world.lock();
            // What is just being handed over is the hardest to call back.
            let in_hand = match world.random.bool() {
                true => world.some_entry(|entry| entry.in_hand),
                false => None,
            };
            in_hand.or_else(|| world.some_entry(|_| true))
        };
        if let Some(id) = id {
            self.cancel_one(id);
        }
    }

    pub(super) fn cancel_one(&self, id: MissionId) {
        let call = self.call();
        tokio::spawn(async move {
            call.moment().await;
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
