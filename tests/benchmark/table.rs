//! The table of results: printed as it grows, and as JSON on request.

use serde::Serialize;
use std::{fmt, fs, path::Path};

/// What must hold of a value.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Shown only.
    None,
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::None => true,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
            Self::None => Ok(()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: String,
    bound: String,
    ok: bool,
}

/// All rows so far.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// The median of the runs, with their range.
    pub fn row(&mut self, name: &str, runs: &[f64], unit: &str, bound: Bound) {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        let value = median(runs);
        let ok = bound.holds(value) && !sorted.is_empty();
        let range = match (sorted.first(), sorted.last()) {
            (Some(low), Some(high)) if sorted.len() > 1 => {
                format!("{} … {}", short(*low), short(*high))
            }
            _ => String::new(),
        };
        let verdict = match (ok, bound) {
            (_, Bound::None) => "",
            (true, _) => "ok",
            (false, _) => "NOT MET",
        };
        println!(
            "{name:<64} {:>9} {unit:<12} {range:<22} {:<9} {verdict}",
            short(value),
            bound.to_string(),
        );
        self.0.push(Row {
            name: name.into(),
            value,
            unit: unit.into(),
            bound: bound.to_string(),
            ok,
        });
    }

    /// Whether every bound holds.
    pub fn all_hold(&self) -> bool {
        self.0.iter().all(|row| row.ok)
    }

    /// Writes it as a list of rows.
    pub fn write_json(&self, path: &Path) {
        fs::write(path, serde_json::to_vec_pretty(&self.0).unwrap()).unwrap();
    }
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
