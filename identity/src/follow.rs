//! Follows the Workload API: opens the stream, bounds every wait, tells failures apart.
use crate::{IdentityError, IdentityState, shared::Shared};
use futures::{Stream, StreamExt as _};
use spiffe::{
    WorkloadApiClient, WorkloadApiError, X509Context, X509Svid,
    transport::{Endpoint, GrpcStatusCode, TransportError},
};
use std::{
    convert::Infallible,
    error::Error,
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// The first pause after a failure; it doubles, ...
const PAUSE: Duration = Duration::from_millis(50);
/// ... but stays so short that an agent that returns serves us again within two seconds.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// An agent that denies us answers: each question costs it an attestation.
const MAX_PAUSE_DENIED: Duration = Duration::from_secs(1);
/// The first limit for connecting and the first message; it doubles with each failure, since an
/// agent may need seconds to attest a workload, ...
const LIMIT: Duration = Duration::from_secs(1);
/// ... up to this.
const MAX_LIMIT: Duration = Duration::from_secs(8);
/// How often the socket file is looked at: an agent that hangs may have been replaced.
const LOOK: Duration = Duration::from_millis(500);
/// The shortest time after which a stream that brings no renewal is opened anew.
const MIN_OVERDUE: Duration = Duration::from_secs(1);

/// After how long a stream on which our SVID does not come is opened anew.
const NOTHING_YET: Duration = Duration::from_secs(10);

/// Names the environment variable that SPIFFE gives to the endpoint.
const ENVIRONMENT: &str = "SPIFFE_ENDPOINT_SOCKET";

/// The endpoint as configured, or from the environment.
pub(crate) fn endpoint(configured: Option<&str>) -> Result<Endpoint, IdentityError> {
    let wrong = |socket: &str, reason: String| IdentityError::Endpoint {
        socket: socket.to_owned(),
        reason: format!("{reason}; unix:///absolute/path (or tcp://IP:port) is expected"),
    };
    let socket = match configured {
        Some(socket) => socket.to_owned(),
        None => std::env::var(ENVIRONMENT)
            .map_err(|e| wrong("", format!("none is configured, and {ENVIRONMENT}: {e}")))?,
    };
    let endpoint = Endpoint::parse(&socket).map_err(|e| wrong(&socket, e.to_string()))?;
    match &endpoint {
        // A URL parser encodes and normalises, and would look for another file than the one named.
        Endpoint::Unix(path) if !is_plain(&socket, path) => {
            let reason = "the path must be written plainly, without spaces, % escapes, . or ..";
            Err(wrong(&socket, reason.into()))
        }
        _ => Ok(endpoint),
    }
}

fn is_plain(socket: &str, path: &Path) -> bool {
    let written = socket
        .strip_prefix("unix://")
        .filter(|rest| rest.starts_with('/'));
    let written = written.or_else(|| socket.strip_prefix("unix:"));
    written.is_some_and(|written| Path::new(written).as_os_str() == path && !written.contains('%'))
}

/// Follows the Workload API for ever.
pub(crate) async fn follow(shared: Arc<Shared>, endpoint: Endpoint) -> Infallible {
    let mut failures = 0;
    loop {
        let mut session = Session::new(&shared, &endpoint);
        let end = session.run(doubled(LIMIT, failures, MAX_LIMIT)).await;
        if session.delivered {
            failures = 0;
        }
        let longest = match end {
            End::Failed { withdraw: true, .. } => MAX_PAUSE_DENIED,
            _ => MAX_PAUSE,
        };
        match end {
            End::Overdue | End::Replaced => tracing::debug!(?end, "Workload API stream reopened"),
            End::Failed {
                state,
                withdraw: true,
            } => shared.withdraw(state),
            End::Failed {
                state,
                withdraw: false,
            } => shared.renewal_fails(state),
        }
        let pause = doubled(PAUSE, failures, longest);
        failures += 1;
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

fn doubled(first: Duration, times: u32, at_most: Duration) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(times))
        .min(at_most)
}

/// Why a stream was given up.
#[derive(Debug)]
enum End {
    Failed {
        state: IdentityState,
        /// Whether what we have must not be used any longer.
        withdraw: bool,
    },
    /// The socket is another one now.
    Replaced,
    /// Renewal should have come by now; a new stream brings it if the agent has it.
    Overdue,
}

impl End {
    fn refused(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Failed {
            state: IdentityState::Refused { reason },
            withdraw: false,
        }
    }
}

type Contexts<'a> = Pin<Box<dyn Stream<Item = Result<X509Context, WorkloadApiError>> + Send + 'a>>;

/// One connection and its stream.
struct Session<'a> {
    shared: &'a Shared,
    endpoint: &'a Endpoint,
    /// Whether anything usable came.
    delivered: bool,
    /// When the stream was opened, or brought a later SVID than before.
    asked: Instant,
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, endpoint: &'a Endpoint) -> Self {
        Self {
            shared,
            endpoint,
            delivered: false,
            asked: Instant::now(),
        }
    }

    async fn run(&mut self, limit: Duration) -> End {
        let endpoint = self.endpoint;
        tokio::select! {
            end = self.read(limit) => end,
            () = replaced(endpoint) => End::Replaced,
        }
    }

    async fn read(&mut self, limit: Duration) -> End {
        let (contexts, first) = match timeout(limit, self.open()).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(end)) => return end,
            Err(_) => return End::refused(format!("no answer within {limit:?}")),
        };
        self.shared.counters.streams.fetch_add(1, Relaxed);
        self.asked = Instant::now();
        self.take_all(contexts, first).await
    }

    /// Takes what comes on a stream, until it ends or it is time to ask on a new one.
    async fn take_all(&mut self, mut contexts: Contexts<'_>, mut context: X509Context) -> End {
        loop {
            if let Err(end) = self.take(&context) {
                return end;
            }
            self.delivered = true;
            context = tokio::select! {
                biased;
                () = self.overdue() => return End::Overdue,
                next = contexts.next() => match next {
                    Some(Ok(context)) => context,
                    Some(Err(e)) => return classify(&e),
                    None => return End::refused("the agent closed the stream"),
                },
            };
        }
    }

    async fn open(&self) -> Result<(Contexts<'static>, X509Context), End> {
        let client = WorkloadApiClient::connect(self.endpoint.clone())
            .await
            .map_err(|e| classify(&e))?;
        let contexts = client
            .stream_x509_contexts()
            .await
            .map_err(|e| classify(&e))?;
        let mut contexts: Contexts<'_> = Box::pin(contexts);
        match contexts.next().await {
            Some(Ok(first)) => Ok((contexts, first)),
            Some(Err(e)) => Err(classify(&e)),
            None => Err(End::refused("the agent closed the stream")),
        }
    }

    /// Takes our SVID of an update over. An update without it takes ours away, since the agent
    /// then says that it is ours no longer; the stream stays open for the next.
    fn take(&mut self, context: &X509Context) -> Result<(), End> {
        match pick(context, self.shared.hint.as_deref()) {
            Ok(svid) => {
                let before = self.shared.latest().map(|snapshot| snapshot.not_after);
                self.shared
                    .accept(svid, context.bundle_set())
                    .map_err(End::refused)?;
                let now = self.shared.latest().map(|snapshot| snapshot.not_after);
                if now > before {
                    self.asked = Instant::now();
                }
                Ok(())
            }
            Err(state) => {
                self.shared.withdraw(state);
                Ok(())
            }
        }
    }

    /// Returns when it is time to ask on a new stream. A stream that an agent forgot about, or that
    /// hangs, is found that way. Nothing but a later SVID puts it off, whatever else comes.
    async fn overdue(&self) {
        while self.asked.elapsed() < self.patience() {
            sleep(LOOK).await;
        }
    }

    fn patience(&self) -> Duration {
        let Some(snapshot) = self.shared.latest() else {
            return NOTHING_YET;
        };
        let left = self.shared.left(&snapshot) + self.asked.elapsed();
        patience(left, snapshot.life(), self.shared.margin(&snapshot))
    }
}

