//! Rotations from one seed: what an agent may push, withdraw and leave out, in any order, with time
//! passing in between. The state that the follower writes and everyone reads is the shipped one,
//! and so is what looks after it; agent and clock are the test's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::{
    IdentityState, TrustDomain,
    authority::{Authority, AuthorityConfig, MintSpec, Minted},
    manager::supervise,
    shared::Shared,
};
use fastrand::Rng;
use spiffe::{X509Bundle, X509BundleSet, X509Svid};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant as RealInstant, SystemTime},
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const DOMAIN: &str = "a.test";

/// This near to an end either answer is right: NotAfter has whole seconds.
const NEAR: Duration = Duration::from_secs(3);

/// What an agent may push.
struct Material {
    svid: Arc<X509Svid>,
    bundles: Arc<X509BundleSet>,
    key: Vec<u8>,
    not_after: SystemTime,
    /// Key and certificate belong together.
    fits: bool,
}

/// Made once.
struct Authorities {
    _runtime: tokio::runtime::Runtime,
    one: Authority,
    other: Authority,
}

fn authorities() -> &'static Authorities {
    static MADE: OnceLock<Authorities> = OnceLock::new();
    MADE.get_or_init(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let start = |name: &str| {
            let config = AuthorityConfig {
                trust_domain: DOMAIN.into(),
                socket: folder.path().join(name),
                svid_ttl: Duration::from_secs(60),
                entries: Vec::new(),
            };
            runtime.block_on(Authority::start(config)).unwrap()
        };
        let (one, other) = (start("one"), start("other"));
        Authorities {
            _runtime: runtime,
            one,
            other,
        }
    })
}

fn make_pool() -> Vec<Material> {
    let Authorities { one, other, .. } = authorities();
    let both: Vec<Vec<u8>> = [one.bundle(), other.bundle()].concat();
    let mut pool = Vec::new();
    for seconds in [60, 150, 400] {
        let ttl = Duration::from_secs(seconds);
        let spec = MintSpec::svid("spiffe://a.test/gateway", ttl);
        let (own, next) = (one.mint(&spec).unwrap(), one.mint(&spec).unwrap());
        pool.push(material(&own, &own, &one.bundle(), ttl));
        // The same SVID, and an authority that came or went.
        pool.push(material(&own, &own, &both, ttl));
        pool.push(material(&own, &next, &both, ttl));
        pool.push(material(&next, &next, &both, ttl));
    }
    pool
}

fn material(chain: &Minted, key: &Minted, bundle: &[Vec<u8>], ttl: Duration) -> Material {
    let svid = X509Svid::parse_from_der(&chain.chain_der.concat(), &key.key_pkcs8_der);
    let domain = TrustDomain::new(DOMAIN).unwrap();
    let bundle = X509Bundle::parse_from_der(domain, &bundle.concat()).unwrap();
    Material {
        svid: Arc::new(svid.unwrap()),
        bundles: Arc::new([bundle].into_iter().collect()),
        key: key.key_pkcs8_der.to_vec(),
        not_after: SystemTime::now() + ttl,
        fits: chain.key_pkcs8_der == key.key_pkcs8_der,
    }
}

/// What has to be there.
#[derive(Default)]
struct Model {
    held: Option<(usize, Instant)>,
    problem: Option<&'static str>,
    expired: bool,
    changes: u64,
}

struct Run {
    pool: Vec<Material>,
    random: Rng,
    shared: Arc<Shared>,
    model: Model,
    print: bool,
}

impl Run {
    fn turn(&mut self) -> String {
        match self.random.u32(0..10) {
            0..6 => {
                let n = self.random.usize(0..self.pool.len());
                self.push(n);
                format!("the agent pushes {n}")
            }
            6 => {
                self.shared.renewal_fails(IdentityState::NoSocket);
                self.model.problem = Some("no_socket");
                "the socket is gone".into()
            }
            7 => {
                self.shared.withdraw(IdentityState::PermissionDenied);
                self.model = Model {
                    problem: Some("permission_denied"),
                    changes: self.model.changes,
                    ..Model::default()
                };
                "the entry is deleted".into()
            }
            8 => {
                self.shared.look_again();
                "the machine slept".into()
            }
            _ => "nothing".into(),
        }
    }

    fn push(&mut self, n: usize) {
        let material = &self.pool[n];
        let same = |held: usize| {
            let held = &self.pool[held];
            held.svid == material.svid && held.bundles == material.bundles
        };
        let now = Instant::now();
        let taken = self.shared.accept(&material.svid, &material.bundles);
        self.model.problem = None;
        if let Some((held, end)) = self.model.held
            && same(held)
            && (is_near(now, end) || now < end)
        {
            assert!(taken.is_ok());
            let generation = self.shared.current().map(|s| s.generation);
            if !is_near(now, end) || generation != Some(self.model.changes + 1) {
                return;
            }
            // Near its end it is still held, or taken anew.
        } else {
            assert_eq!(taken.is_ok(), material.fits, "{taken:?}");
        }
        if material.fits {
            let left = material.not_after.duration_since(SystemTime::now());
            self.model.held = Some((n, now + left.unwrap_or_default()));
            self.model.expired = false;
            self.model.changes += 1;
        }
    }

