//! The SVID manager.
use crate::{
    ClientTls, IdentityError, IdentityState, IdentityStats, PeerPolicy, ServerTls, Snapshot,
    follow::{endpoint, follow},
    stats::Counters,
};
use spiffe::{X509BundleSet, X509Svid, transport::Endpoint};
use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often a state other than Ready is logged.
const REPORT_EVERY: Duration = Duration::from_secs(15);
/// How often the state and the SVID's end are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long a follower that ended is left down.
const RESTART: Duration = Duration::from_millis(500);

/// Where SVIDs come from and which one is ours.
#[derive(Debug, Clone)]
pub struct SvidConfig {
    /// `unix:///path`; `None`: from `SPIFFE_ENDPOINT_SOCKET`.
    pub endpoint_socket: Option<String>,
    /// The hint of the wanted SVID. `None`: there must be exactly one SVID.
    pub hint: Option<String>,
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
            shared: Arc::new(Shared::new(config.hint)),
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

    /// How things stand.
    pub fn state(&self) -> IdentityState {
        self.shared().state()
    }

    /// What keeps renewal from working, also while the last good SVID is still good; `None` while
    /// the Workload API answers.
    pub fn renewal_problem(&self) -> Option<IdentityState> {
        self.shared().status().problem.clone()
    }

    /// Level-triggered: the value changes with each new snapshot, and to `None` on withdrawal and
    /// expiry.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.shared().snapshot.subscribe()
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

    /// Stops following the Workload API and withdraws the SVID; returns when no task is left.
    pub async fn shutdown(&self) {
        self.running.stop.cancel();
        self.running.tasks.wait().await;
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared().counters
    }

    fn shared(&self) -> &Shared {
        &self.running.shared
    }
}

/// What the follower writes and everyone reads.
pub(crate) struct Shared {
    pub(crate) hint: Option<String>,
    pub(crate) counters: Counters,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    status: Mutex<Status>,
}

#[derive(Default)]
struct Status {
    problem: Option<IdentityState>,
    expired: bool,
    reported: Option<(Instant, IdentityState)>,
}

impl Shared {
    fn new(hint: Option<String>) -> Self {
        Self {
            hint,
            counters: Counters::default(),
            snapshot: watch::Sender::new(None),
            status: Mutex::default(),
        }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest snapshot, whether it has ended or not.
    pub(crate) fn latest(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.borrow().clone()
    }

    fn current(&self) -> Option<Arc<Snapshot>> {
        let (wall, now) = (SystemTime::now(), Instant::now());
        self.latest()
            .filter(|snapshot| !snapshot.is_over(wall, now))
    }

    fn state(&self) -> IdentityState {
        if self.current().is_some() {
            return IdentityState::Ready;
        }
        let status = self.status();
        if status.expired || self.snapshot.borrow().is_some() {
            return IdentityState::Expired;
        }
        status.problem.clone().unwrap_or(IdentityState::Starting)
    }

    /// Takes over an SVID and the bundles that came with it. On an error what was there stays.
    pub(crate) fn accept(
        &self,
        svid: &Arc<X509Svid>,
        bundles: &Arc<X509BundleSet>,
    ) -> Result<(), String> {
        self.status().problem = None;
        if self
            .current()
            .is_some_and(|current| current.holds(svid, bundles))
        {
            return Ok(());
        }
        let generation = self.counters.generations.load(Relaxed) + 1;
        let snapshot = Snapshot::build(generation, Arc::clone(svid), Arc::clone(bundles))?;
        let over = snapshot.is_over(SystemTime::now(), Instant::now());
        self.status().expired = over;
        if over {
            // Also the fault of a clock; the next look at the agent may find it set right.
            return Ok(());
        }
        self.counters.generations.store(generation, Relaxed);
        tracing::info!(
            spiffe_id = %snapshot.spiffe_id,
            serial = snapshot.serial,
            not_after = %rfc3339(snapshot.not_after),
            generation,
            "new SVID"
        );
        self.snapshot.send_replace(Some(Arc::new(snapshot)));
        Ok(())
    }

    /// The agent cannot be asked; what is there stays until it ends.
    pub(crate) fn renewal_fails(&self, problem: IdentityState) {
        self.status().problem = Some(problem);
    }

    /// What is there must not be used any longer.
    pub(crate) fn withdraw(&self, problem: IdentityState) {
        {
            let mut status = self.status();
            status.problem = Some(problem);
            status.expired = false;
        }
        self.remove_if(|_| true);
    }

    /// Takes the snapshot away once it has ended, so that followers hear of it.
    fn expire(&self) {
        let (wall, now) = (SystemTime::now(), Instant::now());
        if self.remove_if(|snapshot| snapshot.is_over(wall, now)) {
            self.status().expired = true;
        }
    }

    fn remove_if(&self, condition: impl FnOnce(&Snapshot) -> bool) -> bool {
        self.snapshot.send_if_modified(|snapshot| {
            let remove = snapshot.as_deref().is_some_and(condition);
            if remove {
                *snapshot = None;
            }
            remove
        })
    }

    /// Says what is wrong when that has changed, and then at most every 15 s.
    fn report(&self) {
        let state = self.state();
        let mut status = self.status();
        let wrong = match (&state, &status.problem) {
            (IdentityState::Ready | IdentityState::Starting, None) => {
                status.reported = None;
                return;
            }
            (IdentityState::Ready, Some(problem)) => problem.clone(),
            _ => state.clone(),
        };
        let due = status.reported.as_ref().is_none_or(|(at, what)| {
            at.elapsed() >= REPORT_EVERY || (*what != wrong && what.as_str() != wrong.as_str())
        });
        if !due {
            return;
        }
        status.reported = Some((Instant::now(), wrong.clone()));
        let renewal = status.problem.clone().filter(|problem| *problem != wrong);
        drop(status);
        match (state, renewal) {
            (IdentityState::Ready, _) => {
                tracing::warn!("SVID renewal fails, the last good SVID is kept: {wrong}");
            }
            (_, Some(renewal)) => tracing::warn!("no SVID: {wrong}; renewal fails: {renewal}"),
            (_, None) => tracing::warn!("no SVID: {wrong}"),
        }
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
async fn supervise<F>(shared: Arc<Shared>, stop: CancellationToken, start: impl Fn() -> F)
where
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
    loop {
        shared.expire();
        shared.report();
        let look = Instant::now() + LOOK;
        let end = shared.latest().map_or(look, |snapshot| snapshot.deadline());
        sleep_until(look.min(end)).await;
    }
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_else(|_| "a time beyond the calendar".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[tokio::test(start_paused = true)]
    #[allow(clippy::panic)]
    async fn a_follower_that_ends_is_started_again_and_does_not_go_unnoticed() {
        let shared = Arc::new(Shared::new(None));
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
