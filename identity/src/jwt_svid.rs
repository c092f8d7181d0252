//! JWT-SVIDs: tokens that say who we are where no certificate can.
use crate::{IdentityError, SvidConfig, error_chain, follow::endpoint};
use arc_swap::ArcSwapOption;
use spiffe::{JwtSvid as Fetched, WorkloadApiClient, transport::Endpoint};
use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::{sleep, timeout};

/// How long the agent may take.
const LIMIT: Duration = Duration::from_secs(8);

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// A JWT-SVID: whoever has it can say that they are us, to its audience, until it ends.
#[derive(Clone)]
pub struct JwtSvid {
    token: Arc<str>,
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

    /// Asks once.
    ///
    /// # Errors
    /// Where the Workload API does not answer, refuses, or has none with our hint, or more than one
    /// and no hint is configured.
    pub async fn fetch(&self) -> Result<JwtSvid, IdentityError> {
        let failed = |reason| IdentityError::JwtSvid {
            audience: self.audience.clone(),
            reason,
        };
        let fetched = async {
            let client = WorkloadApiClient::connect(self.endpoint.clone()).await?;
            client.fetch_all_jwt_svids([&self.audience], None).await
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
#[derive(Debug)]
pub struct JwtSvids {
    source: JwtSvidSource,
    current: ArcSwapOption<JwtSvid>,
}

impl JwtSvids {
    /// None is there yet.
    pub fn new(source: JwtSvidSource) -> Self {
        Self {
            source,
            current: ArcSwapOption::empty(),
        }
    }

    /// The one to show now; `None` before the first, and when the last has ended.
    pub fn current(&self) -> Option<Arc<JwtSvid>> {
        let current = self.current.load_full();
        current.filter(|svid| svid.expires > SystemTime::now())
    }

    /// Renews it at half of its life, for ever.
    pub async fn follow(&self) -> Infallible {
        let mut told = None;
        loop {
            match self.source.fetch().await {
                Ok(svid) => {
                    let left = svid.expires.duration_since(SystemTime::now());
                    self.current.store(Some(Arc::new(svid)));
                    told = None;
                    sleep(left.unwrap_or_default().div_f64(2.0).max(PAUSE)).await;
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
}
