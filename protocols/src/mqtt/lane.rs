//! The task that keeps one of the two connections: makes it, renews it, makes it again.

use super::{
    connection::Connection,
    dial::{Dialer, Dialled, LinkError},
    handshake::Hello,
    inbox::Inbox,
    lane_state::LaneState,
    outage::Outage,
    queue::Feed,
    router::Router,
    subscriptions::{all, follow, subscribe},
};
use crate::ids::TenantId;
use portarium_identity::Lease;
use rumqttc::v5::mqttbytes::v5::RetainForwardRule;
use std::{collections::BTreeSet, future::pending, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// How long the broker keeps the statuses that arrive while we are away.
const SESSION: Duration = Duration::from_secs(3_600);
/// How long a connection that is to be closed waits for its outstanding PUBACKs.
const LINGER: Duration = Duration::from_secs(2);
/// A lease that ends this soon has no time for another attempt; a short one at half of what is
/// left from its `renew` on.
const LAST_CALL: Duration = Duration::from_secs(3);
/// What taking leave may take at most.
const LEAVE: Duration = Duration::from_millis(250);
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(5);

/// What a connection is for, and what only it needs.
pub(crate) enum Role {
    /// Commands, the copies of stops and cancels, and everything that is heard.
    Commands(Box<Inbox>),
    /// Stops and cancels at once. Listens to nothing.
    Stops {
        /// Which of the two client ids is in use.
        alternate: bool,
    },
}

pub(crate) struct Lane {
    pub(crate) role: Role,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) client_id_base: String,
    pub(crate) state: Arc<LaneState>,
    pub(crate) router: Arc<Router>,
    pub(crate) shutdown: CancellationToken,
    /// What the broker has kept was heard since the start.
    pub(crate) heard_retained: bool,
    /// No stop of a gateway that ran before this one can arrive under the other client id.
    pub(crate) predecessor_gone: bool,
    /// One connection of a broker is renewed at a time.
    pub(crate) turn: Arc<Semaphore>,
}

enum Event {
    Shutdown,
    Renew(Lease),
    FleetChanged,
}

