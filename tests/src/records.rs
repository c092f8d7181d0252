//! What the gateway wrote down: journal, audit log, metrics.

use crate::gateway::get;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// A mission's last row in the journal.
#[derive(Debug, Clone)]
pub struct JournalRow {
    /// The mission.
    pub mission_id: String,
    /// The robot.
    pub robot_id: String,
    /// The column `status`: 0 Pending … 6 Cancelled.
    pub status: i64,
    /// How many states it went through.
    pub states: i64,
    /// For people.
    pub detail: String,
}

/// The last row of each mission, read while the gateway may be running.
pub fn journal(path: &Path) -> BTreeMap<String, JournalRow> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = connection
        .prepare(
            "SELECT m.mission_id, m.robot_id, s.status, s.detail,
                    (SELECT count(*) FROM states t WHERE t.mission = m.mission)
             FROM missions m JOIN states s ON s.position =
                    (SELECT max(t.position) FROM states t WHERE t.mission = m.mission)",
        )
        .unwrap();
    let rows = statement.query_map([], |row| {
        Ok(JournalRow {
            mission_id: row.get(0)?,
            robot_id: row.get(1)?,
            status: row.get(2)?,
            detail: row.get(3)?,
            states: row.get(4)?,
        })
    });
    rows.unwrap()
        .map(|row| row.unwrap())
        .map(|row| (row.mission_id.clone(), row))
        .collect()
}

/// The audit log's lines so far.
pub fn audit(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last line may be in the making.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}

/// Status and body of `/readyz`; status 0 where nobody answers.
pub async fn status_of(health: u16) -> (u16, String) {
    get(health, "/readyz").await.unwrap_or_default()
}

/// The whole of `/metrics`.
async fn metrics(admin: u16) -> String {
    let (status, text) = get(admin, "/metrics").await.expect("an answer");
    assert_eq!(status, 200, "{text}");
    text
}

/// The sum of all samples of a metric, of which there must be one; `labels` is text that they
/// must contain.
pub async fn metric(admin: u16, name: &str, labels: &str) -> f64 {
    let text = metrics(admin).await;
    let of_metric = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let of_name = series == name || series.starts_with(&format!("{name}{{"));
        (of_name && series.contains(labels)).then(|| value.parse::<f64>().ok())?
    });
    let samples: Vec<f64> = of_metric.collect();
    assert!(!samples.is_empty(), "no metric {name}{{{labels}}}");
    samples.iter().sum()
}
