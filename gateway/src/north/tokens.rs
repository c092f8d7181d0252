//! Access tokens: which calls need one, and whether the one that came is good.

use super::ServiceObserver;
use crate::{
    config::TokensConfig,
    policy::{Method, MethodSet, Principal},
};
use portarium_identity::{
    SvidManager,
    token::{TokenError, TokenKeys, TokenRules},
};
use std::sync::Arc;
use tonic::{
    Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
};

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

/// Whether a call is a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// `DispatchMission` of a stop.
    Stop,
    /// Anything else.
    Other(Method),
}

impl Call {
    pub(super) fn method(self) -> Method {
        match self {
            Self::Stop => Method::DispatchMission,
            Self::Other(method) => method,
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

    /// Whether this call may go on.
    pub(super) fn check(
        &self,
        call: Call,
        principal: &Principal,
        metadata: &MetadataMap,
    ) -> Result<(), Status> {
        let needed = match call {
            Call::Stop => self.stops,
            Call::Other(method) => self.methods.contains(method),
        };
        // Without a certificate there is nothing to be bound to; the configuration sees to it that
        // there is one.
        let Principal::Spiffe(peer) = principal else {
            return Ok(());
        };
        if !needed {
            return Ok(());
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
            Ok(_) => Ok(()),
            Err(reason) => Err(Status::unauthenticated(format!("access token: {reason}"))),
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