impl Lane {
    /// Runs until shutdown.
    pub(crate) async fn run(mut self, mut feed: Feed) {
        let mut outage = Outage::new(self.name(), self.dialer.broker());
        let shutdown = self.shutdown.clone();
        let mut first = true;
        loop {
            let reason = outage.reason();
            let connected = tokio::select! {
                () = shutdown.cancelled() => break,
                connected = self.connect() => connected,
                never = feed.refuse(&reason) => match never {},
            };
            let lost = match connected {
                Ok((connection, tenants)) => {
                    self.is_up(connection.generation);
                    outage.over(connection.generation, Instant::now());
                    if !std::mem::take(&mut first) {
                        self.state.count_reconnect();
                    }
                    match self.keep(connection, tenants, &mut feed).await {
                        Ok(()) => break,
                        Err(lost) => lost,
                    }
                }
                Err(error) => error,
            };
            let pause = outage.begin(&lost, Instant::now());
            self.is_down(&outage.reason());
            let reason = outage.reason();
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep(pause) => {}
                never = feed.refuse(&reason) => match never {},
            }
        }
        let reason = "the adapter has shut down";
        self.is_down(reason);
        feed.close(reason);
    }

    fn name(&self) -> &'static str {
        match self.role {
            Role::Commands(_) => "commands",
            Role::Stops { .. } => "stops",
        }
    }

    fn is_up(&self, generation: Option<u64>) {
        self.state.up(generation);
        if matches!(self.role, Role::Commands(_)) {
            self.router.broker_up();
        }
    }

    fn is_down(&self, reason: &str) {
        self.state.down(reason);
        // A stop still goes over whichever is up; missions go over this one only.
        if matches!(self.role, Role::Commands(_)) {
            self.router.broker_down(reason);
        }
    }

    fn hello(&self) -> Hello {
        match self.role {
            Role::Commands(_) => Hello {
                client_id: format!("{}~commands", self.client_id_base),
                session: Some(SESSION),
            },
            Role::Stops { alternate } => self.stop_hello(alternate),
        }
    }

    fn stop_hello(&self, alternate: bool) -> Hello {
        Hello {
            client_id: stop_client_id(&self.client_id_base, alternate),
            session: None,
        }
    }

    fn prepare(&self) -> Next {
        match self.role {
            Role::Commands(_) => Next::Dial,
            Role::Stops { alternate } => {
                Next::Open(self.stop_hello(!alternate), Arc::clone(&self.state))
            }
        }
    }

    async fn connect(&mut self) -> Result<(Connection, BTreeSet<TenantId>), LinkError> {
        if let Role::Stops { alternate } = self.role
            && !self.predecessor_gone
        {
            let (dialled, hello) = (self.dialer.dial().await?, self.stop_hello(!alternate));
            let other = Connection::open(dialled, &hello, Arc::clone(&self.state)).await?;
            other.finish(None, Duration::ZERO).await;
            self.predecessor_gone = true;
        }
        let dialled = self.dialer.dial().await?;
        self.establish(dialled).await
    }

    /// Speaks MQTT on a dialled stream, and has the broker confirm the subscriptions: from then
    /// on no status is missed, so that commands may be sent.
    async fn establish(
        &mut self,
        dialled: Dialled,
    ) -> Result<(Connection, BTreeSet<TenantId>), LinkError> {
        let mut connection =
            Connection::open(dialled, &self.hello(), Arc::clone(&self.state)).await?;
        let retained = self.retained();
        let Role::Commands(inbox) = &mut self.role else {
            return Ok((connection, BTreeSet::new()));
        };
        inbox.connection_gone();
        let tenants = self.router.fleet().tenants();
        let shared = self.router.shared_status_topic;
        let answers = subscribe(&mut connection, &tenants, shared, &retained);
        let confirmed = timeout(SUBSCRIBE_LIMIT, all(answers));
        connection
            .serve(None, Some(inbox), confirmed)
            .await?
            .map_err(|_| LinkError::Timeout(SUBSCRIBE_LIMIT))?;
        self.heard_retained = true;
        Ok((connection, tenants))
    }

    /// All that the broker has kept comes once, after the start: it may have statuses of missions
    /// that ended meanwhile, which are then cleared. With every renewal it would drive live
    /// statuses out of the broker's queue for us, and they would be lost.
    fn retained(&self) -> RetainForwardRule {
        match self.heard_retained {
            false => RetainForwardRule::OnEverySubscribe,
            true => RetainForwardRule::OnNewSubscribe,
        }
    }

    /// Serves, and renews what it serves on, until shutdown (`Ok`) or a loss.
    async fn keep(
        &mut self,
        mut connection: Connection,
        mut tenants: BTreeSet<TenantId>,
        feed: &mut Feed,
    ) -> Result<(), LinkError> {
        let mut fleet_changed = self.router.fleet_changed.subscribe();
        fleet_changed.mark_changed();
        loop {
            let event = next_event(&self.shutdown, connection.lease, &mut fleet_changed);
            match connection
                .serve(Some(feed), self.role.inbox(), event)
                .await?
            {
                Event::Shutdown => {
                    connection.finish(self.role.inbox(), LINGER).await;
                    return Ok(());
                }
                Event::FleetChanged if matches!(self.role, Role::Commands(_)) => {
                    let wanted = self.router.fleet().tenants();
                    follow(
                        &mut connection,
                        &tenants,
                        &wanted,
                        self.router.shared_status_topic,
                    );
                    tenants = wanted;
                }
                Event::FleetChanged => {}
                Event::Renew(lease) => {
                    match self.renew(connection, lease, feed).await? {
                        Some(renewed) => (connection, tenants) = renewed,
                        None => return Ok(()),
                    }
                    fleet_changed.mark_changed();
                }
            }
        }
    }

    /// Puts a new connection in the place of one whose lease is running out; `None` on shutdown.
    async fn renew(
        &mut self,
        mut connection: Connection,
        lease: Lease,
        feed: &mut Feed,
    ) -> Result<Option<(Connection, BTreeSet<TenantId>)>, LinkError> {
        // The slow part, while the old connection goes on serving.
        let next = self.prepare();
        let deadline = last_call(lease);
        let turn = Arc::clone(&self.turn);
        let prepared = prepare_until(&self.dialer, next, turn, deadline, &self.shutdown);
        let Some((prepared, turn)) = connection
            .serve(Some(feed), self.role.inbox(), prepared)
            .await?
        else {
            connection.finish(self.role.inbox(), linger(lease)).await;
            return if self.shutdown.is_cancelled() {
                Ok(None)
            } else {
                Err(LinkError::LeaseOver)
            };
        };
        let renewed = match prepared {
            Prepared::Dialled(dialled) => {
                // One client id, one session: what arrives meanwhile waits at the broker, what is
                // to be sent waits in the queue.
                connection.finish(self.role.inbox(), linger(lease)).await;
                self.establish(*dialled).await?
            }
            Prepared::Opened(opened) => {
                if let Role::Stops { alternate } = &mut self.role {
                    *alternate = !*alternate;
                }
                // A stop never waits: the new connection serves while the old one lingers.
                tokio::spawn(connection.finish(None, linger(lease)));
                (*opened, BTreeSet::new())
            }
        };
        drop(turn);
        self.state.count_renewal();
        self.state.up(renewed.0.generation);
        info!(
            connection = self.name(),
            broker = %self.dialer.broker(),
            generation = renewed.0.generation,
            "renewed the connection"
        );
        Ok(Some(renewed))
    }
}

