//! Renewals that do not come by themselves, from one seed: bundles, SVIDs of others and repeats come
//! at any rate and in any order, streams end at any time. What takes them, asks and says so is the
//! shipped code; agent and time are the test's.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::{End, LOOK, MIN_OVERDUE, Session};
use crate::{
    TrustDomain,
    authority::{Authority, AuthorityConfig, MintSpec},
    clock::Clock,
    shared::Shared,
};
use fastrand::Rng;
use futures::{StreamExt as _, stream};
use spiffe::{X509Bundle, X509BundleSet, X509Context, X509Svid, transport::Endpoint};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// What passes between an end and its notice, and between one stream and the next.
const SLACK: Duration = Duration::from_secs(1);

/// What an agent may send while it has no renewal, and the renewal.
struct Agent {
    others: Vec<X509Context>,
    renewal: X509Context,
}

impl Agent {
    async fn of(life: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = async |name: &str| {
            let config = AuthorityConfig {
                trust_domain: "a.test".into(),
                socket: folder.path().join(name),
                svid_ttl: Duration::from_secs(60),
                entries: Vec::new(),
            };
            Authority::start(config).await.unwrap()
        };
        let (one, other) = (start("one").await, start("other").await);
        let svid = |hint: &str, ttl| {
            let minted = one.mint(&MintSpec::svid(format!("spiffe://a.test/{hint}"), ttl));
            let minted = minted.unwrap();
            let (chain, key) = (minted.chain_der.concat(), &minted.key_pkcs8_der);
            let parsed = X509Svid::parse_from_der_with_hint(&chain, key, Some(hint.into()));
            Arc::new(parsed.unwrap())
        };
        let bundles = |authorities: Vec<Vec<u8>>| {
            let domain = TrustDomain::new("a.test").unwrap();
            let bundle = X509Bundle::parse_from_der(domain, &authorities.concat()).unwrap();
            [bundle].into_iter().collect::<X509BundleSet>()
        };
        let few = bundles(one.bundle());
        let many = bundles([one.bundle(), other.bundle()].concat());
        let (own, later) = (svid("own", life), svid("own", life * 2));
        let (a, b) = (svid("a", life), svid("a", life * 2));
        let context = |svids: &[&Arc<X509Svid>], bundles: &X509BundleSet| {
            X509Context::new(svids.iter().map(|svid| Arc::clone(svid)), bundles.clone())
        };
        Self {
            renewal: context(&[&later, &b], &many),
            others: vec![
                context(&[&own], &few),
                context(&[&own], &many),
                context(&[&own, &a], &few),
                context(&[&a, &own], &few),
                context(&[&b, &own], &many),
            ],
        }
    }

    fn other(&self, random: &mut Rng) -> X509Context {
        self.others[random.usize(..self.others.len())].clone()
    }
}

struct Run {
    agent: Agent,
    shared: Shared,
    /// When it was asked, on a stream of its own.
    asked: Mutex<Vec<Instant>>,
    /// Who asks from now on gets the renewal; streams that are open do not.
    has_renewal: AtomicBool,
}

impl Run {
    /// Asks for ever, as [`super::follow`] does.
    async fn follow(&self, mut random: Rng) {
        let endpoint = Endpoint::parse("unix:///nowhere").unwrap();
        // Below, at and above the pace of asking, or each in turn.
        let paces = [50, 400, 900, 1_100, 5_000, 60_000].map(Duration::from_millis);
        let steady = random.bool().then(|| paces[random.usize(1..paces.len())]);
        loop {
            let mut session = Session::new(&self.shared, &endpoint);
            self.asked.lock().unwrap().push(Instant::now());
            let first = match self.has_renewal.load(Relaxed) {
                true => self.agent.renewal.clone(),
                false => self.agent.other(&mut random),
            };
            let streams = random.fork();
            let contexts = stream::unfold((streams, 0), |(mut random, mut left)| async move {
                let mut pace = steady.unwrap_or(paces[0]);
                if steady.is_none() {
                    pace = paces[left % paces.len()];
                    left = if left < paces.len() {
                        random.usize(1..40) * paces.len() + random.usize(..paces.len())
                    } else {
                        left - paces.len()
                    };
                }
                sleep(pace.mul_f64(0.5 + random.f64() / 2.0)).await;
                let context = match self.has_renewal.load(Relaxed) {
                    true => std::future::pending().await,
                    false => self.agent.other(&mut random),
                };
                (random.u32(..200) > 0).then_some((Ok(context), (random, left)))
            });
            let end = session.take_all(contexts.boxed(), first).await;
            assert!(!matches!(end, End::Replaced), "{end:?}");
            sleep(Duration::from_millis(random.u64(..500))).await;
        }
    }

