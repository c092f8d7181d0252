//! From the first SVID to the last commit.

use super::{
    Gateway, Orders,
    adapters::Adapters,
    descriptors,
    observe::{self, Observer},
    readiness,
    reload::{Reloader, recheck_callers},
};
use crate::{
    admin,
    clock::SystemClock,
    engine::{Engine, Limits, World},
    journal::Opened,
    north::{SERVICE, STREAMS, Service, Tokens},
};
use anyhow::{Context as _, anyhow, bail};
use arc_swap::ArcSwap;
use portarium_protocols::grpc::{
    ALPN, Connections,
    server::{self, ServerLimits},
};
use std::{sync::Arc, thread, time::Duration};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

/// Updates of all adapters that may wait for the engine.
const UPDATES: usize = 4096;

/// The least time that the journal and the audit get for their last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

impl Gateway {
    /// Serves until told to stop, then drains. Health and metrics are served from the start, the
    /// mission service once there is an SVID.
    ///
    /// # Errors
    /// Where something that has to run ended by itself.
    pub async fn serve(self, orders: Orders) -> anyhow::Result<()> {
        let Self {
            config,
            listeners,
            journal,
            audit,
            identity,
            token_keys,
            metrics,
            readiness,
        } = self;
        let grace = config.engine.shutdown_grace;
        let quiet = CancellationToken::new();
        // Ends the mission service; later than `orders.stop`, which ends new missions.
        let close = CancellationToken::new();
        let mut tasks = Tasks::default();
        let health = TcpListener::from_std(listeners.health)?;
        tasks.run(
            "health",
            admin::serve_health(health, readiness.clone(), quiet.clone()),
        );
        let admin = TcpListener::from_std(listeners.admin)?;
        tasks.run(
            "admin",
            admin::serve_admin(admin, metrics.clone(), quiet.clone()),
        );
        let service_ready = readiness.component("grpc");
        let snapshot = match &identity {
            None => {
                tracing::warn!(
                    "development = true: plaintext, and whoever is on this machine may call; never for production"
                );
                None
            }
            Some(manager) => {
                metrics.ask_identity({
                    let manager = manager.clone();
                    move || observe::identity(&manager)
                });
                let component = readiness.component("identity");
                tasks.run("identity", readiness::identity(manager.clone(), component));
                tokio::select! {
                    snapshot = manager.ready() => Some(snapshot),
                    () = orders.stop.cancelled() => return Ok(()),
                    ended = tasks.ended() => bail!(ended),
                }
            }
        };
        let with = identity.as_ref().zip(snapshot.as_deref());
        let Opened {
            journal,
            mut writer,
            loaded,
        } = journal;
        let (updates, received) = mpsc::channel(UPDATES);
        let adapters = Arc::new(Adapters::start(&config, with, &updates)?);
        let observer = Arc::new(Observer {
            metrics: metrics.clone(),
            audit: audit.clone(),
        });
        let world = World {
            clock: Arc::new(SystemClock),
            observer: observer.clone(),
            limits: Limits {
                open_missions: config.engine.open_missions_at_most,
            },
        };
        let specs = adapters.specs(&config.reloadable.robots);
        let engine = Engine::start(world, journal, loaded, specs, received)?;
        writer.observe(engine.observer());
        let writer = Ending::of(
            writer
                .spawn()
                .context("cannot start the journal's thread")?,
        );

        let connections = Connections::telling({
            let audit = audit.clone();
            move |remote, admission| observe::admission(&audit, remote, &admission)
        });
        let policy = Arc::new(ArcSwap::from_pointee(config.reloadable.policy.clone()));
        let tls = identity
            .as_ref()
            .map(|manager| manager.server_tls(config.reloadable.policy.peer_policy(), ALPN));
        let standing = observe::standing(&connections, &adapters, identity.clone());
        metrics.ask(observe::sources(
            &connections,
            &adapters,
            &engine,
            &audit,
            standing.clone(),
        ));
        let tokens = config.tokens.as_ref().zip(token_keys).zip(identity.clone());
        let tokens = tokens.map(|((config, keys), identity)| {
            let component = readiness.component("tokens");
            tasks.run(
                "tokens",
                readiness::tokens(keys.clone(), config.stops, component),
            );
            Arc::new(Tokens::new(config, keys, identity, observer.clone()))
        });
        let service = Service::new(
            engine.clone(),
            policy.clone(),
            audit.clone(),
            config.development,
            tokens,
            observer,
            close.clone(),
        )
        .asking(standing);
        let (routes, health) = service.routes().context("reflection")?;
        health
            .set_service_status(SERVICE, ServingStatus::Serving)
            .await;
        let listener = TcpListener::from_std(listeners.grpc)?;
        let address = listener.local_addr()?;
        let usual = ServerLimits {
            max_streams: STREAMS,
            ..ServerLimits::default()
        };
        let limits = descriptors::for_callers(usual, config.reloadable.robots.len());
        let serving = tokio::spawn(server::serve(
            listener,
            tls.clone(),
            routes,
            limits,
            connections.clone(),
            close.clone(),
        ));
        let follow = readiness::adapters(adapters.clone(), engine.clone(), readiness.clone());
        let follow_lag = readiness::lag(
            adapters.clone(),
            identity.clone(),
            readiness.component("adapters"),
        );
        tasks.run("lag", follow_lag);
        tasks.run("readiness", follow);
        if let Some((manager, tls)) = identity.as_ref().zip(tls.as_ref()) {
            let recheck = recheck_callers(manager.clone(), tls.clone(), connections.clone());
            tasks.run("recheck", recheck);
        }
        let reloader = Reloader {
            config,
            adapters: adapters.clone(),
            engine: engine.clone(),
            policy,
            identity: identity.clone(),
            tls,
            connections,
            audit: audit.clone(),
        };
        tasks.run("reload", reloader.run(orders.reload.clone()));
        service_ready.ready();
        tracing::info!(%address, "serving missions");

        let mut serving = serving;
        let failure = tokio::select! {
            () = orders.stop.cancelled() => None,
            ended = tasks.ended() => Some(ended),
            task = adapters.ended() => Some(format!("task {task} ended by itself")),
            () = writer.wait() => Some("the journal's writer ended by itself".to_owned()),
            ended = &mut serving => Some(server_failure(ended)),
        };
        orders.stop.cancel();
        let shutdown = readiness.component("shutdown");
        shutdown.not_ready("the gateway is shutting down");
        let deadline = Instant::now() + grace;
        // No new missions, while stops and cancels are still served; then what is on the
        // connections comes to its end.
        let drained = async {
            engine.drain().await;
            close.cancel();
            end_health(health).await;
            if !serving.is_finished() {
                // How the service ends does not matter any more.
                let _ = (&mut serving).await;
            }
        };
        if timeout_at(deadline, drained).await.is_err() {
            tracing::warn!(
                ?grace,
                "not everything came to an end within engine.shutdown_grace; the journal has it"
            );
        }
        close.cancel();
        serving.abort();
        adapters.shutdown().await;
        tasks.stop().await;
        engine.close().await;
        let last = deadline.max(Instant::now() + LAST_LINES);
        if timeout_at(last, writer.wait()).await.is_err() {
            tracing::error!("the journal could not write its last lines");
        }
        if let Some(manager) = &identity {
            manager.shutdown().await;
        }
        quiet.cancel();
        audit.close(LAST_LINES);
        match failure {
            None => {
                tracing::info!("ended");
                Ok(())
            }
            Some(failure) => Err(anyhow!(failure)),
        }
    }
}