pub(crate) fn stop_client_id(base: &str, alternate: bool) -> String {
    let which = if alternate { "b" } else { "a" };
    format!("{base}~stop-{which}")
}

fn last_call(lease: Lease) -> Instant {
    lease.ends - LAST_CALL.min(lease.ends.saturating_duration_since(lease.renew) / 2)
}

/// How long a connection may wait for PUBACKs and still be gone before its lease ends.
fn linger(lease: Lease) -> Duration {
    let left = lease.ends.saturating_duration_since(Instant::now());
    LINGER.min(left.saturating_sub(LEAVE))
}

impl Role {
    fn inbox(&mut self) -> Option<&mut Inbox> {
        match self {
            Self::Commands(inbox) => Some(inbox),
            Self::Stops { .. } => None,
        }
    }
}

async fn next_event(
    shutdown: &CancellationToken,
    lease: Option<Lease>,
    fleet_changed: &mut tokio::sync::watch::Receiver<()>,
) -> Event {
    let renew = async {
        match lease {
            Some(lease) => {
                sleep_until(lease.renew).await;
                lease
            }
            None => pending().await,
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Event::Shutdown,
        lease = renew => Event::Renew(lease),
        Ok(()) = fleet_changed.changed() => Event::FleetChanged,
    }
}

/// How far a new connection is made before the old one gives way.
enum Next {
    Dial,
    Open(Hello, Arc<LaneState>),
}

enum Prepared {
    Dialled(Box<Dialled>),
    Opened(Box<Connection>),
}

async fn prepare(dialer: &Dialer, next: &Next) -> Result<Prepared, LinkError> {
    let dialled = dialer.dial().await?;
    match next {
        Next::Dial => Ok(Prepared::Dialled(Box::new(dialled))),
        Next::Open(hello, state) => Connection::open(dialled, hello, Arc::clone(state))
            .await
            .map(|c| Prepared::Opened(Box::new(c))),
    }
}

/// Prepares until that succeeds, in its turn; `None` when that took too long, or at shutdown.
async fn prepare_until(
    dialer: &Dialer,
    next: Next,
    turn: Arc<Semaphore>,
    deadline: Instant,
    shutdown: &CancellationToken,
) -> Option<(Prepared, OwnedSemaphorePermit)> {
    let mut outage = Outage::new("renewal", dialer.broker());
    let attempt = async {
        loop {
            // Nobody closes the semaphore.
            let Ok(turn) = Arc::clone(&turn).acquire_owned().await else {
                return pending().await;
            };
            match prepare(dialer, &next).await {
                Ok(prepared) => return (prepared, turn),
                Err(error) => {
                    drop(turn);
                    sleep(outage.begin(&error, Instant::now())).await;
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => None,
        prepared = timeout_at(deadline, attempt) => prepared.ok(),
    }
}
