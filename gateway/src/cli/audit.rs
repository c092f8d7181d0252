//! `audit …`

use super::{
    Done, Usage,
    output::{clean, line},
};
use crate::audit::{Broken, ChainHash, NotVerified, Unfinished, Verified, verify};
use clap::{Args, Subcommand};
use serde_json::json;
use std::{fmt::Write as _, path::PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Say whether the audit is as the gateway wrote it, or which line is the first that is not.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The audit log, of which FILE.1, FILE.2 and so on are found too; or several, oldest first.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The last hash that was seen (in /metrics or the log): whether all up to it is there.
    #[arg(long, value_name = "HASH")]
    head: Option<ChainHash>,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(super) fn execute(self) -> anyhow::Result<Done> {
        let Self::Verify(args) = self;
        match verify(&args.files, args.head) {
            Ok(verified) if args.json => {
                line(whole_json(&verified))?;
                Ok(Done::Well)
            }
            Ok(verified) => {
                line(told(&verified))?;
                Ok(Done::Well)
            }
            Err(NotVerified::Broken(broken)) if args.json => {
                line(broken_json(&broken))?;
                Ok(Done::Badly)
            }
            Err(NotVerified::Broken(broken)) => Err(broken.into()),
            Err(unreadable @ NotVerified::Read { .. }) => Err(Usage(unreadable.to_string()).into()),
        }
    }
}

fn told(verified: &Verified) -> String {
    let mut told = format!("whole: {} lines", verified.lines);
    let files: Vec<_> = verified
        .files
        .iter()
        .map(|f| f.display().to_string())
        .collect();
    // Writing to a text cannot fail.
    let _ = write!(told, " in {}", clean(&files.join(", ")));
    if verified.after != ChainHash::START {
        let _ = write!(
            told,
            "\nafter {}, which is in an older file",
            verified.after
        );
    }
    for text in &verified.unfinished {
        let by = match text.told {
            true => "told by the line behind it",
            false => "not told by a line yet",
        };
        let file = clean(&text.file.display().to_string());
        let (line, bytes) = (text.line, text.bytes);
        let _ = write!(
            told,
            "\n{file}: line {line}: {bytes} bytes without an end, {by}"
        );
    }
    let _ = write!(told, "\nhead {}", verified.head);
    told
}

fn whole_json(verified: &Verified) -> serde_json::Value {
    let files: Vec<_> = verified.files.iter().map(|f| f.to_string_lossy()).collect();
    let unfinished = |text: &Unfinished| {
        let file = text.file.to_string_lossy();
        json!({ "file": file, "line": text.line, "bytes": text.bytes, "told": text.told })
    };
    let unfinished: Vec<_> = verified.unfinished.iter().map(unfinished).collect();
    json!({
        "whole": true,
        "files": files,
        "lines": verified.lines,
        "after": verified.after,
        "head": verified.head,
        "unfinished": unfinished,
    })
}

fn broken_json(broken: &Broken) -> serde_json::Value {
    let problem = broken.to_string();
    match broken {
        Broken::Line { file, line, .. } => {
            let file = file.to_string_lossy();
            json!({ "whole": false, "file": file, "line": line, "problem": problem })
        }
        Broken::Head { last, lines, .. } => {
            json!({ "whole": false, "lines": lines, "head": last, "problem": problem })
        }
        Broken::Empty => json!({ "whole": false, "problem": problem }),
    }
}
