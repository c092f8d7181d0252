//! What the machine was and did meanwhile, so that a noisy run is seen to be one.

use crate::table::{Bound, Table};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// More of the CPU time than that, stolen or spent by others, makes figures doubtful.
const NOISE: f64 = 0.05;

/// CPU time of the whole machine since it started, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    all: u64,
    busy: u64,
    stolen: u64,
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
        let [user, nice, system, _, _, irq, softirq, stolen] = fields;
        Self {
            all: fields.iter().sum(),
            busy: user + nice + system + irq + softirq,
            stolen,
        }
    }

    /// The part of the CPU time since then that the host gave to others, which no process here got.
    pub fn stolen_since(self) -> f64 {
        let now = Self::now();
        (now.stolen - self.stolen) as f64 / (now.all - self.all).max(1) as f64
    }

    fn busy_since(self) -> f64 {
        let now = Self::now();
        (now.busy - self.busy) as f64 / (now.all - self.all).max(1) as f64
    }
}

/// Since the benchmark began.
pub struct Machine {
    begun: Ticks,
    busy_before: f64,
    load_before: f64,
}

impl Machine {
    /// Looks for two seconds at what it does by itself.
    pub async fn look(table: &mut Table) -> Self {
        let before = Ticks::now();
        sleep(Duration::from_secs(2)).await;
        let machine = Self {
            begun: Ticks::now(),
            busy_before: before.busy_since(),
            load_before: load(),
        };
        table.part("the machine, before anything was started");
        table.row(&model(), &[count() as f64], "cores", Bound::None);
        table.row("load average", &[machine.load_before], "", Bound::None);
        let busy = 100.0 * machine.busy_before;
        table.row("CPU busy with something else", &[busy], "%", Bound::None);
        machine
    }

    /// What it came to.
    pub fn conclude(&self, table: &mut Table) {
        table.part("the machine, over all");
        let stolen = self.begun.stolen_since();
        table.row("CPU time stolen", &[100.0 * stolen], "%", Bound::None);
        table.row("load average at the end", &[load()], "", Bound::None);
        if stolen > NOISE || self.busy_before > NOISE {
            println!(
                "\nA noisy run: something else had part of the CPU. Judge by the quotients, not by the figures."
            );
        }
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