/// Tells those who watch the health, and ends their streams, which would end with their callers
/// alone.
async fn end_health(mut health: HealthReporter) {
    for service in ["", SERVICE] {
        health
            .set_service_status(service, ServingStatus::NotServing)
            .await;
        health.clear_service_status(service).await;
    }
}

fn server_failure<E: std::error::Error + 'static>(
    ended: Result<Result<(), E>, tokio::task::JoinError>,
) -> String {
    match ended {
        Ok(Ok(())) => "the mission service ended by itself".into(),
        Ok(Err(error)) => format!(
            "the mission service failed: {}",
            portarium_identity::error_chain(&error)
        ),
        Err(error) => format!("the mission service failed: {error}"),
    }
}

/// Tasks that have to run for as long as the gateway serves.
#[derive(Default)]
struct Tasks(JoinSet<&'static str>);

impl Tasks {
    fn run(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until one ends, and says which.
    async fn ended(&mut self) -> String {
        match self.0.join_next().await {
            Some(Ok(name)) => format!("task {name} ended by itself"),
            Some(Err(error)) => format!("a task failed: {error}"),
            None => std::future::pending().await,
        }
    }

    async fn stop(&mut self) {
        self.0.shutdown().await;
    }
}

/// The end of a thread, to be waited for by tasks.
struct Ending(CancellationToken);

impl Ending {
    fn of(thread: thread::JoinHandle<()>) -> Self {
        let token = CancellationToken::new();
        let ended = token.clone();
        // A thread that waits for a thread costs nothing; a panic there counts as an end.
        thread::spawn(move || {
            let _guard = ended.drop_guard();
            thread.join().ok();
        });
        Self(token)
    }

    async fn wait(&self) {
        self.0.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_task_that_ends_by_itself_is_named_and_the_others_are_not() {
        let mut tasks = Tasks::default();
        tasks.run("lasts", std::future::pending());
        tasks.run("fails", async {});
        assert_eq!(tasks.ended().await, "task fails ended by itself");
        let none = tokio::time::timeout(Duration::from_millis(10), tasks.ended()).await;
        assert!(none.is_err());
        tasks.stop().await;
    }
}
