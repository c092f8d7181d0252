//! Access tokens: which calls need one, and whether the one that came is good.

use super::ServiceObserver;
use crate::{
    config::TokensConfig,
    policy::{Method, MethodSet, Principal},
};
use portarium_identity::{
    SvidManager,
    token::{Bearer, TokenError, TokenKeys, TokenRules},
};
use std::sync::Arc;
use tokio::time::sleep;
use tonic::{
    Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
};

/// Either of them needs a token where one of them is configured to: what one does the other does.
const CANCELS: [Method; 2] = [Method::CancelMission, Method::DispatchMission];

/// Verifies the access tokens of calls that need one. Nothing here waits: the keys are those that
/// were read last.
pub struct Tokens {
    rules: TokenRules,
    methods: MethodSet,
    stops: bool,
    keys: Arc<TokenKeys>,
    identity: SvidManager,
    observer: Arc<dyn ServiceObserver>,
}

/// What a call is, as far as tokens go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// `DispatchMission` of a stop.
    Stop,
    /// What cancels a mission, by whichever method.
    Cancel(Method),
    /// Anything else.
    Other(Method),
}

impl Call {
    pub(super) fn method(self) -> Method {
        match self {
            Self::Stop => Method::DispatchMission,
            Self::Cancel(method) | Self::Other(method) => method,
        }
    }
}

impl Tokens {
    /// Tokens as configured, verified with these keys and by the identity's time of day.
    pub fn new(
        config: &TokensConfig,
        keys: Arc<TokenKeys>,
        identity: SvidManager,
        observer: Arc<dyn ServiceObserver>,
    ) -> Self {
        Self {
            rules: config.rules.clone(),
            methods: config.methods,
            stops: config.stops,
            keys,
            identity,
            observer,
        }
    }

    /// Whether this call may go on, and what the token says that it needed.
    pub(super) fn check(
        &self,
        call: Call,
        principal: &Principal,
        metadata: &MetadataMap,
    ) -> Result<Option<Bearer>, Status> {
        let needed = match call {
            Call::Stop => self.stops,
            Call::Cancel(_) => CANCELS.iter().any(|method| self.methods.contains(*method)),
            Call::Other(method) => self.methods.contains(method),
        };
        // Without a certificate there is nothing to be bound to; the configuration sees to it that
        // there is one.
        let Principal::Spiffe(peer, _) = principal else {
            return Ok(None);
        };
        if !needed {
            return Ok(None);
        }
        let Some(keys) = self.keys.current() else {
            self.observer.token_checked("no_keys");
            return Err(Status::unavailable(
                "access token: the keys of its issuer are not known yet; try again",
            ));
        };
        let now = self.identity.time();
        let verified = bearer(metadata).and_then(|token| {
            let verified = self.rules.verify(token, &keys, &peer.thumbprint, now);
            verified.map_err(|error| {
                if error == TokenError::UnknownKey {
                    self.keys.missed();
                }
                error.to_string()
            })
        });
        self.observer
            .token_checked(if verified.is_ok() { "ok" } else { "refused" });
        match verified {
            Ok(bearer) => Ok(Some(bearer)),
            Err(reason) => Err(Status::unauthenticated(format!("access token: {reason}"))),
        }
    }

    /// Whether a token that was good has ended since.
    pub(super) fn is_over(&self, token: &Bearer) -> bool {
        self.identity.time() >= token.expires
    }

    /// When it does: by the time of day, which a timer does not follow through a sleep of the
    /// machine.
    pub(super) async fn ends(&self, token: &Bearer) {
        let mut snapshots = self.identity.snapshots();
        while !self.is_over(token) {
            let left = token.expires.duration_since(self.identity.time());
            tokio::select! {
                () = sleep(left.unwrap_or_default()) => {}
                Ok(()) = snapshots.changed() => {}
            }
        }
    }
}

/// The one bearer token (RFC 6750, section 2.1).
fn bearer(metadata: &MetadataMap) -> Result<&str, String> {
    let mut all = metadata.get_all("authorization").iter();
    let (first, second) = (all.next(), all.next());
    let missing = "none came; send it as `authorization: Bearer TOKEN`";
    let only = first.ok_or_else(|| missing.to_owned())?;
    if second.is_some() {
        return Err("more than one authorization came".to_owned());
    }
    token_of(only).ok_or_else(|| missing.to_owned())
}

fn token_of(value: &MetadataValue<Ascii>) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_start_matches(' '))
}
