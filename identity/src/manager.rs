//! The SVID manager.
use crate::{
    ClientTls, IdentityError, IdentityState, IdentityStats, JwtSvidSource, JwtSvids, PeerPolicy,
    RenewalOverdue, ServerTls, Snapshot, SpiffeIdPattern,
    follow::{endpoint, follow},
    shared::Shared,
    stats::Counters,
};
use arc_swap::ArcSwap;
use spiffe::transport::Endpoint;
use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often the state and the SVID's end are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What a wall clock is adjusted by at once, and leases leave room for.
const JUMP: Duration = Duration::from_secs(1);
/// How long a follower that ended is left down.
const RESTART: Duration = Duration::from_millis(500);

/// Where SVIDs come from and which one is ours.
#[derive(Debug, Clone)]
pub struct SvidConfig {
    /// `unix:///path`; `None`: from `SPIFFE_ENDPOINT_SOCKET`.
    pub endpoint_socket: Option<String>,
    /// The hint of the wanted SVID. `None`: there must be exactly one SVID.
    pub hint: Option<String>,
    /// How long before an SVID's end its successor has to be there, or a twelfth of its life
    /// before, if that is less: then the manager asks by itself and says what is wrong
    /// ([`SvidManager::renewal_overdue`]).
    pub renew_before: Duration,
}

impl Default for SvidConfig {
    fn default() -> Self {
        Self {
            endpoint_socket: None,
            hint: None,
            renew_before: Duration::from_secs(5 * 60),
        }
    }
}

/// The one source of identity. Cheap to clone; all clones share one Workload API stream, which
/// ends with the last of them (and of the [`ClientTls`] and [`ServerTls`] made from them).
///
/// While renewal fails the last good SVID stays until its NotAfter. It goes at once when the agent
/// says that it is ours no longer: with PermissionDenied, or with an update that lacks it. There
/// is no grace: an agent that restarts does not answer that way, it does not answer at all.
#[derive(Clone)]
pub struct SvidManager {
    running: Arc<Running>,
}

struct Running {
    endpoint: Endpoint,
    hint: Option<String>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl SvidManager {
    /// Starts following the Workload API in the background; never waits.
    pub fn start(config: SvidConfig) -> Result<Self, IdentityError> {
        let endpoint = endpoint(config.endpoint_socket.as_deref())?;
        let runtime = Handle::try_current().map_err(|_| IdentityError::NoRuntime)?;
        let running = Running {
            endpoint: endpoint.clone(),
            hint: config.hint.clone(),
            shared: Arc::new(Shared::new(config.hint, config.renew_before)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let shared = Arc::clone(&running.shared);
        let start = move || follow(Arc::clone(&shared), Endpoint::clone(&endpoint));
        let supervisor = supervise(Arc::clone(&running.shared), running.stop.clone(), start);
        running.tasks.spawn_on(supervisor, &runtime);
        running.tasks.close();
        Ok(Self {
            running: Arc::new(running),
        })
    }

    /// The last good snapshot, also while renewal fails; `None` before the first and once it has
    /// expired or was withdrawn.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.shared().current()
    }

    /// The snapshot for a handshake: none is made while the wall clock is in doubt.
    pub(crate) fn for_handshake(&self) -> Result<Arc<Snapshot>, IdentityError> {
        let state = self.state();
        match (state, self.current()) {
            (state @ IdentityState::ClockInDoubt(_), _) | (state, None) => {
                Err(IdentityError::NotReady(state))
            }
            (_, Some(snapshot)) => Ok(snapshot),
        }
    }

    /// Whether a snapshot's SVID has ended, on either clock.
    pub(crate) fn is_over(&self, snapshot: &Snapshot) -> bool {
        snapshot.is_over(self.time(), Instant::now())
    }

    /// The time of day that certificates are judged by.
    pub fn time(&self) -> SystemTime {
        self.shared().clock.now().time
    }

    /// How things stand.
    pub fn state(&self) -> IdentityState {
        self.shared().state()
    }

    /// What keeps renewal from working, also while the last good SVID is still good; `None` while
    /// the Workload API answers.
    pub fn renewal_problem(&self) -> Option<IdentityState> {
        self.shared().problem()
    }

    /// What is wrong with a renewal that should be here by now, while the SVID still serves.
    pub fn renewal_overdue(&self) -> Option<RenewalOverdue> {
        self.shared().overdue()
    }

    /// Level-triggered: the value changes with each new snapshot, and to `None` on withdrawal and
    /// expiry. It also counts as changed when the time of day has jumped ahead of the leases' clock.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.shared().snapshot.subscribe()
    }

    /// Lets nobody in, on either side and whatever another policy says, who matches one of these,
    /// and has connections with them end: from now on, until the next call.
    pub fn deny(&self, patterns: Vec<SpiffeIdPattern>) {
        self.shared().deny(PeerPolicy::new(patterns));
    }

    /// Waits until an SVID is there.
    pub async fn ready(&self) -> Arc<Snapshot> {
        let mut snapshots = self.snapshots();
        loop {
            if let Some(snapshot) = self.current() {
                return snapshot;
            }
            // The sender lives in `self`.
            let _ = snapshots.changed().await;
        }
    }

    /// What was counted since the start.
    pub fn stats(&self) -> IdentityStats {
        self.shared().counters.read()
    }

    /// The client's side of mutual TLS towards peers that the policy admits.
    pub fn client_tls(&self, policy: PeerPolicy, alpn: &[&[u8]]) -> ClientTls {
        ClientTls::new(self.clone(), policy, alpn)
    }

    /// The server's side of mutual TLS for peers that the policy admits.
    pub fn server_tls(&self, policy: PeerPolicy, alpn: &[&[u8]]) -> ServerTls {
        ServerTls::new(self.clone(), policy, alpn)
    }

    /// Our JWT-SVIDs for this audience; none is there before they are followed.
    pub fn jwt_svids(&self, audience: String) -> JwtSvids {
        let (endpoint, hint) = (self.running.endpoint.clone(), self.running.hint.clone());
        JwtSvids::new(
            JwtSvidSource::of(endpoint, hint, audience),
            Arc::clone(&self.running.shared),
        )
    }

    /// Stops following the Workload API and withdraws the SVID; returns when no task is left.
    pub async fn shutdown(&self) {
        self.running.stop.cancel();
        self.running.tasks.wait().await;
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared().counters
    }

    pub(crate) fn denied(&self) -> Arc<ArcSwap<PeerPolicy>> {
        Arc::clone(&self.shared().denied)
    }

    fn shared(&self) -> &Shared {
        &self.running.shared
    }
}

/// Withdraws the SVID when nobody follows the Workload API any longer, however that came about:
/// an SVID that is never renewed must not look as if it were.
struct WithdrawOnDrop(Arc<Shared>);

impl Drop for WithdrawOnDrop {
    fn drop(&mut self) {
        self.0.withdraw(IdentityState::Refused {
            reason: "the SVID manager has stopped".into(),
        });
    }
}

/// Keeps a follower running and looks after what goes by the clock.
pub(crate) async fn supervise<F>(
    shared: Arc<Shared>,
    stop: CancellationToken,
    start: impl Fn() -> F,
) where
    F: Future<Output = Infallible> + Send + 'static,
{
    let _withdraw = WithdrawOnDrop(Arc::clone(&shared));
    let mut follower = JoinSet::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep_following(&shared, &mut follower, start) => {}
        () = look_after(&shared) => {}
    }
    follower.shutdown().await;
}

