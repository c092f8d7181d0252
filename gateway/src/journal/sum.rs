//! A sum over each row. SQLite finds damage to its own structure, and none to what is written in
//! it: a flipped bit may send a robot elsewhere.

use rusqlite::{
    Row, Statement,
    types::{Type, ValueRef},
};

// As FNV-1a, eight bytes at a time, since all of a journal is summed when it is opened. Each step can
// be undone, so that a change within eight bytes is always found.
const START: u64 = 0xcbf2_9ce4_8422_2325;
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The sum over a row's other columns, in their order.
pub(super) fn of<'a>(columns: impl IntoIterator<Item = ValueRef<'a>>) -> i64 {
    let mut sum = START;
    for column in columns {
        let number;
        let (kind, bytes): (u8, &[u8]) = match column {
            ValueRef::Null => (0, &[]),
            ValueRef::Integer(value) => {
                number = value.to_be_bytes();
                (1, &number)
            }
            ValueRef::Real(value) => {
                number = value.to_be_bytes();
                (2, &number)
            }
            ValueRef::Text(text) => (3, text),
            ValueRef::Blob(bytes) => (4, bytes),
        };
        let frame = u64::from(kind) << 56 ^ bytes.len() as u64;
        sum = step(sum, frame);
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            sum = step(sum, u64::from_be_bytes(word));
        }
    }
    sum.cast_signed()
}

fn step(sum: u64, word: u64) -> u64 {
    (sum ^ word).wrapping_mul(FACTOR).rotate_left(29)
}

/// Refuses a row that is not as it was written: so many columns from `first` on, the last of which
/// is the sum of the others.
pub(super) fn check(row: &Row<'_>, first: usize, columns: usize) -> rusqlite::Result<()> {
    let last = first + columns - 1;
    let values = (first..last)
        .map(|column| row.get_ref(column))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if row.get_ref(last)? == ValueRef::Integer(of(values)) {
        Ok(())
    } else {
        Err(wrong(last))
    }
}

fn wrong(column: usize) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        column,
        Type::Integer,
        "a row is not as it was written: its sum is wrong".into(),
    )
}

/// Runs a statement whose parameters are a whole row, but for the sum that comes last.
pub(super) fn execute(
    statement: &mut Statement<'_>,
    columns: &[ValueRef<'_>],
) -> rusqlite::Result<usize> {
    for (place, column) in columns.iter().enumerate() {
        statement.raw_bind_parameter(place + 1, rusqlite::types::ToSqlOutput::Borrowed(*column))?;
    }
    let sum = of(columns.iter().copied());
    statement.raw_bind_parameter(columns.len() + 1, sum)?;
    statement.raw_execute()
}

/// A text column.
pub(super) fn text(text: &str) -> ValueRef<'_> {
    ValueRef::Text(text.as_bytes())
}

/// A text column that may be NULL.
pub(super) fn optional(value: Option<&str>) -> ValueRef<'_> {
    value.map_or(ValueRef::Null, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_counts_and_so_does_where_it_ends() {
        let row = |columns: &[ValueRef<'_>]| of(columns.iter().copied());
        let rows = [
            row(&[text("ab"), text("c")]),
            row(&[text("a"), text("bc")]),
            row(&[text("abc"), text("")]),
            row(&[text("abc"), optional(None)]),
            row(&[text("ab"), text("d")]),
            row(&[ValueRef::Integer(0), text("c")]),
            row(&[ValueRef::Integer(1), text("c")]),
        ];
        for (place, one) in rows.iter().enumerate() {
            assert!(!rows[place + 1..].contains(one), "{place}");
        }
    }
}
