//! JWT-SVIDs: tokens that say who we are where no certificate can.
use crate::{IdentityError, SpiffeId, SvidConfig, error_chain, follow::endpoint, shared::Shared};
use arc_swap::ArcSwapOption;
use spiffe::{JwtSvid as Fetched, WorkloadApiClient, transport::Endpoint};
use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// How long the agent may take.
const LIMIT: Duration = Duration::from_secs(8);

/// The pause after a failure, and the shortest between two tokens.
const PAUSE: Duration = Duration::from_secs(1);

/// A JWT-SVID: whoever has it can say that they are us, to its audience, until it ends.
#[derive(Clone)]
pub struct JwtSvid {
    token: Arc<str>,
    spiffe_id: SpiffeId,
    /// When it ends.
    pub expires: SystemTime,
}

impl JwtSvid {
    /// The token itself. Never log it.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Asks the Workload API for JWT-SVIDs for one audience.
#[derive(Debug, Clone)]
pub struct JwtSvidSource {
    endpoint: Endpoint,
    hint: Option<String>,
    audience: String,
}

impl JwtSvidSource {
    /// Of the workload that this configuration is for.
    ///
    /// # Errors
    /// Where the socket is none.
    pub fn new(config: &SvidConfig, audience: String) -> Result<Self, IdentityError> {
        let endpoint = endpoint(config.endpoint_socket.as_deref())?;
        Ok(Self::of(endpoint, config.hint.clone(), audience))
    }

    pub(crate) fn of(endpoint: Endpoint, hint: Option<String>, audience: String) -> Self {
        Self {
            endpoint,
            hint,
            audience,
        }
    }

    /// Asks once, for a token of this SPIFFE ID if one is given.
    ///
    /// # Errors
    /// Where the Workload API does not answer, refuses, or has none with our hint, or more than one
    /// and no hint is configured.
    pub async fn fetch(&self, of: Option<&SpiffeId>) -> Result<JwtSvid, IdentityError> {
        let failed = |reason| IdentityError::JwtSvid {
            audience: self.audience.clone(),
            reason,
        };
        let fetched = async {
            let client = WorkloadApiClient::connect(self.endpoint.clone()).await?;
            client.fetch_all_jwt_svids([&self.audience], of).await
        };
        let fetched = timeout(LIMIT, fetched)
            .await
            .map_err(|_| failed(format!("no answer within {LIMIT:?}")))?
            .map_err(|error| failed(error_chain(&error)))?;
        let ours = |svid: &&Fetched| self.hint.is_none() || svid.hint() == self.hint.as_deref();
        let mut ours = fetched.iter().filter(ours);
        match (ours.next(), ours.next()) {
            (Some(svid), None) => Ok(JwtSvid {
                token: svid.token().into(),
                spiffe_id: svid.spiffe_id().clone(),
                expires: svid.expiry().into(),
            }),
            (None, _) => Err(failed("none has the configured hint".to_owned())),
            (Some(_), Some(_)) => Err(failed(
                "there are several; configure the hint of the one to use".to_owned(),
            )),
        }
    }
}

/// A JWT-SVID that is renewed for as long as [`JwtSvids::follow`] runs. Reading it never waits.
pub struct JwtSvids {
    source: JwtSvidSource,
    /// The time that it is judged by, and the identity that it has to be of.
    shared: Arc<Shared>,
    current: ArcSwapOption<JwtSvid>,
    refused: Notify,
}

impl fmt::Debug for JwtSvids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvids")
            .field("source", &self.source)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

impl JwtSvids {
    /// None is there yet.
    pub(crate) fn new(source: JwtSvidSource, shared: Arc<Shared>) -> Self {
        Self {
            source,
            shared,
            current: ArcSwapOption::empty(),
            refused: Notify::new(),
        }
    }

    /// The one to show now; `None` before the first, when the last has ended, and while we are not
    /// who it says.
    pub fn current(&self) -> Option<Arc<JwtSvid>> {
        let ours = self.shared.current()?;
        let now = self.shared.clock.now().time;
        let current = self.current.load_full();
        current.filter(|svid| svid.expires > now && svid.spiffe_id == ours.spiffe_id)
    }

    /// It was shown, or should have been, and was not good enough: another one is asked for soon,
    /// however often this is said.
    pub fn refused(&self) {
        self.refused.notify_one();
    }