    /// What was wrong between the first SVID and its renewal, or the end.
    async fn look(&self, mut random: Rng, renew_before: Duration) -> Result<(), String> {
        // The follower takes the first before it lets anybody else have a turn.
        sleep(Duration::from_millis(1)).await;
        let svid = self.shared.latest().ok_or("there is no SVID")?;
        let life = svid.not_after.duration_since(svid.not_before).unwrap();
        let end = Instant::now() + self.shared.left(&svid);
        let margin = renew_before.min(life / 12);
        let due = end - margin;
        let renews = due + margin.mul_f64(random.f64() * 0.7);
        while Instant::now() < renews {
            sleep(Duration::from_millis(random.u64(1..700))).await;
            let (now, overdue) = (Instant::now(), self.shared.overdue());
            let near = now < due + SLACK && due < now + SLACK;
            if !near && overdue.is_some() != (now > due) {
                return Err(format!("{:?} before the end: {overdue:?}", end - now));
            }
        }
        self.asks(due, renews, end)?;
        let before = self.shared.latest().map(|svid| svid.serial.clone());
        self.has_renewal.store(true, Relaxed);
        let left = end - Instant::now();
        sleep((left / 4).max(MIN_OVERDUE) + LOOK + SLACK).await;
        let after = self.shared.latest().map(|svid| svid.serial.clone());
        match self.shared.overdue() {
            _ if after.is_none() || after == before => Err("the renewal was not asked for".into()),
            Some(overdue) => Err(format!("it was renewed, and {overdue}")),
            None => Ok(()),
        }
    }

    /// It has to be asked when the renewal is due and at least so often from then on.
    fn asks(&self, due: Instant, until: Instant, end: Instant) -> Result<(), String> {
        let asked = self.asked.lock().unwrap();
        let from = due - MIN_OVERDUE;
        let later = asked.iter().copied().filter(|at| *at > from);
        let mut last = from;
        for at in later.chain([until]) {
            let within = ((end - last) / 4).max(MIN_OVERDUE) + LOOK + SLACK;
            let within = if last < due {
                MIN_OVERDUE * 2 + SLACK
            } else {
                within
            };
            if at.saturating_duration_since(last) > within {
                let (last, at) = (end - last, end - at);
                return Err(format!("not asked from {last:?} to {at:?} before the end"));
            }
            last = at;
        }
        Ok(())
    }
}

async fn run(seed: u64) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let life = Duration::from_secs(random.u64(110..600));
    let renew_before = Duration::from_secs(random.u64(10..300));
    let agent = Agent::of(life).await;
    let mut shared = Shared::new(Some("own".into()), renew_before);
    shared.clock = Clock::of_tokio();
    let run = Run {
        agent,
        shared,
        asked: Mutex::default(),
        has_renewal: AtomicBool::new(false),
    };
    tokio::select! {
        () = run.follow(random.fork()) => Err("it ended".into()),
        result = run.look(random.fork(), renew_before) => result,
    }
}

#[test]
fn whatever_else_the_agent_sends_a_renewal_that_is_due_is_asked_for_and_missed_aloud() {
    let first = fastrand::u64(..1 << 48);
    for seed in first..first + 16 {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().unwrap();
        if let Err(wrong) = runtime.block_on(run(seed)) {
            panic!("seed {seed}: {wrong}");
        }
    }
}
