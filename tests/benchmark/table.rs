//! The table of results: printed as it grows, and as JSON on request.

use crate::machine::{Lost, Ticks, load};
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

/// A line of the table, with what tells how far it can be trusted.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: String,
    bound: String,
    ok: bool,
    lowest: f64,
    highest: f64,
    others: f64,
    stolen: f64,
}

/// All rows so far.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Row>,
    part: String,
    part_begun: Ticks,
}

impl Table {
    /// Without a row.
    pub fn new() -> Self {
        Self {
            rows: Vec::new(),
            part: String::new(),
            part_begun: Ticks::now(),
        }
    }

    /// Begins a part: what is measured from here on.
    pub fn part(&mut self, name: &str) {
        println!("\n{name} (load average {})", short(load()));
        name.clone_into(&mut self.part);
        self.part_begun = Ticks::now();
    }

    /// The median of the runs, with their range, and the CPU time that others had meanwhile.
    pub fn row(&mut self, name: &str, runs: &[f64], unit: &str, bound: Bound) {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        let value = median(runs);
        let ok = bound.holds(value) && !sorted.is_empty();
        let (lowest, highest) = match (sorted.first(), sorted.last()) {
            (Some(lowest), Some(highest)) => (*lowest, *highest),
            _ => (f64::NAN, f64::NAN),
        };
        let range = if sorted.len() > 1 {
            format!("{} … {}", short(lowest), short(highest))
        } else {
            String::new()
        };
        let verdict = match (ok, bound) {
            (_, Bound::None) => "",
            (true, _) => "ok",
            (false, _) => "NOT MET",
        };
        let Lost { others, stolen } = self.lost();
        println!(
            "  {name:<58} {:>9} {unit:<12} {range:<20} others {:>2.0} %, steal {:>2.0} %  {:<8} {verdict}",
            short(value),
            100.0 * others,
            100.0 * stolen,
            bound.to_string(),
        );
        self.rows.push(Row {
            name: format!("{}: {name}", self.part),
            value,
            unit: unit.into(),
            bound: bound.to_string(),
            ok,
            lowest,
            highest,
            others,
            stolen,
        });
    }

    /// The CPU time that others had since the part began.
    pub fn lost(&self) -> Lost {
        self.part_begun.lost()
    }

    /// Whether every bound holds.
    pub fn all_hold(&self) -> bool {
        self.rows.iter().all(|row| row.ok)
    }

    /// Says which bounds do not hold.
    pub fn conclude(&self) {
        println!();
        for row in self.rows.iter().filter(|row| !row.ok) {
            let (value, unit) = (short(row.value), &row.unit);
            println!("NOT MET  {}: {value} {unit}, {}", row.name, row.bound);
        }
        if self.all_hold() {
            println!("Every bound holds.");
        }
    }

    /// Writes it as a list of rows.
    pub fn write_json(&self, path: &Path) {
        fs::write(path, serde_json::to_vec_pretty(&self.rows).unwrap()).unwrap();
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (
        sorted.get((sorted.len().max(1) - 1) / 2),
        sorted.get(sorted.len() / 2),
    ) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => f64::NAN,
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
