//! `[tokens]`.

use super::{
    ConfigError, Development, TokensConfig, parse::duration, peers, raw, robots, source::Source,
};
use portarium_identity::{
    SvidConfig,
    token::{KeySource, KeysConfig, TokenRules},
};
use std::time::Duration;

const REFRESH: Duration = Duration::from_secs(5 * 60);

/// Keys are used for a day at most; so there is a second try.
const LONGEST_REFRESH: Duration = Duration::from_secs(12 * 60 * 60);

pub(super) fn tokens(
    source: &Source,
    raw: Option<raw::RawTokens>,
    identity: &SvidConfig,
    development: Option<Development>,
) -> Result<Option<TokensConfig>, ConfigError> {
    let Some(raw) = raw else { return Ok(None) };
    if development.is_some() {
        let problem =
            "are bound to certificates, which development = true has none of; remove the section";
        return Err(source.error("tokens", problem));
    }
    let text = |key: &str, text: Option<raw::Text>| match peers::required(source, key, text)? {
        raw::Text(text) if text.is_empty() => {
            Err(source.error(key, "is empty; write what the issuer's tokens say"))
        }
        raw::Text(text) => Ok(text),
    };
    let methods = peers::methods(source, "tokens.methods", raw.methods)?;
    let refresh = duration(source, "tokens.keys_refresh", raw.keys_refresh, REFRESH)?;
    if refresh > LONGEST_REFRESH {
        let problem = "is more than 12 h, and keys are used for a day at most; write less";
        return Err(source.error("tokens.keys_refresh", problem));
    }
    let from = Keys {
        file: raw.keys_file,
        url: raw.keys_url,
        ca_file: raw.keys_ca_file,
        trust_domain: raw.keys_trust_domain,
    };
    Ok(Some(TokensConfig {
        rules: TokenRules {
            issuer: text("tokens.issuer", raw.issuer)?,
            audience: text("tokens.audience", raw.audience)?,
        },
        keys: KeysConfig {
            source: from.source(source, identity)?,
            refresh,
        },
        methods: methods.into_iter().collect(),
        stops: raw.stops.is_some_and(|raw::Flag(stops)| stops),
    }))
}

struct Keys {
    file: Option<raw::Text>,
    url: Option<raw::Text>,
    ca_file: Option<raw::Text>,
    trust_domain: Option<raw::Text>,
}

impl Keys {
    fn source(self, source: &Source, identity: &SvidConfig) -> Result<KeySource, ConfigError> {
        if self.ca_file.is_some() && self.url.is_none() {
            let problem = "is for tokens.keys_url, which is not there; remove it";
            return Err(source.error("tokens.keys_ca_file", problem));
        }
        match (self.file, self.url, self.trust_domain) {
            (Some(raw::Text(file)), None, None) => Ok(KeySource::File(file.into())),
            (None, Some(raw::Text(url)), None) => Ok(KeySource::Url {
                url,
                ca_file: self.ca_file.map(|raw::Text(file)| file.into()),
            }),
            (None, None, Some(raw::Text(domain))) => Ok(KeySource::WorkloadApi {
                endpoint_socket: identity.endpoint_socket.clone(),
                trust_domain: robots::parsed(source, "tokens.keys_trust_domain", &domain)?,
            }),
            (None, None, None) => Err(source.error(
                "tokens.keys_file",
                "missing; add it, or keys_url, or keys_trust_domain",
            )),
            _ => Err(source.error(
                "tokens.keys_file",
                "keys come from one place; keep one of keys_file, keys_url and keys_trust_domain",
            )),
        }
    }
}
