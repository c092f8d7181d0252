//! A client connection that is kept up.

use super::{
    channel::{Channel, Credential, Hold, KEEPALIVE, Live, asks_for_calm, open, with_sources},
    target::Target,
};
use crate::peers::ConnectedPeer;
use portarium_identity::ClientTls;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

/// The pause before the first new attempt.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The longest pause between attempts: a peer that returned is served again within 2 s.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The longest pause between pings: more than the five minutes that strict servers ask for.
const KEEPALIVE_MAX: Duration = Duration::from_secs(330);

/// The shortest time between two renewals: while the Workload API hands out nothing new, each
/// would bring a lease shorter than the one before.
const RENEW_MIN: Duration = Duration::from_secs(1);

/// Keeps one HTTP/2 connection to one endpoint up: connects again when it ends, and makes the
/// next one before its certificates' time is over; calls in flight finish on the old one, which
/// ends with them or with its lease. Dropping it closes the connection once no [`Channel`] is
/// left.
pub struct Connection {
    state: watch::Receiver<Result<Channel, Down>>,
    tls: Option<ClientTls>,
    open: Arc<Open>,
    _keeper: AbortOnDropHandle<()>,
}

/// The connections that are open: the current one, and those before it that have calls in flight.
#[derive(Debug, Default)]
struct Open(Mutex<Vec<Hold>>);

impl Open {
    fn lock(&self) -> MutexGuard<'_, Vec<Hold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, hold: Hold) {
        let mut open = self.lock();
        open.retain(|hold| !hold.is_gone());
        open.push(hold);
    }

    fn peers(&self) -> Vec<ConnectedPeer> {
        self.lock().iter().filter_map(Hold::peer).cloned().collect()
    }

    fn recheck(&self, tls: &ClientTls) {
        self.lock().iter().for_each(|hold| hold.recheck(tls));
    }
}

/// Why there is no connection now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct Down {
    /// For people.
    pub reason: Arc<str>,
}

