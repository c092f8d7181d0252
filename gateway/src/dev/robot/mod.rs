//! Simulated robots: one core that moves, stops and misbehaves as told, and a front for each
//! protocol.
//!
//! They are the other side of the wire: nothing of the adapters is used here, so that a mistake in
//! an adapter cannot hide behind the same mistake in its robot. What a robot really did stands in
//! its [`ExecutionLog`], whatever it said.

mod core;
mod execution_log;
pub mod grpc;
mod memory;
pub mod mqtt;
mod reports;
#[cfg(test)]
mod tests;
mod wire;

pub use self::core::{Answer, Order, SimulatedRobot};
pub use execution_log::{ExecutionLog, LogEntry, LogError, LogEvent};
pub use reports::{Reports, RobotReport};

use portarium_protocols::ids::RobotId;
use std::{str::FromStr, time::Duration};

/// What a robot is, from its start to its end.
#[derive(Debug, Clone)]
pub struct RobotConfig {
    /// Its name.
    pub id: RobotId,
    /// An idempotent robot executes an idempotency key at most once and answers a repeat with
    /// what became of it; another one executes whatever arrives, each time.
    pub idempotent: bool,
    /// What it does with a mission while it is at another one.
    pub when_busy: WhenBusy,
    /// How long it takes to stand still.
    pub deceleration: Duration,
    /// How long a mission takes that does not say so by its parameter `duration` (seconds).
    pub duration: Duration,
}

impl RobotConfig {
    /// An idempotent robot that refuses missions while it is busy, with missions of 200 ms and
    /// 20 ms to stand still.
    pub fn new(id: RobotId) -> Self {
        Self {
            id,
            idempotent: true,
            when_busy: WhenBusy::Refuse,
            deceleration: Duration::from_millis(20),
            duration: Duration::from_millis(200),
        }
    }
}

/// What a busy robot does with another mission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenBusy {
    /// Refuses it.
    Refuse,
    /// Keeps up to 16 for later.
    Queue,
}

/// How a robot behaves with the missions that arrive from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Does what it is told and says so.
    Normal,
    /// Takes ten times as long.
    Slow,
    /// Refuses every mission.
    Refuse,
    /// Begins every mission and fails at its end.
    Fail,
    /// Says everything twice.
    AnswerTwice,
    /// Does what it is told, stops and cancels too, and never says a word.
    NeverAnswer,
}

impl Behaviour {
    /// All of them by their names on the command line.
    pub const ALL: [(&'static str, Self); 6] = [
        ("normal", Self::Normal),
        ("slow", Self::Slow),
        ("refuse", Self::Refuse),
        ("fail", Self::Fail),
        ("answer-twice", Self::AnswerTwice),
        ("never-answer", Self::NeverAnswer),
    ];
}

impl FromStr for Behaviour {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(name, _)| *name == text);
        known.map(|(_, behaviour)| *behaviour).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("no such behaviour; one of {} is expected", names.join(", "))
        })
    }
}