    /// Renews it at half of its life, for ever.
    pub async fn follow(&self) -> Infallible {
        let mut told = None;
        loop {
            let ours = self.ours().await;
            match self.source.fetch(Some(&ours)).await {
                Ok(svid) => {
                    let now = self.shared.clock.now().time;
                    let left = svid.expires.duration_since(now).unwrap_or_default();
                    self.current.store(Some(Arc::new(svid)));
                    told = None;
                    sleep(PAUSE).await;
                    self.until(now + left / 2).await;
                }
                Err(error) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!("{error}");
                        told = Some(error);
                    }
                    sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
                }
            }
        }
    }

    /// Who we are, as soon as that is known.
    async fn ours(&self) -> SpiffeId {
        let mut snapshots = self.shared.snapshot.subscribe();
        loop {
            if let Some(ours) = self.shared.current() {
                return ours.spiffe_id.clone();
            }
            // The sender lives in `self`.
            let _ = snapshots.changed().await;
        }
    }

    /// Until it is time for the next one: by the time of day, which a timer does not follow through
    /// a sleep of the machine. Whoever looks after the identity notices that.
    async fn until(&self, due: SystemTime) {
        let mut snapshots = self.shared.snapshot.subscribe();
        while self.current().is_some()
            && let Ok(left) = due.duration_since(self.shared.clock.now().time)
        {
            tokio::select! {
                () = sleep(left) => {}
                _ = snapshots.changed() => {}
                () = self.refused.notified() => return,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{
        authority::{Authority, AuthorityConfig, Entry},
        clock::Clock,
    };
    use spiffe::{X509Bundle, X509Svid};
    use tokio::{task::JoinHandle, time::Instant};

    const HOUR: Duration = Duration::from_secs(3_600);
    const OURS: &str = "spiffe://a.test/gateway";
    const OTHER: &str = "spiffe://a.test/another";

    struct World {
        authority: Authority,
        shared: Arc<Shared>,
        jwt: Arc<JwtSvids>,
        following: JoinHandle<Infallible>,
        _folder: tempfile::TempDir,
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.following.abort();
        }
    }

    impl World {
        async fn start() -> Self {
            crate::install_crypto_provider();
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("agent.sock");
            let entry = |id: &str| Entry {
                spiffe_id: id.into(),
                hint: String::new(),
                dns_names: Vec::new(),
            };
            let authority = Authority::start(AuthorityConfig {
                trust_domain: "a.test".into(),
                socket: socket.clone(),
                svid_ttl: HOUR,
                entries: vec![entry(OURS), entry(OTHER)],
            })
            .await
            .unwrap();
            let mut shared = Shared::new(None, Duration::ZERO);
            shared.clock = Clock::of_tokio();
            let shared = Arc::new(shared);
            let socket = format!("unix://{}", socket.display());
            let source =
                JwtSvidSource::of(endpoint(Some(&socket)).unwrap(), None, "robot".to_owned());
            let jwt = Arc::new(JwtSvids::new(source, Arc::clone(&shared)));
            let following = tokio::spawn({
                let jwt = Arc::clone(&jwt);
                async move { jwt.follow().await }
            });
            let world = Self {
                authority,
                shared,
                jwt,
                following,
                _folder: folder,
            };
            world.is(OURS);
            world
        }

        /// From now on that is who we are.
        fn is(&self, id: &str) {
            let spec = crate::authority::MintSpec::svid(id, HOUR);
            let own = self.authority.mint(&spec).unwrap();
            let svid = X509Svid::parse_from_der(&own.chain_der.concat(), &own.key_pkcs8_der);
            let domain = crate::TrustDomain::new("a.test").unwrap();
            let bundle = self.authority.bundle().concat();
            let bundle = X509Bundle::parse_from_der(domain, &bundle).unwrap();
            let bundles = Arc::new([bundle].into_iter().collect());
            self.shared
                .accept(&Arc::new(svid.unwrap()), &bundles)
                .unwrap();
        }

        /// Another than this one, once it is there.
        async fn next(&self, last: Option<&JwtSvid>) -> Arc<JwtSvid> {
            let began = Instant::now();
            loop {
                if let Some(svid) = self.jwt.current()
                    && last.is_none_or(|last| last.token != svid.token)
                {
                    return svid;
                }
                assert!(began.elapsed() < Duration::from_secs(10), "none came");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test]
    async fn through_a_sleep_of_the_machine_none_is_shown_that_has_ended_and_a_new_one_comes_at_once()
     {
        let world = World::start().await;
        let first = world.next(None).await;
        sleep(2 * PAUSE).await;
        Clock::sleep_through(Duration::from_secs(301));
        assert!(world.jwt.current().is_none(), "it has ended");
        let began = Instant::now();
        // As whoever looks after the identity does within a quarter of a second.
        world.shared.look_again();
        // What the authority issues by the system's clock has ended by ours: it is asked again.
        while world.jwt.current.load().as_ref().unwrap().token == first.token {
            assert!(began.elapsed() < Duration::from_secs(5), "it is kept");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_wall_clock_that_is_set_ahead_ends_none() {
        let world = World::start().await;
        world.next(None).await;
        Clock::set_ahead(2 * HOUR);
        assert!(world.shared.clock.now().doubt.is_some());
        assert!(world.jwt.current().is_some());
    }

    #[tokio::test]
    async fn one_that_was_refused_is_renewed_but_once_a_second_at_most() {
        let world = World::start().await;
        let began = Instant::now();
        let mut last = world.next(None).await;
        for _ in 0..2 {
            for _ in 0..1_000 {
                world.jwt.refused();
            }
            last = world.next(Some(&last)).await;
        }
        assert!(began.elapsed() > 2 * PAUSE - Duration::from_millis(100));
    }

    #[tokio::test]
    async fn it_is_of_the_identity_that_we_have_now() {
        let world = World::start().await;
        let ours = world.next(None).await;
        assert_eq!(ours.spiffe_id.to_string(), OURS);
        world.is(OTHER);
        assert!(world.jwt.current().is_none());
        let other = world.next(Some(&ours)).await;
        assert_eq!(other.spiffe_id.to_string(), OTHER);
    }
}
