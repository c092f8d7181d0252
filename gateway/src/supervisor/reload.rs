//! Taking over a changed file: whole, or not at all.

use super::{Reload, adapters::Adapters};
use crate::{
    audit::Audit,
    config::{Config, Reloadable},
    engine::{Engine, RobotSpec},
    policy::Policy,
};
use arc_swap::ArcSwap;
use portarium_identity::{ServerTls, SvidManager};
use portarium_protocols::grpc::Connections;
use std::{collections::HashMap, path::Path, sync::Arc, time::SystemTime};

/// What a reload changes.
pub(super) struct Reloader {
    pub(super) config: Config,
    pub(super) adapters: Arc<Adapters>,
    pub(super) engine: Engine,
    pub(super) policy: Arc<ArcSwap<Policy>>,
    pub(super) identity: Option<SvidManager>,
    pub(super) tls: Option<ServerTls>,
    pub(super) connections: Arc<Connections>,
    pub(super) audit: Audit,
}

impl Reloader {
    /// Reads the file again whenever that is wanted.
    pub(super) async fn run(mut self, reload: Option<Reload>) {
        let Some(reload) = reload else {
            return std::future::pending().await;
        };
        loop {
            reload.wanted.notified().await;
            let file = reload.file.clone();
            // It reads a file and verifies every caller again: not on a thread that serves.
            let reloaded = tokio::task::spawn_blocking(move || {
                let refused = self.reload(&file).err();
                (self, refused)
            });
            let refused;
            (self, refused) = match reloaded.await {
                Ok(reloaded) => reloaded,
                Err(error) => {
                    tracing::error!(%error, "the reload failed");
                    return;
                }
            };
            self.audit.reloaded(SystemTime::now(), refused.as_deref());
            match refused {
                Some(reason) => {
                    tracing::error!("{reason}; the old robots and policy stay in force");
                }
                None => tracing::info!(
                    robots = self.config.reloadable.robots.len(),
                    rules = self.config.reloadable.policy.rules(),
                    "robots and policy reloaded"
                ),
            }
        }
    }

    /// The reason why nothing was taken over, in case.
    fn reload(&mut self, file: &Path) -> Result<(), String> {
        let next = Config::reload_from(file, &self.config).map_err(|error| error.to_string())?;
        self.take(next)
            .map_err(|error| format!("{}: {error:#}", file.display()))
    }

    /// Where anything is refused, nothing has been touched. Robots that move, or are new, are out of
    /// the engine's reach until the adapters have their addresses: nothing goes to an old one, and
    /// no link is torn down under a mission.
    fn take(&mut self, next: Reloadable) -> anyhow::Result<()> {
        let shares = self.adapters.shares(&next.robots)?;
        let specs = self.adapters.specs(&next.robots);
        self.engine.check_robots(&specs)?;
        let before = self.adapters.specs(&self.config.reloadable.robots);
        self.engine.replace_robots(staying(&before, &specs))?;
        self.adapters.replace(shares)?;
        self.engine.replace_robots(specs)?;
        self.policy.store(Arc::new(next.policy.clone()));
        if let Some(identity) = &self.identity {
            identity.deny(next.denied.clone());
        }
        if let Some(tls) = &self.tls {
            tls.replace_policy(next.policy.peer_policy());
            let cut = self.connections.recheck(tls);
            if cut > 0 {
                tracing::info!(
                    cut,
                    "connections of callers that the policy no longer admits"
                );
            }
        }
        self.config.reloadable = next;
        Ok(())
    }
}

/// Those of the next robots that are where they were.
fn staying(before: &[RobotSpec], next: &[RobotSpec]) -> Vec<RobotSpec> {
    let before: HashMap<_, _> = before.iter().map(|s| (&s.id, &s.address)).collect();
    let stays = |spec: &&RobotSpec| before.get(&spec.id) == Some(&&spec.address);
    next.iter().filter(stays).cloned().collect()
}

/// Cuts callers that no longer verify, whenever the SVID or the bundles change: after an
/// authority was revoked, a bundle removed, or our own entry deleted.
pub(super) async fn recheck_callers(
    identity: SvidManager,
    tls: ServerTls,
    connections: Arc<Connections>,
) {
    let mut snapshots = identity.snapshots();
    while snapshots.changed().await.is_ok() {
        let (tls, connections) = (tls.clone(), connections.clone());
        // A signature or two for each connection: not on a thread that serves.
        let checked = tokio::task::spawn_blocking(move || connections.recheck(&tls)).await;
        match checked {
            Ok(0) => {}
            Ok(cut) => tracing::warn!(cut, "connections of callers that no longer verify are cut"),
            Err(error) => tracing::error!(%error, "callers could not be checked again"),
        }
    }
}
