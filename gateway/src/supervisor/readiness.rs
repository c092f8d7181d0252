//! Keeps the readiness of identity, brokers and reconciliation up to date.

use super::adapters::Adapters;
use crate::{
    admin::{Component, Readiness},
    engine::Engine,
    metrics::AdapterSample,
};
use portarium_identity::{IdentityState, SvidManager, token::TokenKeys};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, interval};

/// How often it is looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// How often connections are looked at; there are two for each robot.
const LAG_PERIOD: Duration = Duration::from_secs(5);

/// Connections are renewed a while after the SVID, and so are usually one generation behind for a while.
const USUAL_LAG: u64 = 1;

/// After a start, robots that can be reached but do not say what became of their missions keep
/// the gateway from being ready for this long; after that the others are served.
const RECONCILE_PATIENCE: Duration = Duration::from_secs(30);

/// Follows the identity until the process ends.
pub(super) async fn identity(manager: SvidManager, component: Component) {
    let mut ticks = interval(PERIOD);
    let mut snapshots = manager.snapshots();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = snapshots.changed() => {}
        }
        // In this order: the state tells then why there is none.
        let none = manager.current().is_none();
        match manager.state() {
            IdentityState::Ready => match manager.renewal_overdue() {
                Some(overdue) => component.degraded(overdue),
                None => component.ready(),
            },
            state @ IdentityState::ClockInDoubt(_) => component.not_ready(state),
            state if none => component.not_ready(state),
            // The last good SVID still serves.
            _ => component.ready(),
        }
    }
}

/// Keeps the keys of the issuer of tokens up to date until the process ends. Without any, calls that
/// need a token are refused; stops reach a gateway that is ready, so that it is, unless they need one
/// as well.
pub(super) async fn tokens(keys: Arc<TokenKeys>, stops: bool, component: Component) {
    let looked_at = async {
        let mut ticks = interval(PERIOD);
        loop {
            ticks.tick().await;
            let problem = keys.problem();
            if keys.current().is_some() {
                match problem {
                    None => component.ready(),
                    Some(why) => component.degraded(format!(
                        "the keys of the issuer of access tokens cannot be renewed: {why}"
                    )),
                }
                continue;
            }
            let why = problem.unwrap_or_else(|| "none came yet".to_owned());
            let why = format!("no keys of the issuer of access tokens: {why}");
            if stops {
                component.not_ready(why);
            } else {
                component.degraded(why);
            }
        }
    };
    tokio::select! {
        never = keys.follow() => match never {},
        () = looked_at => {}
    }
}

/// Tells which adapters stay behind with their connections, until the process ends. They serve all the
/// same, and end with their certificates at the latest.
pub(super) async fn lag(
    adapters: Arc<Adapters>,
    identity: Option<SvidManager>,
    component: Component,
) {
    let mut ticks = interval(LAG_PERIOD);
    loop {
        ticks.tick().await;
        let current = identity.as_ref().and_then(SvidManager::current);
        let behind = current.and_then(|svid| behind(&adapters.samples(), svid.generation));
        match behind {
            Some(behind) => component.degraded(behind),
            None => component.ready(),
        }
    }
}

/// Those that are behind by more than usual.
fn behind(adapters: &[AdapterSample], current: u64) -> Option<String> {
    let told = adapters.iter().filter_map(|adapter| {
        let generation = adapter.svid_generation?;
        let lag = current.saturating_sub(generation);
        let name = &adapter.adapter;
        (lag > USUAL_LAG)
            .then(|| format!("{name} runs on SVID generation {generation}, {lag} behind"))
    });
    let told: Vec<_> = told.collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Follows brokers and reconciliation until the process ends.
pub(super) async fn adapters(adapters: Arc<Adapters>, engine: Engine, readiness: Arc<Readiness>) {
    let brokers: Vec<_> = adapters
        .brokers()
        .map(|(name, _)| (name.clone(), readiness.component(format!("mqtt.{name}"))))
        .collect();
    let mut reconcile = Some(readiness.component("reconcile"));
    let started = Instant::now();
    let mut ticks = interval(PERIOD);
    loop {
        ticks.tick().await;
        for ((_, connected), (name, component)) in adapters.brokers().zip(&brokers) {
            if connected {
                component.ready();
            } else {
                component.not_ready(format!("broker {name} is not connected; the log says why"));
            }
        }
        if let Some(component) = &reconcile {
            let waiting = engine.unreconciled();
            if waiting == 0 || started.elapsed() > RECONCILE_PATIENCE {
                reconcile = None;
            } else {
                component.not_ready(format!(
                    "{waiting} robots are being asked what became of their missions"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_more_than_one_generation_behind_is_named() {
        let adapter = |name: &str, svid_generation| AdapterSample {
            adapter: name.into(),
            connected: true,
            svid_generation,
        };
        let usual = [adapter("mqtt.main", Some(4)), adapter("grpc", None)];
        assert_eq!(behind(&usual, 5), None);
        let late = [adapter("mqtt.main", Some(2)), adapter("grpc", Some(1))];
        let told = behind(&late, 4).unwrap_or_default();
        let first = "mqtt.main runs on SVID generation 2, 2 behind";
        assert_eq!(
            told,
            format!("{first}; grpc runs on SVID generation 1, 3 behind")
        );
    }
}