    fn look(&mut self, seen: u64) -> Result<(), String> {
        let now = Instant::now();
        if let Some((_, end)) = self.model.held {
            if is_near(now, end) {
                return Ok(());
            }
            if end <= now {
                self.model.held = None;
                self.model.expired = true;
            }
        }
        let current = self.shared.current();
        let state = self.shared.state();
        let expected = match (&self.model.held, self.model.expired, self.model.problem) {
            (Some(_), _, _) => "ready",
            (None, true, _) => "expired",
            (None, false, Some(problem)) => problem,
            (None, false, None) => "starting",
        };
        if state.as_str() != expected {
            return Err(format!("it is {} and should be {expected}", state.as_str()));
        }
        let shown = self.shared.snapshot.borrow().as_ref().map(|s| s.generation);
        if shown != current.as_ref().map(|s| s.generation) {
            return Err(format!("followers find {shown:?}, which is over"));
        }
        if shown.unwrap_or_default() != seen {
            return Err(format!("followers have {seen}, there is {shown:?}"));
        }
        let Some((snapshot, (held, _))) = current.zip(self.model.held) else {
            return Ok(());
        };
        let material = &self.pool[held];
        if !snapshot.holds(&material.svid, &material.bundles) {
            return Err("another SVID is there, or other bundles".into());
        }
        if snapshot.bundle_pem().matches("BEGIN").count() != material.authorities() {
            return Err("an authority is kept that was taken away".into());
        }
        let key = snapshot.key_pem();
        let (_, key) = x509_parser::pem::parse_x509_pem(key.as_bytes()).unwrap();
        if key.contents != material.key {
            return Err("its key is another's".into());
        }
        if snapshot.generation != self.model.changes {
            let wanted = self.model.changes;
            return Err(format!(
                "generation {} is not {wanted}",
                snapshot.generation
            ));
        }
        Ok(())
    }
}

fn is_near(now: Instant, end: Instant) -> bool {
    end < now + NEAR && now < end + NEAR
}

impl Material {
    fn authorities(&self) -> usize {
        let bundles = self.bundles.iter();
        bundles.map(|(_, bundle)| bundle.authorities().len()).sum()
    }
}

/// Runs one seed; returns how many steps it took and what was wrong.
async fn run(seed: u64, print: bool) -> (u64, Option<String>) {
    let shared = Arc::new(Shared::new(None, Duration::ZERO));
    let stop = CancellationToken::new();
    let supervisor = supervise(shared.clone(), stop.clone(), std::future::pending);
    let supervisor = tokio::spawn(supervisor);
    let seen = Arc::new(AtomicU64::new(0));
    let (sees, mut snapshots) = (seen.clone(), shared.snapshot.subscribe());
    let follower = tokio::spawn(async move {
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            sees.store(snapshot.map_or(0, |s| s.generation), Relaxed);
        }
    });
    let mut run = Run {
        pool: make_pool(),
        random: Rng::with_seed(seed),
        shared,
        model: Model::default(),
        print,
    };
    let steps = run.random.u64(5..60);
    for step in 0..steps {
        let what = run.turn();
        let passes = match run.random.u32(0..4) {
            0 => run.random.u64(1..500),
            _ => run.random.u64(1..90),
        };
        sleep(Duration::from_secs(passes)).await;
        if run.print {
            println!("{step:>4} {what}; {passes} s pass: {}", run.shared.state());
        }
        if let Err(wrong) = run.look(seen.load(Relaxed)) {
            return (step, Some(wrong));
        }
    }
    stop.cancel();
    follower.abort();
    let _ = supervisor.await;
    (steps, None)
}

fn one(seed: u64, print: bool) -> (u64, Option<String>) {
    authorities();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(seed, print))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn whatever_the_agent_does_no_stale_svid_is_kept() {
    let first = number("PORTARIUM_FIRST_SEED").unwrap_or_else(|| fastrand::u64(..1 << 48));
    let seeds = number("PORTARIUM_SEEDS").unwrap_or(200);
    let time = number("PORTARIUM_SECONDS").map(Duration::from_secs);
    let (began, mut steps, mut ran) = (RealInstant::now(), 0, 0);
    while ran < seeds && time.is_none_or(|time| began.elapsed() < time) {
        let (took, wrong) = one(first + ran, false);
        (steps, ran) = (steps + took, ran + 1);
        if let Some(wrong) = wrong {
            let seed = first + ran - 1;
            println!("FOUND after {ran} seeds: {wrong}");
            panic!("seed {seed}: {wrong}\n\n    tests/simulate --identity --seed {seed}\n");
        }
    }
    let took = began.elapsed().as_secs_f64();
    let (seeds, steps) = (ran as f64 / took, steps as f64 / took);
    println!(
        "FIGURE identity simulator: {ran} seeds from {first}, 0 found anything (at most 1 in {} at 95 %): {seeds:.0} seeds and {steps:.0} steps per second",
        (ran / 3).max(1)
    );
}

#[test]
#[ignore = "replays one seed: run by tests/simulate"]
fn replay() {
    let seed = number("PORTARIUM_SEED").unwrap();
    if let (_, Some(wrong)) = one(seed, true) {
        panic!("seed {seed}: {wrong}");
    }
}
