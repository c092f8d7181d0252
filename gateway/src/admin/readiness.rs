//! Whether the gateway can do its work, and if not, why.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The components that have to be ready. A robot out of reach is no reason: the gateway works.
#[derive(Debug, Default)]
pub struct Readiness {
    reasons: Mutex<BTreeMap<String, Option<String>>>,
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
        self.lock()
            .insert(name.clone(), Some("starting".to_owned()));
        Component {
            name,
            readiness: Arc::clone(self),
        }
    }

    /// Each component that is not ready, with the reason.
    pub fn reasons(&self) -> Vec<(String, String)> {
        let reasons = self.lock();
        let set = reasons
            .iter()
            .filter_map(|(name, reason)| Some((name.clone(), reason.clone()?)));
        set.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, name: &str, reason: Option<String>) {
        let mut reasons = self.lock();
        let Some(current) = reasons.get_mut(name) else {
            return;
        };
        if *current == reason {
            return;
        }
        *current = reason.clone();
        drop(reasons);
        match reason {
            Some(reason) => tracing::warn!(component = name, "not ready: {reason}"),
            None => tracing::info!(component = name, "ready"),
        }
    }
}

impl Component {
    /// The component works.
    pub fn ready(&self) {
        self.readiness.set(&self.name, None);
    }

    /// It does not, for a reason that people can act on; kept on one line.
    pub fn not_ready(&self, reason: impl fmt::Display) {
        let reason = reason.to_string().replace(char::is_control, " ");
        self.readiness.set(&self.name, Some(reason));
    }
}

/// What is no longer there keeps nobody from being ready.
impl Drop for Component {
    fn drop(&mut self) {
        self.readiness.lock().remove(&self.name);
    }
}