async fn keep_following<F>(
    shared: &Shared,
    follower: &mut JoinSet<Infallible>,
    start: impl Fn() -> F,
) where
    F: Future<Output = Infallible> + Send + 'static,
{
    loop {
        shared.counters.tasks.fetch_add(1, Relaxed);
        follower.spawn(start());
        if let Some(Err(error)) = follower.join_next().await {
            follower_ended(shared, &error);
        }
        sleep(RESTART).await;
    }
}

fn follower_ended(shared: &Shared, error: &JoinError) {
    let reason = format!("the task that follows it ended: {error}");
    tracing::error!("SVID manager: {reason}; it is started again");
    shared.renewal_fails(IdentityState::Refused { reason });
}

async fn look_after(shared: &Shared) {
    let mut clocks = Clocks::of(shared.clock.now().time);
    let mut doubted = None;
    loop {
        shared.expire();
        let now = shared.clock.now();
        if doubted.is_some() && now.doubt.is_none() {
            tracing::info!("the wall clock is no longer in doubt");
        }
        doubted = now.doubt;
        if clocks.jumped_at(now.time) {
            tracing::info!(
                "the machine slept, or the wall clock was set right; peers are checked again"
            );
            shared.look_again();
        }
        match shared.due_report() {
            Some(report) if doubted.is_some() || shared.overdue().is_some() => {
                tracing::error!("{report}");
            }
            Some(report) => tracing::warn!("{report}"),
            None => {}
        }
        let look = Instant::now() + LOOK;
        let end = shared.latest().map_or(look, |snapshot| snapshot.deadline());
        sleep_until(look.min(end)).await;
    }
}

/// The time of day and the leases' clock at one moment. The latter stands still while a machine
/// sleeps, and does not follow a wall clock that is set right: certificates may have ended
/// meanwhile.
struct Clocks {
    day: SystemTime,
    leases: Instant,
}

impl Clocks {
    fn of(day: SystemTime) -> Self {
        Self {
            day,
            leases: Instant::now(),
        }
    }

    /// Whether the time of day is farther ahead of the other clock than it was last time.
    fn jumped_at(&mut self, day: SystemTime) -> bool {
        let now = Self::of(day);
        let by_day = now.day.duration_since(self.day).unwrap_or_default();
        let ahead = by_day.saturating_sub(now.leases - self.leases);
        *self = now;
        ahead > JUMP
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[tokio::test]
    async fn a_wall_clock_that_jumped_ahead_is_noticed_once() {
        let now = SystemTime::now();
        let mut clocks = Clocks::of(now);
        assert!(!clocks.jumped_at(now));
        assert!(clocks.jumped_at(now + Duration::from_secs(60)));
        assert!(!clocks.jumped_at(now + Duration::from_secs(60)));
        assert!(!clocks.jumped_at(now));
    }

    #[tokio::test(start_paused = true)]
    #[allow(clippy::panic)]
    async fn a_follower_that_ends_is_started_again_and_does_not_go_unnoticed() {
        let shared = Arc::new(Shared::new(None, Duration::ZERO));
        let stop = CancellationToken::new();
        let starts = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&starts);
        let start = move || {
            let number = counted.fetch_add(1, Relaxed);
            async move {
                assert!(number > 1, "as if the library had panicked");
                std::future::pending().await
            }
        };
        let supervisor = tokio::spawn(supervise(Arc::clone(&shared), stop.clone(), start));
        sleep(RESTART / 2).await;
        assert!(matches!(shared.state(), IdentityState::Refused { .. }));
        sleep(3 * RESTART).await;
        assert_eq!(
            (starts.load(Relaxed), shared.counters.read().restarts),
            (3, 2)
        );
        stop.cancel();
        assert!(supervisor.await.is_ok());
        let state = shared.state().to_string();
        assert!(state.contains("the SVID manager has stopped"), "{state}");
    }
}
