//! `token …`: for those who issue access tokens.

use super::{
    Done,
    client::{IdentityArgs, svid},
    output::line,
};
use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use portarium_identity::token::{SigningKey, Thumbprint, bind};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use zeroize::Zeroizing;

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Mint an access token that is bound to a certificate (RFC 8705).
    Mint(MintArgs),
    /// Show the public half of a signing key as a JSON Web Key Set, for `tokens.keys_file`.
    Keys(KeyArgs),
}

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// The issuer's private key, PKCS#8 in PEM: P-256, P-384, Ed25519 or RSA.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The name of the key in the issuer's key set.
    #[arg(long)]
    kid: String,
}

#[derive(Debug, Args)]
pub(super) struct MintArgs {
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Who issues it: `tokens.issuer` of the gateway.
    #[arg(long)]
    issuer: String,
    /// For whom it is: `tokens.audience` of the gateway.
    #[arg(long)]
    audience: String,
    /// On whose behalf calls are made with it.
    #[arg(long)]
    subject: Option<String>,
    /// How long it lasts.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// The certificate that it is bound to, in PEM; this workload's own SVID otherwise.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

impl Token {
    pub(super) async fn execute(self) -> anyhow::Result<Done> {
        match self {
            Self::Mint(args) => line(args.mint().await?)?,
            Self::Keys(args) => line(args.read()?.key_set(&args.kid))?,
        }
        Ok(Done::Well)
    }
}

impl KeyArgs {
    fn read(&self) -> anyhow::Result<SigningKey> {
        let file = self.key.display();
        let pem = fs::read(&self.key).map(Zeroizing::new);
        let pem = pem.with_context(|| format!("--key {file}"))?;
        SigningKey::from_pem(&pem).with_context(|| format!("--key {file}"))
    }
}

impl MintArgs {
    async fn mint(&self) -> anyhow::Result<String> {
        let key = self.key.read()?;
        let thumbprint = match &self.certificate {
            Some(file) => thumbprint_of(file)?,
            None => svid(&self.identity.manager()?).await?.thumbprint,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let mut claims = Map::new();
        claims.insert("iss".to_owned(), Value::from(self.issuer.as_str()));
        claims.insert("aud".to_owned(), Value::from(self.audience.as_str()));
        if let Some(subject) = &self.subject {
            claims.insert("sub".to_owned(), Value::from(subject.as_str()));
        }
        claims.insert("iat".to_owned(), json!(now.as_secs()));
        let end = now.checked_add(self.ttl).context("--ttl is too long")?;
        claims.insert("exp".to_owned(), json!(end.as_secs()));
        let id = uuid::Uuid::now_v7().to_string();
        claims.insert("jti".to_owned(), Value::from(id));
        bind(&mut claims, &thumbprint);
        Ok(key.sign(&claims, &self.key.kid)?)
    }
}

/// Of the first certificate in the file: that of the workload, its issuers follow.
fn thumbprint_of(file: &Path) -> anyhow::Result<Thumbprint> {
    let wrong = |error| anyhow!("--certificate {}: {error}", file.display());
    let leaf = CertificateDer::from_pem_file(file).map_err(wrong)?;
    Ok(Thumbprint::of(&leaf))
}
