//! What goes to standard output.

use std::{
    fmt,
    io::{self, Write as _},
    time::{Duration, SystemTime},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A line on standard output, at once.
pub(super) fn line(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// A remark on standard error, where it does not mix with the answer.
pub(super) fn remark(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{}", clean(&text.to_string()));
}

/// What others wrote, such that it cannot move a terminal's cursor or break a line.
pub(super) fn clean(text: &str) -> String {
    let harmless = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if harmless(c) { c } else { ' ' })
        .collect()
}

/// Rows under a head, aligned; the last column is as long as it is.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .chain([head[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let rows = rows
        .iter()
        .map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(line(head))
        .chain(rows)
        .collect::<Vec<_>>()
        .join("\n")
}

/// RFC 3339, UTC, to the second.
pub(super) fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    // A year beyond 9999 is the only thing that cannot be written.
    at.replace_nanosecond(0)
        .unwrap_or(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}

/// The time left until then, in words.
pub(super) fn time_left(until: SystemTime, now: SystemTime) -> String {
    let seconds = |time: Duration| Duration::from_secs(time.as_secs());
    match until.duration_since(now) {
        Ok(left) => format!("{} left", humantime::format_duration(seconds(left))),
        Err(over) => format!(
            "over for {}",
            humantime::format_duration(seconds(over.duration()))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        let rows = [["amr-7".into(), "".into()], ["ö".into(), "held".into()]];
        assert_eq!(
            table(["ROBOT", "STATE"], &rows),
            "ROBOT  STATE\namr-7\nö      held"
        );
    }

    #[test]
    fn what_others_wrote_stays_on_its_line() {
        assert_eq!(clean("a\u{1b}[2J\nb\u{202e}c"), "a [2J b c");
    }

    #[test]
    fn times_are_told_to_the_second() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_999);
        assert_eq!(timestamp(at), "1970-01-02T00:00:00Z");
        assert_eq!(time_left(at, SystemTime::UNIX_EPOCH), "1day left");
        assert_eq!(time_left(SystemTime::UNIX_EPOCH, at), "over for 1day");
    }
}
