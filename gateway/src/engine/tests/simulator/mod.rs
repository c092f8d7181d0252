//! The engine and its journal on one thread from one seed: the clock, the robots, the callers and
//! the disk's faults are the seed's, everything else is what is shipped. See `tests/README.md`.

mod adapter;
mod book;
mod callers;
mod disk;
mod end;
mod faults;
mod guard;
mod judge;
mod message;
mod requests;
mod robot;
mod run;
mod trace;
mod wire;
mod world;

use run::{Outcome, Run};
use std::{
    cell::RefCell,
    path::Path,
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

thread_local! {
    /// What panicked on this thread: a task's panic is not heard otherwise.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn panicked() -> Option<String> {
    PANIC.with_borrow_mut(Option::take)
}

fn listen_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let otherwise = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let said = info.to_string().replace('\n', " ");
            PANIC.with_borrow_mut(|panic| *panic = Some(said));
            otherwise(info);
        }));
    });
}

/// Memory rather than a disk, where there is some: what is synced is ours to say.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.unwrap()
}

fn one(seed: u64, print: bool) -> Outcome {
    listen_for_panics();
    panicked();
    let folder = folder();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    let folder = folder.path().to_owned();
    runtime.block_on(async { Run::new(seed, print, folder).run().await })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs fresh seeds on all cores until there were so many, or time is up, or one fails.
fn many(seeds: u64, time: Option<Duration>) {
    let first = number("PORTARIUM_FIRST_SEED").unwrap_or_else(|| fastrand::u64(..1 << 48));
    let (began, next, steps) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let (over, failed) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let work = || {
        while !over.load(Ordering::Relaxed) && time.is_none_or(|time| began.elapsed() < time) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= seeds {
                return;
            }
            let outcome = one(first + n, false);
            steps.fetch_add(outcome.steps, Ordering::Relaxed);
            if let Some(wrong) = outcome.wrong {
                // The first of those that are under way counts.
                over.store(true, Ordering::Relaxed);
                failed.lock().unwrap().push((n, first + n, wrong));
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    let (seconds, steps) = (began.elapsed().as_secs_f64(), steps.into_inner());
    let ran = next.into_inner().min(seeds);
    let failed = failed.into_inner().unwrap().into_iter().min();
    let found = match &failed {
        None => format!(
            "0 found anything (at most 1 in {} at 95 %)",
            (ran / 3).max(1)
        ),
        Some(_) => "one found something".to_owned(),
    };
    println!(
        "FIGURE simulator: {ran} seeds from {first}, {found}, {steps} steps in {seconds:.1} s: {:.1} seeds and {:.0} steps per second",
        ran as f64 / seconds,
        steps as f64 / seconds
    );
    if let Some((n, seed, wrong)) = failed {
        println!(
            "FOUND after {} seeds: {}",
            n + 1,
            wrong.lines().next().unwrap_or_default()
        );
        panic!("seed {seed}: {wrong}\n\n    tests/simulate --seed {seed}\n");
    }
}

#[test]
fn whatever_happens_the_promises_hold() {
    many(
        number("PORTARIUM_SEEDS").unwrap_or(50),
        number("PORTARIUM_SECONDS").map(Duration::from_secs),
    );
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..5 {
        let (first, second) = (one(seed, false), one(seed, false));
        assert_eq!((first.steps, first.hash), (second.steps, second.hash));
    }
}

#[test]
#[ignore = "replays one seed: run by tests/simulate"]
fn replay() {
    let seed = number("PORTARIUM_SEED").unwrap();
    let outcome = one(seed, true);
    if let Some(wrong) = outcome.wrong {
        panic!("seed {seed}: {wrong}");
    }
}
