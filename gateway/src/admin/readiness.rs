//! Whether the gateway can do its work, and if not, why.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The components that have to be ready. A robot out of reach is no reason: the gateway works.
#[derive(Debug, Default)]
pub struct Readiness {
    standings: Mutex<BTreeMap<String, Standing>>,
}

/// How one component stands.
#[derive(Debug)]
struct Standing {
    /// Why it is not ready.
    reason: Option<String>,
    /// Why it will not be, unless something is done.
    warning: Option<String>,
    /// Before it was ready for the first time, not being ready is no news for a warning.
    started: bool,
}

/// The place of one component. Not ready until it says so.
#[derive(Debug)]
pub struct Component {
    name: String,
    readiness: Arc<Readiness>,
}

impl Readiness {
    /// Without components, and therefore ready: register all before anything is served.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a component (`identity`, `journal`, `mqtt.main` and so on) that is starting.
    pub fn component(self: &Arc<Self>, name: impl Into<String>) -> Component {
        let name = name.into();
        let standing = Standing {
            reason: Some("starting".to_owned()),
            warning: None,
            started: false,
        };
        self.lock().insert(name.clone(), standing);
        Component {
            name,
            readiness: Arc::clone(self),
        }
    }

    /// Each component that is not ready, with the reason.
    pub fn reasons(&self) -> Vec<(String, String)> {
        let standings = self.lock();
        let set = standings
            .iter()
            .filter_map(|(name, standing)| Some((name.clone(), standing.reason.clone()?)));
        set.collect()
    }

    /// Each component that works, and will not for long, with the reason.
    pub fn warnings(&self) -> Vec<(String, String)> {
        let standings = self.lock();
        let set = standings
            .iter()
            .filter_map(|(name, standing)| Some((name.clone(), standing.warning.clone()?)));
        set.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Standing>> {
        self.standings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, name: &str, reason: Option<String>, warning: Option<String>) {
        let mut standings = self.lock();
        let Some(standing) = standings.get_mut(name) else {
            return;
        };
        standing.warning = warning;
        if standing.reason == reason {
            return;
        }
        standing.reason.clone_from(&reason);
        let started = standing.started;
        standing.started |= reason.is_none();
        drop(standings);
        match reason {
            Some(reason) if started => tracing::warn!(component = name, "not ready: {reason}"),
            Some(reason) => tracing::info!(component = name, "not ready yet: {reason}"),
            None => tracing::info!(component = name, "ready"),
        }
    }
}

impl Component {
    /// The component works.
    pub fn ready(&self) {
        self.readiness.set(&self.name, None, None);
    }

    /// The component works, and will not for long, for a reason that people can act on.
    pub fn degraded(&self, reason: impl fmt::Display) {
        self.readiness.set(&self.name, None, Some(one_line(reason)));
    }

    /// It does not, for a reason that people can act on; kept on one line.
    pub fn not_ready(&self, reason: impl fmt::Display) {
        self.readiness.set(&self.name, Some(one_line(reason)), None);
    }
}

fn one_line(reason: impl fmt::Display) -> String {
    reason.to_string().replace(char::is_control, " ")
}

/// What is no longer there keeps nobody from being ready.
impl Drop for Component {
    fn drop(&mut self) {
        self.readiness.lock().remove(&self.name);
    }
}
