//! The embedded authority issues what SPIRE issues, byte for byte.

use portarium_identity::{
    Snapshot, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry},
};
use portarium_tests::{Identities, Spire, figure, hints, init, soon, spiffe_id};
use std::{fmt::Write as _, time::Duration};
use x509_parser::{
    oid_registry::{OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_SUBJECT_KEY_IDENTIFIER},
    pem::Pem,
    prelude::{FromDer as _, X509Certificate},
};

const TTL: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SPIRE: run by tests/run --spire"]
async fn the_embedded_authority_issues_leaves_and_authorities_as_spire_does() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let identities = Identities::living(dir.path(), &["m"], TTL).await;
    identities.spire();
    let embedded = Authority::start(AuthorityConfig {
        trust_domain: "portarium.robotics".into(),
        socket: dir.path().join("embedded.sock"),
        svid_ttl: TTL,
        entries: vec![
            entry(
                hints::GATEWAY,
                &["robotics-gateway.portarium.svc", "localhost"],
            ),
            entry("m", &["m"]),
        ],
    });
    let _embedded = embedded.await.unwrap();
    let endpoint = format!("unix://{}/embedded.sock", dir.path().display());
    figure("SPIRE", &Spire::version());
    let mut differ = false;
    for hint in [hints::GATEWAY, "m"] {
        let real = identities.manager(hint).await.ready().await;
        let ours = manager(&endpoint, hint);
        let ours = soon("an SVID", ours.ready()).await;
        differ |= differs(&format!("leaf {hint}"), &leaf(&real), &leaf(&ours));
        differ |= differs("authority", &authority(&real), &authority(&ours));
        let life = |s: &Snapshot| s.not_after.duration_since(s.not_before).unwrap().as_secs();
        assert_eq!(life(&real), life(&ours));
    }
    assert!(!differ, "what differs is printed above");
}

fn entry(hint: &str, dns_names: &[&str]) -> Entry {
    Entry {
        spiffe_id: spiffe_id(hint),
        hint: hint.into(),
        dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn manager(endpoint: &str, hint: &str) -> SvidManager {
    SvidManager::start(SvidConfig {
        endpoint_socket: Some(endpoint.to_owned()),
        hint: Some(hint.into()),
        ..SvidConfig::default()
    })
    .unwrap()
}

fn differs(what: &str, real: &str, ours: &str) -> bool {
    println!("{what}, SPIRE:\n{real}\n{what}, embedded:\n{ours}");
    if real != ours {
        return true;
    }
    let extensions = real.lines().filter(|line| line.starts_with("extension"));
    figure(
        "shape",
        &format!(
            "{what}: {} extensions, subject, key and signature of the same form and bytes",
            extensions.count()
        ),
    );
    false
}

fn leaf(snapshot: &Snapshot) -> String {
    let first = Pem::iter_from_buffer(snapshot.chain_pem().as_bytes())
        .next()
        .unwrap();
    shape(&first.unwrap().contents)
}

fn authority(snapshot: &Snapshot) -> String {
    let first = Pem::iter_from_buffer(snapshot.bundle_pem().as_bytes())
        .next()
        .unwrap();
    shape(&first.unwrap().contents)
}

/// Everything but serial numbers, keys, times and what is made of them.
fn shape(der: &[u8]) -> String {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let mut text = String::new();
    let _ = writeln!(text, "version {:?}", certificate.version());
    let _ = writeln!(text, "signed by {:?}", certificate.signature_algorithm);
    let _ = writeln!(text, "subject {}", subject(&certificate));
    let _ = writeln!(text, "key {:?}", certificate.subject_pki.algorithm);
    for extension in certificate.extensions() {
        // Key identifiers are hashes of keys: their form counts.
        let keys = [
            OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
            OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
        ];
        let bytes = match keys.contains(&extension.oid) {
            true => &extension.value[..extension.value.len() - 20],
            false => extension.value,
        };
        let _ = writeln!(
            text,
            "extension {}{}, {} bytes: {}",
            extension.oid,
            if extension.critical { " critical" } else { "" },
            extension.value.len(),
            bytes
                .iter()
                .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
        );
    }
    text
}

/// The subject in hex, without the number by which authorities are told apart.
fn subject(certificate: &X509Certificate<'_>) -> String {
    let parts = certificate.subject().iter_attributes().map(|attribute| {
        let value = attribute.attr_value();
        let number = attribute.attr_type().to_id_string() == "2.5.4.5";
        let shown = if number {
            "…".into()
        } else {
            String::from_utf8_lossy(value.data)
        };
        format!("{}={:?} {shown}", attribute.attr_type(), value.tag())
    });
    parts.collect::<Vec<_>>().join(", ")
}
