//! What the end-to-end tests share: the gateway as a process, an authority, a real broker,
//! robots, callers, and eyes on what all of them did.
//!
//! A test that fails is to say so at once and loudly: everything here panics rather than returns
//! errors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "these are tests, spread over files"
)]

mod agent;
mod caller;
mod config;
mod disk;
mod gateway;
mod house;
mod identities;
mod load;
mod mosquitto;
mod network;
mod power;
mod process;
mod proxy;
mod pushes;
mod records;
mod robots;
mod shim;
mod spire;
mod stranger;
mod verdict;
mod vitals;
mod watch;

pub use agent::Agent;
pub use caller::{Caller, mission, stop};
pub use config::{Config, Ports};
pub use disk::SmallDisk;
pub use gateway::GatewayProcess;
pub use house::{Arrangement, House};
pub use identities::{Identities, hints, only, spiffe_id};
pub use load::{Acknowledged, INSISTENCE, Load, Operator};
pub use mosquitto::Mosquitto;
pub use network::{Fault, Network, Place, in_a_network_of_its_own};
pub use power::{Disk, Told, Unsynced};
pub use process::{Process, binary, free_port};
pub use proxy::{Link, Proxy, SlowLine};
pub use pushes::Pushes;
pub use records::{JournalRow, audit, journal, metric, status_of};
pub use robots::{SimRobot, grpc_robot, mqtt_robot};
pub use shim::{Errno, Shim};
pub use spire::{Registration, Spire, on_spire};
pub use stranger::{Entered, Stranger};
pub use verdict::{Fate, Verdict, fates};
pub use vitals::{Vitals, rise};
pub use watch::Watch;

use std::{
    fmt::Write as _,
    future::Future,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// How long a test waits for something that is to happen soon.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether `tests/run --long` runs us.
pub fn long() -> bool {
    std::env::var_os("PORTARIUM_LONG").is_some_and(|value| value == "1")
}

/// A count of the plain run: ten times as much in the long one.
pub fn scaled(plain: usize) -> usize {
    if long() { plain * 10 } else { plain }
}

/// What every test begins with: the process's TLS provider, and logs where `RUST_LOG` asks.
pub fn init() {
    portarium_identity::install_crypto_provider();
}

/// Waits until the condition holds, and panics with `what` where it does not in time.
pub async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, condition).await;
}

/// As [`until`], with a patience of its own.
pub async fn until_within(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) {
    let waited = timeout(patience, async {
        while !condition().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(
        waited.await.is_ok(),
        "waited {patience:?} in vain for {what}"
    );
}

/// Awaits something that is to happen soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// Median, 99th percentile and maximum, in milliseconds, as a line for people.
pub fn spread(samples: &[Duration]) -> String {
    let mut sorted = samples.to_vec();
    sorted.sort();
    let mut text = format!("{} samples", sorted.len());
    if let Some(last) = sorted.last() {
        let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize];
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let _ = write!(
            text,
            ": median {:.2} ms, 99 % {:.2} ms, max {:.2} ms",
            ms(at(0.5)),
            ms(at(0.99)),
            ms(*last)
        );
    }
    text
}

/// Panics where stops were not answered in time: 20 ms of waiting for the disk or a robot's word, and
/// what a shared machine adds, which is seldom much.
pub fn assert_prompt(stops: &[Duration]) {
    let mut sorted = stops.to_vec();
    sorted.sort();
    let most = sorted[(sorted.len() - 1) * 9 / 10];
    assert!(most < Duration::from_millis(250), "{}", spread(stops));
    let slowest = sorted[sorted.len() - 1];
    assert!(slowest < Duration::from_secs(1), "{}", spread(stops));
}

/// The time within which so many parts of all samples (0.99, say) were.
pub fn quantile(samples: &[Duration], part: f64) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort();
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

/// How often something happened in so many tries; where it never did, with what that bounds its rate by:
/// three in as many, at 95 %.
pub fn happened(times: usize, tries: usize) -> String {
    if times > 0 || tries == 0 {
        return format!("{times} in {tries}");
    }
    let percent = (300.0 / tries as f64).min(100.0);
    // Two digits that say something.
    let decimals = (1.0 - percent.log10().floor()).max(0.0) as usize;
    format!("0 in {tries} (at most {percent:.decimals$} % at 95 %)")
}

/// Prints a figure of the test, in a form that `tests/run` collects.
pub fn figure(test: &str, what: &str) {
    println!("FIGURE {test}: {what}");
}

/// The time of day for a test's own story, in seconds since `from`.
pub fn since(from: Instant) -> String {
    format!("{:7.3} s", from.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_told_with_what_that_bounds() {
        for (times, tries, told) in [
            (0, 20, "0 in 20 (at most 15 % at 95 %)"),
            (0, 100, "0 in 100 (at most 3.0 % at 95 %)"),
            (0, 1_721, "0 in 1721 (at most 0.17 % at 95 %)"),
            (0, 2, "0 in 2 (at most 100 % at 95 %)"),
            (0, 0, "0 in 0"),
            (1, 20, "1 in 20"),
        ] {
            assert_eq!(happened(times, tries), told);
        }
    }
}
