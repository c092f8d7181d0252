//! Keeps the keys of those who issue tokens up to date, in the background.
use super::{
    KeySet, KeySetError,
    fetch::{Endpoint, FetchError},
};
use crate::{IdentityError, TrustDomain, clock::since_start, follow::endpoint};
use arc_swap::ArcSwapOption;
use futures::StreamExt as _;
use spiffe::{WorkloadApiClient, WorkloadApiError, transport};
use std::{
    convert::Infallible,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};

/// The largest key set that is read, in bytes.
pub(super) const LARGEST: usize = 1 << 20;

/// Keys that could not be renewed for so long are not used any longer: a key that was withdrawn
/// meanwhile would be. Also by a clock that goes on while the machine sleeps.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// However many unknown keys tokens name, the issuer is not asked more often than this.
const APART: Duration = Duration::from_secs(10);

/// The first pause after a failure; it doubles, ...
const PAUSE: Duration = Duration::from_millis(500);

/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long the agent may take for its first bundles.
const FIRST: Duration = Duration::from_secs(8);

/// Where the keys of an issuer come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A JSON Web Key Set in a file.
    File(PathBuf),
    /// A JSON Web Key Set behind an `https` address (on this machine also `http`). `ca_file`: who
    /// may have signed the server's certificate, in PEM; the system's authorities otherwise.
    Url {
        /// The address.
        url: String,
        /// Authorities in PEM.
        ca_file: Option<PathBuf>,
    },
    /// The JWT authorities of a trust domain, from the Workload API.
    WorkloadApi {
        /// As of [`crate::SvidConfig::endpoint_socket`].
        endpoint_socket: Option<String>,
        /// Whose.
        trust_domain: TrustDomain,
    },
}

/// Where keys come from and how often they are looked at anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysConfig {
    /// From where.
    pub source: KeySource,
    /// How often a file or an address is read; the Workload API tells changes by itself.
    pub refresh: Duration,
}

