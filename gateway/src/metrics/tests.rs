#![allow(clippy::unwrap_used)]
use super::*;
use crate::audit::AuditCounts;
use portarium_identity::{HandshakeStats, IdentityState, IdentityStats};
use portarium_protocols::grpc::ServerStats;
use std::{collections::HashSet, time::SystemTime};

/// Metrics of which each has a value of its own.
fn sampled() -> Arc<Metrics> {
    let metrics = Metrics::new();
    metrics.ask_identity(|| IdentitySample {
        state: IdentityState::PermissionDenied,
        svid: Some((7, SystemTime::now() + Duration::from_secs(100))),
        renewal_overdue: true,
        stats: IdentityStats {
            rotations: 6,
            reconnects: 2,
            server: HandshakeStats {
                ok: 11,
                not_admitted: 12,
                ..HandshakeStats::default()
            },
            ..IdentityStats::default()
        },
    });
    metrics.ask(Sources {
        server: Box::new(|| ServerStats {
            accepted: 21,
            turned_away: 22,
            open: 23,
            established: 0,
            failed_identity: 0,
            failed_handshake: 0,
            failed_timeout: 0,
            failed_peer: 0,
        }),
        adapters: Box::new(|| {
            vec![
                AdapterSample {
                    adapter: "mqtt.main".into(),
                    connected: true,
                    svid_generation: Some(5),
                },
                AdapterSample {
                    adapter: "grpc".into(),
                    connected: false,
                    svid_generation: None,
                },
            ]
        }),
        engine: Box::new(|| EngineSample {
            open: 31,
            queued: 32,
            unknown: 33,
            journal_queue: 34,
            robots_reachable: 35,
            robots_unreachable: 36,
        }),
        audit: Box::new(|| AuditCounts {
            queued: 41,
            dropped: 42,
            suppressed: 44,
            write_errors: 43,
            written: 45,
            head: Some(crate::audit::ChainHash::START),
        }),
        standing: Box::new(crate::peers::tests::standing),
    });
    metrics.mission_changed("mqtt", None, MissionStatus::Pending);
    metrics.mission_changed("mqtt", None, MissionStatus::Pending);
    metrics.mission_changed(
        "mqtt",
        Some(MissionStatus::Pending),
        MissionStatus::Dispatched,
    );
    metrics.mission_recovered("grpc", MissionStatus::Executing);
    metrics.mission_changed(
        "grpc",
        Some(MissionStatus::Executing),
        MissionStatus::Succeeded,
    );
    metrics.dispatch_answered(DispatchStatus::PolicyBlocked, Duration::from_micros(1500));
    metrics.stop_sent(Duration::from_micros(150));
    metrics.journal_committed(Duration::from_millis(3), 5);
    metrics
}

#[test]
fn every_metric_is_there_with_its_value() {
    let text = sampled().encode();
    for line in [
        r#"build_info{version="0.1.0"} 1"#,
        r#"identity_state{state="permission_denied"} 1"#,
        r#"identity_state{state="ready"} 0"#,
        "svid_renewal_overdue 1",
        "svid_generation 7",
        "svid_rotations_total 6",
        "workload_api_reconnects_total 2",
        r#"handshakes_total{side="server",result="ok"} 11"#,
        r#"handshakes_total{side="server",result="not_admitted"} 12"#,
        r#"handshakes_total{side="client",result="ok"} 0"#,
        "grpc_connections 23",
        "grpc_connections_accepted_total 21",
        "grpc_connections_turned_away_total 22",
        r#"peer_connections{direction="north",authority="0b"} 2"#,
        r#"peer_connections{direction="north",authority="other"} 3"#,
        r#"peer_connections{direction="south",authority="0c"} 1"#,
        r#"adapter_connected{adapter="mqtt.main"} 1"#,
        r#"adapter_connected{adapter="grpc"} 0"#,
        r#"adapter_svid_generation{adapter="mqtt.main"} 5"#,
        r#"adapter_svid_generation_lag{adapter="mqtt.main"} 2"#,
        "missions_unknown_outcome 33",
        r#"robots{reachable="true"} 35"#,
        r#"robots{reachable="false"} 36"#,
        r#"queue_depth{queue="open"} 31"#,
        r#"queue_depth{queue="queued"} 32"#,
        r#"queue_depth{queue="audit"} 41"#,
        r#"queue_depth{queue="journal"} 34"#,
        concat!(
            r#"audit_head_info{hash="00000000000000000000000000000000"#,
            r#"00000000000000000000000000000000"} 1"#
        ),
        "audit_lines_total 45",
        "audit_lines_dropped_total 42",
        "audit_lines_suppressed_total 44",
        "audit_write_errors_total 43",
        r#"mission_transitions_total{adapter="mqtt",status="Pending"} 2"#,
        r#"mission_transitions_total{adapter="mqtt",status="Dispatched"} 1"#,
        r#"mission_transitions_total{adapter="grpc",status="Succeeded"} 1"#,
        r#"missions_open{adapter="mqtt",status="Pending"} 1"#,
        r#"missions_open{adapter="mqtt",status="Dispatched"} 1"#,
        r#"missions_open{adapter="grpc",status="Executing"} 0"#,
        r#"dispatches_total{status="POLICY_BLOCKED"} 1"#,
        r#"dispatch_duration_seconds_bucket{le="0.001"} 0"#,
        r#"dispatch_duration_seconds_bucket{le="0.002"} 1"#,
        r#"stop_latency_seconds_bucket{le="0.0002"} 1"#,
        "journal_commit_duration_seconds_count 1",
        "journal_commit_events_sum 5.0",
    ] {
        let line = format!("portarium_gateway_{line}");
        assert!(
            text.lines().any(|l| l == line),
            "{line} is missing in\n{text}"
        );
    }
    let left: f64 = text
        .lines()
        .find_map(|l| l.strip_prefix("portarium_gateway_svid_time_to_expiry_seconds "))
        .and_then(|value| value.parse().ok())
        .unwrap();
    assert!((90.0..=100.0).contains(&left), "{left}");
}

#[test]
fn the_text_is_open_metrics_with_help_and_type_for_every_sample() {
    let text = sampled().encode();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut described = HashSet::new();
    let mut helped = HashSet::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.trim().is_empty() && helped.insert(name), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(
                ["counter", "gauge", "histogram", "info"].contains(&kind),
                "{line}"
            );
            assert!(described.insert(name) && helped.contains(name), "{line}");
        } else if !line.starts_with("# UNIT ") {
            let name = line.split(['{', ' ']).next().unwrap();
            let suffixes = ["", "_total", "_info", "_bucket", "_sum", "_count"];
            let known = |suffix| {
                name.strip_suffix(suffix)
                    .is_some_and(|n| described.contains(n))
            };
            assert!(suffixes.into_iter().any(known), "{line}");
            assert!(
                line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(),
                "{line}"
            );
        }
    }
}

#[test]
fn before_anyone_can_be_asked_there_is_a_page_all_the_same() {
    let text = Metrics::new().encode();
    assert!(text.contains("portarium_gateway_build_info") && text.ends_with("# EOF\n"));
}
