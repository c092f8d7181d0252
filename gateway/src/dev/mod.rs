//! What only `portarium-gateway dev` and tests need: an embedded MQTT broker and simulated robots.

pub mod broker;
pub mod robot;
#[cfg(test)]
mod testing;
