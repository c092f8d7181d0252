//! The embedded authority: a real Workload API on a Unix socket, with a CA of its own.
//!
//! For `dev` and for tests. Keys live in memory only; every caller of the authority's own user
//! gets all SVIDs, so that it attests nothing and is no replacement for SPIRE.
use crate::{SpiffeId, TrustDomain};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::interceptor::InterceptedService, transport::Server};

mod ca;
mod extensions;
mod http2;
mod jwt;
mod mint;
mod service;
mod socket;

pub use ca::{MintSpec, Minted};
use mint::Mint;
use proto::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use service::{Service, check_header};
use socket::Socket;

#[allow(missing_docs, clippy::pedantic, unreachable_pub)]
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/_.rs"));
}

/// The shortest SVID lifetime: below it clocks and jitter leave too little.
const MIN_TTL: Duration = Duration::from_secs(10);
/// The lifetime of a CA: SPIRE's default.
const CA_TTL: Duration = Duration::from_secs(24 * 3600);
/// Streams of one connection.
const MAX_STREAMS: u32 = 64;

/// One SVID that the authority hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The full SPIFFE ID.
    pub spiffe_id: String,
    /// The hint.
    pub hint: String,
    /// DNS names; the first becomes the CN, as SPIRE does.
    pub dns_names: Vec<String>,
}

/// What the authority is to be.
#[derive(Debug, Clone)]
pub struct AuthorityConfig {
    /// For example `portarium.robotics`.
    pub trust_domain: String,
    /// Where the socket is made.
    pub socket: PathBuf,
    /// X.509-SVID lifetime, 10 s or more; renewed at half of it.
    pub svid_ttl: Duration,
    /// All are handed to every caller of the authority's own user.
    pub entries: Vec<Entry>,
}

/// A running authority. Dropping it closes the socket and all its streams.
pub struct Authority {
    mint: Arc<Mint>,
    paused: watch::Sender<bool>,
    closed: CancellationToken,
    _socket: Socket,
}

/// Why the authority cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The socket cannot be made.
    #[error("cannot serve the Workload API at {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CA cannot sign.
    #[error("cannot sign: {0}")]
    Sign(String),
    /// The configuration makes no sense.
    #[error("embedded authority: {0}")]
    Config(String),
}

impl Authority {
    /// Binds the socket (0600) and serves. A stale socket file is replaced; one that is served is
    /// left alone, and that is an error.
    pub async fn start(config: AuthorityConfig) -> Result<Self, AuthorityError> {
        if config.svid_ttl < MIN_TTL {
            let message = format!("SVIDs must live for {MIN_TTL:?} or more");
            return Err(AuthorityError::Config(message));
        }
        let trust_domain = TrustDomain::new(&config.trust_domain)
            .map_err(|e| AuthorityError::Config(format!("trust domain: {e}")))?;
        let entries = parse_entries(&trust_domain, config.entries)?;
        let mint = Arc::new(Mint::new(trust_domain, config.svid_ttl, CA_TTL, entries)?);
        let (socket, listener) = Socket::bind(&config.socket)?;
        let (accepting, connections) = socket::accept(listener, socket.owner());
        let authority = Self {
            mint: Arc::clone(&mint),
            paused: watch::Sender::new(false),
            closed: CancellationToken::new(),
            _socket: socket,
        };
        let service = Service {
            mint: Arc::clone(&mint),
            paused: authority.paused.subscribe(),
            closed: authority.closed.clone(),
        };
        let service = SpiffeWorkloadApiServer::new(service);
        let serving = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(InterceptedService::new(service, check_header))
            .serve_with_incoming_shutdown(
                ReceiverStream::new(connections),
                authority.closed.clone().cancelled_owned(),
            );
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!("the embedded authority has stopped: {error}");
            }
        });
        let closed = authority.closed.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = accepting => {}
                () = mint.keep_renewing() => {}
            }
        });
        Ok(authority)
    }

    /// Issues new SVIDs to all followers now.
    pub fn rotate(&self) {
        log(self.mint.rotate());
    }

    /// Makes the next X.509 authority, and adds it to the bundle.
    pub fn prepare(&self) {
        log(self.mint.prepare());
    }

    /// Has the prepared authority sign what is issued from now on.
    pub fn activate(&self) {
        self.mint.activate();
    }

    /// Issues anew what the authority before signed.
    pub fn taint(&self) {
        self.rotate();
    }

    /// Takes all authorities that sign no longer out of the bundle.
    pub fn revoke(&self) {
        self.mint.revoke();
    }

    /// Replaces the entries; followers hear of it at once. Empty: PermissionDenied. Entries that
    /// [`Authority::start`] would refuse are logged, and what was there stays.
    pub fn set_entries(&self, entries: Vec<Entry>) {
        let entries = parse_entries(&self.mint.trust_domain, entries);
        log(entries.and_then(|entries| self.mint.set_entries(entries)));
    }

    /// Falls silent, as an agent that hangs: the socket takes connections and calls, nothing is
    /// answered and nothing pushed until [`Authority::resume`].
    pub fn pause(&self) {
        self.paused.send_replace(true);
    }

    /// Ends [`Authority::pause`].
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// The X.509 authorities of the trust domain, DER; the one that signs comes first.
    pub fn bundle(&self) -> Vec<Vec<u8>> {
        self.mint.bundle()
    }

    /// A certificate of the authority's CA as wanted, SVID or not: for tests of what must be
    /// refused, and for peers that do not speak the Workload API.
    pub fn mint(&self, spec: &MintSpec) -> Result<Minted, AuthorityError> {
        self.mint.mint(spec)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

fn log(result: Result<(), AuthorityError>) {
    if let Err(error) = result {
        tracing::error!("embedded authority: {error}");
    }
}

fn parse_entries(
    trust_domain: &TrustDomain,
    entries: Vec<Entry>,
) -> Result<Vec<(SpiffeId, Entry)>, AuthorityError> {
    let parse = |entry: Entry| {
        let wrong = |reason: String| {
            AuthorityError::Config(format!("entry {:?}: {reason}", entry.spiffe_id))
        };
        let id = SpiffeId::new(&entry.spiffe_id).map_err(|e| wrong(e.to_string()))?;
        if !id.is_member_of(trust_domain) || id.path().is_empty() {
            return Err(wrong(format!(
                "it must be spiffe://{trust_domain}/… with a path"
            )));
        }
        Ok((id, entry))
    };
    entries.into_iter().map(parse).collect()
}
