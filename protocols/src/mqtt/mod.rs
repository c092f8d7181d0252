//! MQTT 5: the control plane's own topics.
