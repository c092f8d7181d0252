//! `svid …`

use super::{
    Done,
    client::{IdentityArgs, SVID_LIMIT, svid},
    output::{clean, line, remark, time_left, timestamp},
    svid_files::SvidFolder,
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use portarium_identity::{JwtSvidSource, Snapshot, SvidManager};
use serde_json::json;
use std::{path::PathBuf, sync::Arc, time::SystemTime};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

#[derive(Debug, Subcommand)]
pub(super) enum Svid {
    /// Show the current SVID.
    Show(ShowArgs),
    /// Tell each new SVID, until interrupted.
    Watch(ShowArgs),
    /// Get a JWT-SVID, a token that says who this workload is, for one audience.
    Jwt(JwtArgs),
    /// Keep svid.pem, key.pem and bundle.pem in a folder up to date, until interrupted.
    Write(WriteArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    identity: IdentityArgs,
    /// Answer in JSON, one object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct JwtArgs {
    #[command(flatten)]
    identity: IdentityArgs,
    /// For whom it is.
    #[arg(long)]
    audience: String,
}

#[derive(Debug, Args)]
pub(super) struct WriteArgs {
    #[command(flatten)]
    identity: IdentityArgs,
    /// Where to. The folder ..current in it always holds files of one generation.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Write the current SVID and end.
    #[arg(long)]
    once: bool,
}

impl Svid {
    pub(super) async fn execute(self) -> anyhow::Result<Done> {
        match self {
            Self::Show(args) => {
                let snapshot = svid(&args.identity.manager()?).await?;
                if args.json {
                    line(svid_json(&snapshot))?;
                } else {
                    line(svid_told(&snapshot, SystemTime::now()))?;
                }
                Ok(Done::Well)
            }
            Self::Watch(args) => {
                let json = args.json;
                follow(&args.identity.manager()?, |snapshot| {
                    let Some(snapshot) = snapshot else {
                        return Ok(());
                    };
                    if json {
                        line(svid_json(snapshot))?;
                    } else {
                        line(rotation_told(snapshot, SystemTime::now()))?;
                    }
                    Ok(())
                })
                .await
            }
            Self::Jwt(args) => {
                let source = JwtSvidSource::new(&args.identity.config()?, args.audience)?;
                line(source.fetch(None).await?.token())?;
                Ok(Done::Well)
            }
            Self::Write(args) => write(args).await,
        }
    }
}

async fn write(args: WriteArgs) -> anyhow::Result<Done> {
    let mut folder = SvidFolder::open(&args.dir)?;
    let manager = args.identity.manager()?;
    if args.once {
        let snapshot = svid(&manager).await?;
        folder.write(&snapshot)?;
        line(rotation_told(&snapshot, SystemTime::now()))?;
        return Ok(Done::Well);
    }
    follow(&manager, |snapshot| {
        match snapshot {
            Some(snapshot) => {
                folder.write(snapshot)?;
                line(rotation_told(snapshot, SystemTime::now()))?;
            }
            None => {
                folder.clear()?;
                remark("its files are removed");
            }
        }
        Ok(())
    })
    .await
}

/// Hands over the current SVID and each new one, and says where it was withdrawn, until the process
/// is asked to end.
async fn follow(
    manager: &SvidManager,
    mut take: impl FnMut(Option<&Snapshot>) -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle signals")?;
    let mut snapshots = manager.snapshots();
    let followed = async {
        if timeout(SVID_LIMIT, manager.ready()).await.is_err() {
            remark(format_args!("no SVID yet: {}", manager.state()));
        }
        let mut had = None;
        loop {
            let snapshot: Option<Arc<Snapshot>> = snapshots.borrow_and_update().clone();
            let has = snapshot.as_ref().map(|snapshot| snapshot.generation);
            if has.is_none() && had.is_some() {
                remark(format_args!("no SVID any longer: {}", manager.state()));
            }
            // Followers may be told to look again at what they have.
            if has != had {
                take(snapshot.as_deref())?;
            }
            had = has;
            snapshots
                .changed()
                .await
                .context("the identity is shut down")?;
        }
    };
    tokio::select! {
        end = followed => end,
        _ = interrupt.recv() => Ok(Done::Well),
        _ = terminate.recv() => Ok(Done::Well),
    }
}

fn rotation_told(svid: &Snapshot, now: SystemTime) -> String {
    format!(
        "generation {}: {} serial {} until {} ({})",
        svid.generation,
        svid.spiffe_id,
        svid.serial,
        timestamp(svid.not_after),
        time_left(svid.not_after, now),
    )
}

fn svid_told(svid: &Snapshot, now: SystemTime) -> String {
    let left = time_left(svid.not_after, now);
    let lines = [
        ("id", svid.spiffe_id.to_string()),
        (
            "hint",
            svid.hint.as_deref().map_or_else(|| "-".to_owned(), clean),
        ),
        ("serial", svid.serial.clone()),
        ("not before", timestamp(svid.not_before)),
        (
            "not after",
            format!("{} ({left})", timestamp(svid.not_after)),
        ),
        ("DNS names", or_dash(&svid.dns_names())),
        ("generation", svid.generation.to_string()),
        ("bundles of", or_dash(&trust_domains(svid))),
    ];
    lines
        .map(|(label, text)| format!("{label:<11} {text}"))
        .join("\n")
}

fn or_dash(texts: &[String]) -> String {
    if texts.is_empty() {
        "-".to_owned()
    } else {
        clean(&texts.join(", "))
    }
}

fn trust_domains(svid: &Snapshot) -> Vec<String> {
    svid.trust_domains().map(ToString::to_string).collect()
}

fn svid_json(svid: &Snapshot) -> serde_json::Value {
    json!({
        "spiffe_id": svid.spiffe_id.to_string(),
        "hint": svid.hint,
        "serial": svid.serial,
        "not_before": timestamp(svid.not_before),
        "not_after": timestamp(svid.not_after),
        "dns_names": svid.dns_names(),
        "generation": svid.generation,
        "trust_domains": trust_domains(svid),
    })
}
