//! A house under attack: what goes on meanwhile, and what has to be as before afterwards.

use portarium_gateway::dev::robot::LogEvent;
use portarium_protocols::grpc::pb::DispatchStatus;
use portarium_tests::{
    Arrangement, Caller, Fate, House, Load, audit, fates, figure, happened, mission, spread, stop,
    until_within,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long the missions of others take.
const TAKES: Duration = Duration::from_millis(20);
/// A mission that ends only because something stops it.
const LONG: Duration = Duration::from_secs(600);
/// Between two stops.
const PAUSE: Duration = Duration::from_millis(100);
/// So long others do as they do before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// What an attack leaves behind has gone after so long: keep-alive, handshake and reset limits.
const SETTLED_WITHIN: Duration = Duration::from_secs(40);
/// A stop that takes longer was held up.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// How large the gateway is.
#[derive(Debug, Clone)]
pub struct Vitals {
    pub pid: u32,
    /// But for files: SQLite opens them as it needs them.
    pub descriptors: usize,
    /// What descriptors are, and how many of each; for people.
    #[expect(dead_code, reason = "shown by Debug")]
    kinds: BTreeMap<String, usize>,
    pub resident_mib: usize,
}

impl Vitals {
    pub fn of(house: &House) -> Self {
        let pid = house.gateway.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the gateway lives");
        let number = |key: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.expect(key).parse().unwrap()
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut kinds = BTreeMap::<_, usize>::new();
        for descriptor in descriptors {
            // One may be closed since.
            if let Ok(target) = fs::read_link(descriptor.unwrap().path()) {
                let target = target.display().to_string();
                let kind = target.split(':').next().unwrap().to_owned();
                *kinds.entry(kind).or_default() += 1;
            }
        }
        Self {
            pid,
            descriptors: not_files(&kinds),
            kinds,
            resident_mib: number("VmRSS:") / 1024,
        }
    }
}

fn not_files(kinds: &BTreeMap<String, usize>) -> usize {
    let kinds = kinds.iter().filter(|(kind, _)| !kind.starts_with('/'));
    kinds.map(|(_, count)| count).sum()
}

/// The control plane goes on sending missions to `m`, and stopping `g` in the middle of others.
pub struct Siege {
    pub house: House,
    name: &'static str,
    before: Vitals,
    load: Load,
    stopping: CancellationToken,
    stopper: JoinHandle<Vec<(String, Instant)>>,
}

impl Siege {
    pub async fn begin(name: &'static str, workloads: &[&str], config: &str) -> Self {
        let arrangement = Arrangement {
            workloads,
            svid_ttl: Duration::from_secs(3600),
            config,
            ..Arrangement::default()
        };
        Self::around(name, House::arranged(arrangement).await).await
    }

    pub async fn around(name: &'static str, house: House) -> Self {
        let load = Load::start(&house.caller, &["m"], TAKES);
        let stopping = CancellationToken::new();
        let stopper = tokio::spawn(keep_stopping(house.caller.clone(), stopping.clone()));
        sleep(WARM_UP).await;
        Self {
            name,
            before: Vitals::of(&house),
            house,
            load,
            stopping,
            stopper,
        }
    }

    pub fn audit(&self) -> Vec<Value> {
        audit(&self.house.gateway.audit_file())
    }

    /// Waits until a line after `seen` lines is as wanted.
    pub async fn audited(&self, seen: usize, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        until_within(
            SETTLED_WITHIN,
            &format!("an audit line: {what}"),
            async || {
                found = self.audit().into_iter().skip(seen).find(|line| is(line));
                found.is_some()
            },
        )
        .await;
        found.unwrap()
    }

    /// The line of the handshake that was refused after `seen` lines.
    pub async fn refused_handshake(&self, seen: usize, what: &str) -> Value {
        let handshake =
            |line: &Value| line["method"] == "handshake" && line["decision"] == "refused";
        self.audited(seen, what, handshake).await
    }

    /// Waits until the audit tells of so many handshakes after `seen` lines that were refused for a
    /// reason that begins like this; how many it tells of, and in how many lines.
    pub async fn refused_handshakes(
        &self,
        seen: usize,
        reason: &str,
        at_least: usize,
    ) -> (usize, usize) {
        let mut told = (0, 0);
        let what = format!("{at_least} handshakes in the audit: {reason}");
        until_within(SETTLED_WITHIN, &what, async || {
            let mut lines = self.audit().split_off(seen);
            lines.retain(|line| {
                let why = line["reason"].as_str().unwrap_or_default();
                line["method"] == "handshake"
                    && line["decision"] == "refused"
                    && why.starts_with(reason)
            });
            let count = |line: &Value| line["suppressed"].as_u64().unwrap_or(1) as usize;
            told = (lines.iter().map(count).sum(), lines.len());
            told.0 >= at_least
        })
        .await;
        told
    }

    /// The attack is over: what it took is given back, and others did not notice.
    pub async fn lift(mut self, growth_mib: usize) -> House {
        let peak = Vitals::of(&self.house);
        let settled = timeout(SETTLED_WITHIN, async {
            while Vitals::of(&self.house).descriptors > self.before.descriptors {
                sleep(PAUSE).await;
            }
        });
        if settled.await.is_err() {
            let now = Vitals::of(&self.house);
            panic!("descriptors are not given back: {:?}, {now:?}", self.before);
        }
        let missions: Vec<_> = self.load.finish().await.into_keys().collect();
        self.stopping.cancel();
        let stops = self.stopper.await.unwrap();
        let after = Vitals::of(&self.house);
        self.house.watch.ended(&missions, LONG).await;
        let verdict = fates(
            &missions,
            &self.house.log.entries(),
            &self.house.watch.all(),
        );
        verdict.assert_good();
        assert_eq!(verdict.count(Fate::Done), missions.len(), "{verdict:?}");
        let latencies = latencies(&self.house, &stops);
        let late = latencies.iter().filter(|latency| **latency >= STOP_WITHIN);
        let late = late.count();
        figure(
            self.name,
            &format!(
                "meanwhile missions of others: {verdict}; stops held up {}, from call to robot {}; \
                 resident {} MiB before, {} at its end, {} after; descriptors {}, {}, {}",
                happened(late, latencies.len()),
                spread(&latencies),
                self.before.resident_mib,
                peak.resident_mib,
                after.resident_mib,
                self.before.descriptors,
                peak.descriptors,
                after.descriptors,
            ),
        );
        assert_eq!(self.house.caller.failed(), 0, "calls of others failed");
        assert!(
            missions.len() > 10 && latencies.len() > 3,
            "too little went on meanwhile"
        );
        assert_eq!(late, 0, "stops were held up: {}", spread(&latencies));
        assert!(
            after.resident_mib <= self.before.resident_mib + growth_mib,
            "grew: {:?}, {after:?}",
            self.before
        );
        assert_eq!(after.pid, self.before.pid);
        self.house.gateway.ready().await;
        self.house
    }
}

/// Sends a mission to `g`, stops it amid it, and so on; tells when each stop was called.
async fn keep_stopping(caller: Arc<Caller>, stopping: CancellationToken) -> Vec<(String, Instant)> {
    let mut stops = Vec::new();
    while !stopping.is_cancelled() {
        let n = stops.len();
        caller
            .accepted(&mission("g", &format!("long-{n}"), LONG))
            .await;
        sleep(PAUSE).await;
        let name = format!("stop-{n}");
        stops.push((name.clone(), Instant::now()));
        let answer = caller.dispatch(&stop("g", &name)).await.unwrap();
        assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
        let outcome = answer.stop.unwrap();
        assert!(!outcome.robot_unreachable, "{outcome:?}");
    }
    stops
}

/// How long each stop took to its robot; panics where one did not get there.
fn latencies(house: &House, stops: &[(String, Instant)]) -> Vec<Duration> {
    let arrived = |name: &str| {
        let arrived = house.first(LogEvent::Stop, name);
        arrived.unwrap_or_else(|| panic!("{name} did not arrive"))
    };
    stops
        .iter()
        .map(|(name, called)| arrived(name).duration_since(*called))
        .collect()
}
