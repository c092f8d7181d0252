//! The command line.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 78 bad configuration. Errors are one line on
//! standard error. A reader that goes away ends a command quietly.

mod audit;
mod client;
mod mission;
mod mission_told;
mod output;
mod peers;
mod robot;
mod serve;
mod svid;
mod svid_files;
mod token;
mod watch;

use crate::{
    config::{ConfigError, EXIT_BAD_CONFIG},
    logging,
};
use clap::{Parser, Subcommand};
use portarium_protocols::grpc::server::concerns_one_caller_alone;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{
    io::{self, Write as _},
    panic,
    path::PathBuf,
    process::{self, ExitCode},
};
use thiserror::Error;

/// As everywhere in Rust.
const EXIT_PANIC: i32 = 101;

#[derive(Debug, Parser)]
#[command(
    name = "portarium-gateway",
    version,
    about,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve.
    Run {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Serve with everything included: authority, broker and simulated robots.
    #[cfg(feature = "dev")]
    Dev(serve::DevArgs),
    /// Check a configuration and say what is wrong with it.
    CheckConfig {
        /// The configuration.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Dispatch missions and follow them.
    #[command(subcommand)]
    Mission(mission::Mission),
    /// See, hold and release robots.
    #[command(subcommand)]
    Robot(robot::Robot),
    /// List the gateway's connections, and the authority that each peer's certificate rests on.
    Peers(peers::PeersArgs),
    /// See this workload's identity.
    #[command(subcommand)]
    Svid(svid::Svid),
    /// Mint access tokens, and show the keys that they are verified with.
    #[command(subcommand)]
    Token(token::Token),
    /// Verify the audit log.
    #[command(subcommand)]
    Audit(audit::Audit),
}

/// How a command ended that was not in error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// As asked.
    Well,
    /// It was told, and it is not what was asked for: refused, or ended otherwise.
    Badly,
}

/// The arguments make no sense together.
#[derive(Debug, Error)]
#[error("{0}")]
struct Usage(String);

/// The whole process: reads the arguments, does what they say, and tells how it went.
pub fn main() -> ExitCode {
    end_with_a_panic();
    forbid_core_dumps();
    portarium_identity::install_crypto_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come here too; a reader may be gone.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match execute(cli.command) {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::Badly) => ExitCode::FAILURE,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&told(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Has the process end with the first panic of any of its threads and tasks, and say so in its last
/// line. A task that is gone is missed by nobody: its robot, say, would get nothing any more. And what
/// a lock protected may be half changed. Started again, all is as the journal has it.
///
/// A connection of a caller is an exception: nobody shall be able to take the gateway away from all
/// others with bytes that some library stumbles over.
pub fn end_with_a_panic() {
    panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no message");
        complain(&format!(
            "internal error at {place}: {what}; please report it"
        ));
        if !concerns_one_caller_alone() {
            process::exit(EXIT_PANIC);
        }
    }));
}

/// Keys are in memory. For this process and all that it may start, and for good.
fn forbid_core_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        complain(&format!("core dumps cannot be switched off: {error}"));
    }
}

fn execute(command: Command) -> anyhow::Result<Done> {
    match command {
        Command::Run { config } => serve::run(&config),
        #[cfg(feature = "dev")]
        Command::Dev(args) => serve::dev(args),
        Command::CheckConfig { file } => serve::check_config(&file),
        Command::Mission(mission) => client(mission.execute()),
        Command::Robot(robot) => client(robot.execute()),
        Command::Peers(args) => client(args.execute()),
        Command::Svid(svid) => client(svid.execute()),
        Command::Token(token) => client(token.execute()),
        Command::Audit(audit) => audit.execute(),
    }
}

/// Clients do one thing at a time.
fn client(work: impl Future<Output = anyhow::Result<Done>>) -> anyhow::Result<Done> {
    logging::init_client()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    // A file that cannot be read keeps nobody who has what he came for.
    runtime.shutdown_background();
    done
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() {
        EXIT_BAD_CONFIG
    } else if error.is::<Usage>() {
        2
    } else {
        1
    }
}

/// The error and what is behind it. Many errors tell their source themselves; it is not told
/// again then.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for source in error.chain().skip(1).map(ToString::to_string) {
        if !told.ends_with(&source) {
            told = format!("{told}: {source}");
        }
    }
    told
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// One line on standard error; nobody may be there to read it.
fn complain(what: &str) {
    let _ = writeln!(io::stderr(), "error: {}", output::clean(what));
}
