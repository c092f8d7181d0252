//! `tests/run` leaves this module out by its name.

mod leaves;
mod recovery;
