//! Certificate-bound access tokens (RFC 8705, section 3): JWTs that name, in `cnf.x5t#S256`, the
//! one certificate that they may be used with. Whoever steals one cannot use it without the key of
//! that certificate as well.

mod fetch;
mod key_set;
mod mint;
mod source;
#[cfg(test)]
mod tests;
mod thumbprint;
mod verify;

pub use key_set::{KeySet, KeySetError};
pub use mint::{SigningKey, SigningKeyError, bind};
pub use source::{KeySource, KeysConfig, KeysError, TokenKeys};
pub use thumbprint::Thumbprint;
pub use verify::{Bearer, TokenError, TokenRules};
