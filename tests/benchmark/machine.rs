//! What the machine was and did meanwhile, so that a noisy run is seen to be one.

use crate::table::{Bound, Table};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// More of the CPU time than that, stolen or spent by others, makes a run a noisy one.
const NOISE: f64 = 0.05;

/// CPU time since the machine started, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    all: u64,
    /// Of all processes.
    spent: u64,
    /// Of this process and its children, also of those that have ended.
    ours: u64,
    /// What the host gave to others, and no process here got.
    stolen: u64,
}

/// Parts of the CPU time that the benchmark did not get.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    /// To processes that are not the benchmark's.
    pub others: f64,
    /// To other machines on the same host.
    pub stolen: f64,
}

impl Ticks {
    /// Until now.
    pub fn now() -> Self {
        let stat = read("/proc/stat");
        let first = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guests' time is in user and nice.
        let mut fields = [0; 8];
        for (field, text) in fields.iter_mut().zip(first.split_whitespace().skip(1)) {
            *field = text.parse().unwrap_or_default();
        }
        let [user, nice, system, _, _, _, _, stolen] = fields;
        Self {
            all: fields.iter().sum(),
            spent: user + nice + system,
            ours: ours(),
            stolen,
        }
    }

    /// What was lost since then.
    pub fn lost(self) -> Lost {
        let now = Self::now();
        let all = (now.all - self.all).max(1) as f64;
        let spent = now.spent - self.spent;
        let others = spent.saturating_sub(now.ours.saturating_sub(self.ours));
        Lost {
            others: others as f64 / all,
            stolen: (now.stolen - self.stolen) as f64 / all,
        }
    }
}

/// Every process of the benchmark is a child of this one.
fn ours() -> u64 {
    let me = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ticks = entries.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // Behind the name: state, parent, and from the twelfth on the times in user and system
        // mode, and those of children that have ended.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let is_me = entry.file_name().to_str() == Some(&me);
        let is_ours = is_me || fields.get(1) == Some(&me.as_str());
        let times = fields.get(11..15).filter(|_| is_ours)?;
        Some(
            times
                .iter()
                .filter_map(|text| text.parse::<u64>().ok())
                .sum::<u64>(),
        )
    });
    ticks.sum()
}

/// Looks for two seconds at what the machine does by itself. Returns when the benchmark began.
pub async fn look(table: &mut Table) -> Ticks {
    table.part("the machine, before anything was started");
    sleep(Duration::from_secs(2)).await;
    table.row(&model(), &[count() as f64], "cores", Bound::None);
    table.row("load average", &[load()], "", Bound::None);
    let busy = 100.0 * table.lost().others;
    table.row("CPU busy with something else", &[busy], "%", Bound::None);
    Ticks::now()
}

/// What it came to.
pub fn conclude(table: &mut Table, begun: Ticks) {
    table.part("the machine, over all");
    let lost = begun.lost();
    let (others, stolen) = (100.0 * lost.others, 100.0 * lost.stolen);
    table.row("CPU busy with something else", &[others], "%", Bound::None);
    table.row("CPU time stolen", &[stolen], "%", Bound::None);
    table.row("load average", &[load()], "", Bound::None);
    if lost.others.max(lost.stolen) > NOISE {
        println!(
            "\nA noisy run: something else had part of the CPU. No figure of it is worth much, \
             and no verdict."
        );
    }
}

/// What making 4 KiB durable costs where the journal is: 200 times, in milliseconds.
pub fn fsyncs(dir: &Path) -> Vec<f64> {
    let path = dir.join("fsync");
    let mut file = fs::File::create(&path).unwrap();
    let costs = (0..200).map(|_| {
        let began = Instant::now();
        std::io::Write::write_all(&mut file, &[0; 4096]).unwrap();
        file.sync_data().unwrap();
        began.elapsed().as_secs_f64() * 1e3
    });
    let costs = costs.collect();
    fs::remove_file(path).unwrap();
    costs
}

/// The load average of the last minute.
pub fn load() -> f64 {
    let text = read("/proc/loadavg");
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or(f64::NAN)
}

/// How many, and of what kind.
pub fn cores() -> String {
    format!("{} × {}", count(), model())
}

fn count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn model() -> String {
    let cpu = read("/proc/cpuinfo");
    let mut lines = cpu.lines();
    let model = lines.find_map(|line| line.strip_prefix("model name"));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |rest| rest.trim_start_matches([' ', '\t', ':']).to_owned(),
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
