//! What a process holds: memory, files, threads, and its journal's size.

use std::{fs, path::Path};

/// One look at a process.
#[derive(Debug, Clone, Copy)]
pub struct Vitals {
    /// Resident memory, in KiB.
    pub memory: f64,
    /// Open file descriptors.
    pub files: f64,
    /// Threads.
    pub threads: f64,
    /// The journal's file, in KiB.
    pub journal: f64,
    /// The log beside it, in KiB.
    pub log: f64,
}

impl Vitals {
    /// Of this process, with this journal.
    pub fn of(pid: u32, journal: &Path) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> f64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            let value = line.split_ascii_whitespace().nth(1).unwrap();
            value.parse().unwrap()
        };
        let size = |ending: &str| -> f64 {
            let file = format!("{}{ending}", journal.display());
            fs::metadata(file).map_or(0, |file| file.len()) as f64 / 1024.0
        };
        Self {
            memory: field("VmRSS:"),
            files: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as f64,
            threads: field("Threads:"),
            journal: size(""),
            log: size("-wal"),
        }
    }
}

/// By how much a line through these values, taken at equal distances, rises from first to last.
pub fn rise(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let middle = (n - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / n;
    let (mut above, mut below) = (0.0, 0.0);
    for (place, value) in values.iter().enumerate() {
        let x = place as f64 - middle;
        above += x * (value - mean);
        below += x * x;
    }
    if below > 0.0 {
        above / below * (n - 1.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_rises_by_what_it_rises_and_noise_does_not() {
        let line: Vec<f64> = (0..=100).map(|n| f64::from(n) * 0.5 + 7.0).collect();
        assert!((rise(&line) - 50.0).abs() < 1e-9);
        let saw: Vec<f64> = (0..=100).map(|n| f64::from(n % 2)).collect();
        assert!(rise(&saw).abs() < 0.1);
    }
}