/// How long a stream may bring no later SVID, if so much was left of ours when it was asked for.
/// Agents renew at half of an SVID's life: what has not come at two thirds of it is asked for, and
/// again and again from then on. At the latest it is asked for when the renewal has to be there.
fn patience(left: Duration, life: Duration, margin: Duration) -> Duration {
    let usual = left.saturating_sub(life / 3).max(left / 4);
    let due = left.saturating_sub(margin);
    let patience = if due.is_zero() { usual } else { usual.min(due) };
    patience.max(MIN_OVERDUE)
}

/// Our SVID, by its hint and never by its place; without a hint there must be just one.
fn pick<'a>(
    context: &'a X509Context,
    wanted: Option<&str>,
) -> Result<&'a Arc<X509Svid>, IdentityState> {
    let mut ours = context
        .svids()
        .iter()
        .filter(|svid| wanted.is_none() || svid.hint() == wanted);
    match (ours.next(), ours.next()) {
        (Some(svid), None) => Ok(svid),
        _ => Err(IdentityState::NoSuchHint {
            wanted: wanted.map(str::to_owned),
            offered: offered(context),
        }),
    }
}

/// In alphabetical order: the agent's order means nothing.
fn offered(context: &X509Context) -> Vec<String> {
    let hints = context
        .svids()
        .iter()
        .map(|svid| svid.hint().unwrap_or_default().to_owned());
    let mut hints: Vec<_> = hints.collect();
    hints.sort_unstable();
    hints
}