impl Down {
    fn because(reason: impl Into<Arc<str>>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

impl Connection {
    /// Begins to connect, on the current runtime, and never waits. `name` is for the log.
    pub fn start(target: Target, tls: Option<ClientTls>, name: impl Into<String>) -> Self {
        Self::start_showing(None, target, tls, name)
    }

    /// As [`Connection::start`], for calls that show this beside our certificate.
    pub fn start_showing(
        credential: Option<Arc<dyn Credential>>,
        target: Target,
        tls: Option<ClientTls>,
        name: impl Into<String>,
    ) -> Self {
        let (publish, state) = watch::channel(Err(Down::because("not connected yet")));
        let open = Arc::<Open>::default();
        let keeper = Keeper {
            target,
            credential,
            tls: tls.clone(),
            open: open.clone(),
            name: name.into(),
            publish,
            backoff: Backoff::new(),
            keepalive: KEEPALIVE,
        };
        Self {
            state,
            tls,
            open,
            _keeper: AbortOnDropHandle::new(tokio::spawn(keeper.run())),
        }
    }

    /// The channel to use for the next call, or why there is none. Cheap: ask for each call, so
    /// that calls move to the new connection on rotation.
    pub fn channel(&self) -> Result<Channel, Down> {
        self.state.borrow().clone()
    }

    /// Changes with every new connection and whenever there is none any longer.
    pub fn state(&self) -> watch::Receiver<Result<Channel, Down>> {
        self.state.clone()
    }

    /// Who is on the other end of the connection, and of those before it that still have calls in
    /// flight.
    pub fn peers(&self) -> Vec<ConnectedPeer> {
        self.open.peers()
    }

    /// Cuts the connection, and those before it that still have calls in flight, if the peer would
    /// not be accepted now: after a bundle was removed, an authority was revoked or our own
    /// identity ended.
    pub fn recheck(&self) {
        if let Some(tls) = &self.tls {
            self.open.recheck(tls);
        }
    }

    /// Waits until there is a connection.
    pub async fn ready(&self) -> Result<Channel, Down> {
        let mut state = self.state.clone();
        match state.wait_for(Result::is_ok).await {
            Ok(up) => up.clone(),
            Err(_) => Err(Down::because("shut down")),
        }
    }
}

struct Keeper {
    target: Target,
    credential: Option<Arc<dyn Credential>>,
    tls: Option<ClientTls>,
    open: Arc<Open>,
    name: String,
    publish: watch::Sender<Result<Channel, Down>>,
    backoff: Backoff,
    keepalive: Duration,
}

impl Keeper {
    async fn run(mut self) {
        let mut live: Option<(Live, Instant)> = None;
        let mut due = Instant::now();
        loop {
            let attempt = async {
                sleep_until(due).await;
                open(&self.target, self.tls.as_ref(), self.keepalive).await
            };
            tokio::select! {
                opened = attempt => match opened {
                    Ok(next) => {
                        due = next.lease.renew.max(Instant::now() + RENEW_MIN);
                        self.up(&next);
                        self.open.add(next.channel.hold());
                        // A recheck during the handshake has not seen this connection.
                        if let Some(tls) = &self.tls {
                            next.channel.hold().recheck(tls);
                        }
                        live = Some((next, Instant::now()));
                    }
                    Err(error) => {
                        due = self.backoff.next();
                        self.failed(&with_sources(&error), live.is_some());
                    }
                },
                end = ended(live.as_mut()) => {
                    if live.take().is_some_and(|(_, since)| since.elapsed() >= BACKOFF_MAX) {
                        self.backoff = Backoff::new();
                    }
                    due = self.backoff.next();
                    self.calm_down(&end);
                    self.down(&end.reason());
                }
            }
        }
    }

    /// Pings less often where the peer closes connections because of pings, as gRPC's own
    /// clients do; its end is then noticed later.
    fn calm_down(&mut self, end: &End) {
        if matches!(end, End::Failed(error) if asks_for_calm(error)) {
            self.keepalive = (self.keepalive * 5).min(KEEPALIVE_MAX);
            let (name, keepalive) = (&self.name, self.keepalive);
            tracing::warn!(%name, ?keepalive, "the peer takes no pings as often; it should allow one every 2 s");
        }
    }

    fn up(&self, next: &Live) {
        let peer = next.channel.peer().map(|peer| peer.spiffe_id.to_string());
        let again = self.publish.borrow().is_ok();
        tracing::info!(name = %self.name, target = %self.target, peer, again, "connected");
        let channel = next.channel.clone().showing(self.credential.clone());
        self.publish.send_modify(|state| *state = Ok(channel));
    }

    fn failed(&self, reason: &str, still_up: bool) {
        if still_up {
            tracing::warn!(name = %self.name, target = %self.target, %reason, "cannot renew the connection yet");
        } else {
            self.down(reason);
        }
    }

    /// Says it once for each reason, not once for each attempt.
    fn down(&self, reason: &str) {
        let down = Down::because(reason);
        let news = self.publish.borrow().as_ref().err() != Some(&down);
        if news {
            tracing::warn!(name = %self.name, target = %self.target, %reason, "not connected");
            self.publish.send_modify(|state| *state = Err(down));
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
enum End {
    Closed,
    Failed(hyper::Error),
}

impl End {
    fn reason(&self) -> String {
        match self {
            Self::Closed => "the peer closed the connection".to_owned(),
            Self::Failed(error) => with_sources(error),
        }
    }
}

/// Waits for the end of the connection, if there is one.
async fn ended(live: Option<&mut (Live, Instant)>) -> End {
    let Some((live, _)) = live else {
        return std::future::pending().await;
    };
    match (&mut live.driver).await {
        Ok(Err(error)) => End::Failed(error),
        Ok(Ok(())) | Err(_) => End::Closed,
    }
}

struct Backoff {
    pause: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self { pause: BACKOFF_MIN }
    }

    /// When to try again: the pause doubles, and a half of it is jitter.
    fn next(&mut self) -> Instant {
        let pause = self.pause;
        self.pause = (pause * 2).min(BACKOFF_MAX);
        Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_peer_that_closes_because_of_pings_is_pinged_less_often() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target: Target = listener.local_addr().unwrap().to_string().parse().unwrap();
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut server = h2::server::handshake(tcp).await.unwrap();
            server.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            while server.accept().await.is_some() {}
        });
        let live = open(&target, None, KEEPALIVE).await.unwrap();
        let end = ended(Some(&mut (live, Instant::now()))).await;
        let mut keeper = Keeper {
            credential: None,
            target,
            tls: None,
            open: Arc::default(),
            name: "test".to_owned(),
            publish: watch::Sender::new(Err(Down::because("test"))),
            backoff: Backoff::new(),
            keepalive: KEEPALIVE,
        };
        keeper.calm_down(&End::Closed);
        assert_eq!(keeper.keepalive, KEEPALIVE);
        keeper.calm_down(&end);
        assert_eq!(keeper.keepalive, 5 * KEEPALIVE, "{end:?}");
    }

    #[tokio::test]
    async fn the_pause_grows_from_50_ms_to_a_second_and_not_beyond() {
        let mut backoff = Backoff::new();
        let first = backoff.next() - Instant::now();
        assert!((20..=50).contains(&first.as_millis()), "{first:?}");
        let later = (0..20).map(|_| backoff.next() - Instant::now()).max();
        assert!(
            later.is_some_and(|p| p <= BACKOFF_MAX && p > BACKOFF_MAX / 3),
            "{later:?}"
        );
    }
}