/// Why keys cannot be had.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The address, or its authorities, cannot be used; it will not get better by itself.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The file cannot be read.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// What was read is larger than any key set.
    #[error("it is larger than {LARGEST} bytes")]
    TooLarge,
    /// What was read is no key set.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
    /// The socket of the Workload API is not one.
    #[error(transparent)]
    Endpoint(#[from] IdentityError),
    /// The Workload API does not answer as it should.
    #[error("the Workload API: {0}")]
    WorkloadApi(#[from] WorkloadApiError),
    /// The Workload API does not answer in time.
    #[error("the Workload API has not answered within {FIRST:?}")]
    Silent,
    /// The Workload API has ended the stream.
    #[error("the Workload API has ended the stream")]
    Ended,
    /// The Workload API has no keys of this trust domain.
    #[error("the Workload API has no JWT authorities of {0}")]
    NoBundle(TrustDomain),
}

/// The keys of an issuer, renewed for as long as [`TokenKeys::follow`] runs. Reading them never
/// waits.
pub struct TokenKeys {
    keys: ArcSwapOption<Loaded>,
    problem: Mutex<Option<String>>,
    wanted: Notify,
    from: From,
    clock: fn() -> Duration,
}

struct Loaded {
    keys: Arc<KeySet>,
    at: Duration,
}

enum From {
    File {
        path: PathBuf,
        refresh: Duration,
    },
    Url {
        endpoint: Endpoint,
        refresh: Duration,
    },
    WorkloadApi {
        endpoint: transport::Endpoint,
        trust_domain: TrustDomain,
        refresh: Duration,
    },
}

impl KeysConfig {
    /// Whether keys can be had with it, as far as this machine can tell: its files are read.
    ///
    /// # Errors
    /// Where a file cannot be read or has not what it should, or the address or the socket is none.
    pub fn check(&self) -> Result<(), KeysError> {
        match &self.source {
            KeySource::File(path) => read(path).map(|_| ()),
            KeySource::Url { url, ca_file } => Ok(Endpoint::new(url, ca_file.as_deref())?.check()?),
            KeySource::WorkloadApi {
                endpoint_socket, ..
            } => Ok(endpoint(endpoint_socket.as_deref()).map(|_| ())?),
        }
    }
}

impl TokenKeys {
    /// Reads a file of keys at once; where that cannot be, and from elsewhere, they come with
    /// [`TokenKeys::follow`].
    ///
    /// # Errors
    /// Where the address or the socket is none.
    pub fn new(config: KeysConfig) -> Result<Self, KeysError> {
        let refresh = config.refresh;
        let from = match config.source {
            KeySource::File(path) => From::File { path, refresh },
            KeySource::Url { url, ca_file } => From::Url {
                endpoint: Endpoint::new(&url, ca_file.as_deref())?,
                refresh,
            },
            KeySource::WorkloadApi {
                endpoint_socket,
                trust_domain,
            } => From::WorkloadApi {
                endpoint: endpoint(endpoint_socket.as_deref())?,
                trust_domain,
                refresh,
            },
        };
        let keys = Self {
            keys: ArcSwapOption::empty(),
            problem: Mutex::new(None),
            wanted: Notify::new(),
            from,
            clock: since_start,
        };
        if let From::File { path, .. } = &keys.from {
            match read(path) {
                Ok(read) => keys.loaded(read),
                Err(error) => keys.failed(&error),
            }
        }
        Ok(keys)
    }

    /// The keys as last read; `None` before the first time, a day after the last, and where the
    /// issuer says that it has none.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        let loaded = self.keys.load();
        let loaded = loaded.as_ref()?;
        if (self.clock)().saturating_sub(loaded.at) < KEPT {
            return Some(Arc::clone(&loaded.keys));
        }
        // The machine may have slept, and the timer with it.
        self.missed();
        None
    }

    /// What keeps them from being renewed.
    pub fn problem(&self) -> Option<String> {
        self.lock().clone()
    }

    /// A token named a key that is not there: they are read anew soon, however often this is said.
    pub fn missed(&self) {
        self.wanted.notify_one();
    }

    /// Keeps them up to date, for ever.
    pub async fn follow(&self) -> Infallible {
        let mut failures = 0;
        loop {
            match self.once().await {
                Ok(next) => {
                    failures = 0;
                    self.pause(next).await;
                }
                Err(error) => {
                    // Whole and well-formed, and all are withdrawn: none counts any more.
                    if let KeysError::KeySet(KeySetError::NoKey) = error {
                        self.keys.store(None);
                    }
                    self.failed(&error);
                    let pause = PAUSE
                        .saturating_mul(1 << failures.min(8))
                        .min(LONGEST_PAUSE);
                    failures += 1;
                    sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                }
            }
        }
    }

    /// Reads a file or an address once, and says when to do so again; follows the Workload API
    /// until that fails.
    async fn once(&self) -> Result<Duration, KeysError> {
        match &self.from {
            From::File { path, refresh } => {
                let path = path.clone();
                let read = spawn_blocking(move || read(&path)).await;
                self.loaded(read.map_err(|_| KeysError::Ended)??);
                Ok(*refresh)
            }
            From::Url { endpoint, refresh } => {
                self.loaded(KeySet::parse(&endpoint.fetch().await?)?);
                Ok(*refresh)
            }
            From::WorkloadApi {
                endpoint,
                trust_domain,
                refresh,
            } => {
                // Opened anew now and then: a stream on which nothing comes may be a dead one.
                tokio::select! {
                    failed = self.stream(endpoint, trust_domain) => failed.map(|never| match never {}),
                    () = self.passed(*refresh) => Ok(Duration::ZERO),
                }
            }
        }
    }

    /// Waits for so long on a clock that goes on while the machine sleeps, as timers do not.
    async fn passed(&self, length: Duration) {
        let began = (self.clock)();
        while (self.clock)().saturating_sub(began) < length {
            sleep(APART.min(length)).await;
        }
    }

    async fn stream(
        &self,
        endpoint: &transport::Endpoint,
        trust_domain: &TrustDomain,
    ) -> Result<Infallible, KeysError> {
        let open = async {
            let client = WorkloadApiClient::connect(endpoint.clone()).await?;
            client.stream_jwt_bundles().await
        };
        let mut bundles = timeout(FIRST, open)
            .await
            .map_err(|_| KeysError::Silent)??;
        let mut next = timeout(FIRST, bundles.next())
            .await
            .map_err(|_| KeysError::Silent)?;
        loop {
            let set = next.ok_or(KeysError::Ended)??;
            let authorities = set
                .get_ref(trust_domain)
                .map(|bundle| bundle.jwt_authorities());
            let keys = authorities.into_iter().flatten().map(|key| key.jwk_json());
            match KeySet::of(keys) {
                Ok(keys) => self.loaded(keys),
                Err(_) => {
                    // All are revoked, or the domain is federated no longer: none counts any more.
                    self.keys.store(None);
                    self.failed(&KeysError::NoBundle(trust_domain.clone()));
                }
            }
            next = bundles.next().await;
        }
    }

    /// Until it is time, or a key was missed; but not at once, however often one is.
    async fn pause(&self, length: Duration) {
        let (now, apart) = (Instant::now(), APART.min(length));
        sleep(apart).await;
        tokio::select! {
            () = sleep_until(now + length) => {}
            () = self.wanted.notified() => {}
        }
    }

    fn loaded(&self, keys: KeySet) {
        let had = self.keys.load().as_ref().map(|loaded| loaded.keys.len());
        if self.lock().take().is_some() || had != Some(keys.len()) {
            tracing::info!(keys = keys.len(), "keys of the issuer of tokens are there");
        }
        self.keys.store(Some(Arc::new(Loaded {
            keys: Arc::new(keys),
            at: (self.clock)(),
        })));
    }

    fn failed(&self, error: &KeysError) {
        let told = crate::error_chain(error);
        let mut problem = self.lock();
        if problem.as_ref() != Some(&told) {
            tracing::warn!("the keys of the issuer of tokens cannot be renewed: {told}");
            *problem = Some(told);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys in the file, if it is not too large for a key set.
fn read(path: &Path) -> Result<KeySet, KeysError> {
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(LARGEST as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length > LARGEST => Err(KeysError::TooLarge),
        Ok(_) => Ok(KeySet::parse(&bytes)?),
        Err(reason) => Err(KeysError::File {
            path: path.to_owned(),
            reason,
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    #[tokio::test(start_paused = true)]
    async fn keys_that_could_not_be_renewed_for_a_day_are_used_no_longer_also_if_the_machine_slept()
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let mut keys = TokenKeys::new(KeysConfig {
            source: KeySource::File(path.clone()),
            refresh: 12 * HOUR,
        })
        .unwrap();
        keys.clock = || NOW.get();
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let key = crate::token::SigningKey::from_pem(pem.as_bytes()).unwrap();
        std::fs::write(&path, key.key_set("a").to_string()).unwrap();
        let keys = Arc::new(keys);
        let followed = Arc::clone(&keys);
        let task = tokio::spawn(async move { followed.follow().await });
        while keys.current().is_none() {
            sleep(PAUSE).await;
        }
        NOW.set(KEPT - PAUSE);
        assert!(keys.current().is_some());
        // All of that in a sleep of the machine: no timer has run.
        NOW.set(KEPT);
        assert!(keys.current().is_none());
        sleep(APART * 2).await;
        assert!(
            keys.current().is_some(),
            "they are read as soon as it wakes"
        );
        std::fs::remove_file(&path).unwrap();
        NOW.set(2 * KEPT);
        assert!(keys.current().is_none());
        sleep(APART * 2).await;
        assert!(keys.current().is_none());
        task.abort();
    }
}
