//! How often to try again, and how often to say so.

use super::{config::Broker, dial::LinkError};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::{info, warn};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection that held this long was a good one: the next pause is short again. One that two
/// gateways take from each other never is.
const GOOD: Duration = Duration::from_secs(10);
const SAY_EVERY: Duration = Duration::from_secs(15);

pub(crate) struct Outage {
    connection: &'static str,
    broker: Broker,
    pause: Duration,
    reason: Arc<str>,
    said: Option<Instant>,
    /// Since when it is connected.
    up: Option<Instant>,
}

impl Outage {
    pub(crate) fn new(connection: &'static str, broker: &Broker) -> Self {
        Self {
            connection,
            broker: broker.clone(),
            pause: FIRST_PAUSE,
            reason: Arc::from("the broker is not connected yet"),
            said: None,
            up: None,
        }
    }

    /// Why there is no connection, for people.
    pub(crate) fn reason(&self) -> Arc<str> {
        Arc::clone(&self.reason)
    }

    /// Another failure: says so, if it was not said lately, and how long to wait.
    pub(crate) fn begin(&mut self, error: &LinkError, now: Instant) -> Duration {
        if self.up.take().is_some_and(|up| now - up >= GOOD) {
            self.pause = FIRST_PAUSE;
            self.said = None;
        }
        self.reason = Arc::from(format!("broker {}: {error}", self.broker));
        if self.said.is_none_or(|said| now - said >= SAY_EVERY) {
            self.said = Some(now);
            warn!(connection = self.connection, broker = %self.broker, %error, "no connection to the broker");
        }
        // Jittered, so that gateways do not come back to a broker in step.
        let pause = self.pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        pause
    }

    pub(crate) fn over(&mut self, generation: Option<u64>, now: Instant) {
        self.up = Some(now);
        info!(connection = self.connection, broker = %self.broker, generation, "connected to the broker");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage() -> Outage {
        Outage::new(
            "test",
            &Broker {
                host: "b".into(),
                port: 1,
            },
        )
    }

    #[test]
    fn pauses_grow_to_two_seconds_and_shrink_only_after_a_connection_that_held() {
        let mut outage = outage();
        let now = Instant::now();
        assert!(outage.begin(&LinkError::Closed, now) <= FIRST_PAUSE);
        for _ in 0..10 {
            outage.over(None, now);
            assert!(outage.begin(&LinkError::Closed, now) <= LONGEST_PAUSE);
        }
        assert!(outage.begin(&LinkError::Closed, now) >= LONGEST_PAUSE / 2);
        outage.over(None, now);
        assert!(outage.begin(&LinkError::Closed, now + GOOD) <= FIRST_PAUSE);
    }

    #[test]
    fn the_reason_names_broker_and_cause() {
        let mut outage = outage();
        outage.begin(&LinkError::Closed, Instant::now());
        assert!(outage.reason().contains("b:1") && outage.reason().contains("closed"));
    }
}