/// Returns when another file has come to the socket's path. A path where nothing is (any more) is
/// no reason to give up a stream that works.
async fn replaced(endpoint: &Endpoint) {
    let Endpoint::Unix(path) = endpoint else {
        return std::future::pending().await;
    };
    let first = identity(path);
    loop {
        sleep(LOOK).await;
        let now = identity(path);
        if now.is_some() && now != first {
            return;
        }
    }
}

/// Tells one socket file from the next; inode numbers alone are used again at once.
fn identity(path: &Path) -> Option<(u64, u64, i64, i64)> {
    // One stat of a local file: shorter than handing it to another thread.
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}

fn classify(error: &WorkloadApiError) -> End {
    use WorkloadApiError as E;
    match error {
        // SPIFFE: a client that is denied stops using what it had.
        E::NoIdentityIssued | E::PermissionDenied(_) => End::Failed {
            state: IdentityState::PermissionDenied,
            withdraw: true,
        },
        // So does a client whose update comes without an SVID or its bundle.
        E::MissingRequiredField { field }
            if field.ends_with("svids") || field.ends_with("bundle") =>
        {
            End::Failed {
                state: IdentityState::Refused {
                    reason: error.to_string(),
                },
                withdraw: true,
            }
        }
        E::Transport(TransportError::Connect(cause)) => match io_cause(cause) {
            Some(e) if e.kind() == io::ErrorKind::NotFound => End::Failed {
                state: IdentityState::NoSocket,
                withdraw: false,
            },
            Some(e) => End::refused(e.to_string()),
            None => End::refused(error.to_string()),
        },
        E::Transport(TransportError::Status(status))
            if status.code() == GrpcStatusCode::Unknown
                || status.code() == GrpcStatusCode::Unavailable =>
        {
            End::refused(format!(
                "the connection to the agent broke: {}",
                status.message()
            ))
        }
        _ => End::refused(error.to_string()),
    }
}

fn io_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    let mut found = None;
    while let Some(error) = next {
        found = error.downcast_ref::<io::Error>().or(found);
        next = error.source();
    }
    found
}

#[cfg(test)]
mod renewals;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_endpoint_is_a_unix_path_or_what_else_spiffe_allows() {
        let path = |text| match endpoint(Some(text)).unwrap() {
            Endpoint::Unix(path) => path.to_string_lossy().into_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(
            path("unix:///run/spire/agent.sock"),
            "/run/spire/agent.sock"
        );
        assert_eq!(path("unix:/run/spire/agent.sock"), "/run/spire/agent.sock");
        assert!(endpoint(Some("tcp://127.0.0.1:8081")).is_ok());
        for bad in [
            "",
            "/run/spire/agent.sock",
            "unix:agent.sock",
            "unix://agent.sock",
            "unix://",
            "unix:///",
            "unix:///run/a b.sock",
            "unix:///run/%61.sock",
            "unix:///run/../a.sock",
            "unix:///run/a.sock?x",
            "unix:///run/a.sock#x",
            "http://localhost:80",
            "tcp://localhost:8081",
            "tcp://127.0.0.1",
        ] {
            let error = endpoint(Some(bad)).unwrap_err().to_string();
            assert!(error.contains("unix:///absolute/path"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn pauses_stay_short_and_limits_grow() {
        let pauses: Vec<_> = (0..40).map(|n| doubled(PAUSE, n, MAX_PAUSE)).collect();
        assert_eq!(pauses[0], PAUSE);
        assert!(pauses.iter().all(|p| *p <= MAX_PAUSE));
        assert_eq!(doubled(LIMIT, 40, MAX_LIMIT), MAX_LIMIT);
    }

    #[test]
    fn what_the_agent_says_withdraws_and_what_the_transport_says_does_not() {
        let status = |code| WorkloadApiError::from(TransportError::status(code, "why"));
        let missing = |field| WorkloadApiError::MissingRequiredField { field };
        for (error, withdraws) in [
            (WorkloadApiError::NoIdentityIssued, true),
            (WorkloadApiError::PermissionDenied("no".into()), true),
            (missing("X509SVIDResponse.svids"), true),
            (missing("X509SVID.bundle"), true),
            (missing("X509SVID.x509_svid_key"), false),
            (WorkloadApiError::EmptyResponse, false),
            (status(GrpcStatusCode::Unavailable), false),
            (status(GrpcStatusCode::InvalidArgument), false),
            (
                TransportError::connect(io::Error::from(io::ErrorKind::NotFound)).into(),
                false,
            ),
        ] {
            match classify(&error) {
                End::Failed { withdraw, .. } => assert_eq!(withdraw, withdraws, "{error}"),
                other => unreachable!("{other:?}"),
            }
        }
    }
}
