//! `tests/run` leaves this module out by its name.

mod attacks;
mod federation;
mod leaves;
mod order;
mod recovery;
mod scene;
mod taint;
