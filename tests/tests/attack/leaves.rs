//! Certificates on a good chain and with a good signature whose form is wrong, and handshakes that
//! are none.

use crate::{
    forge::{Shown, Signer, TRUST_DOMAIN, VALID, with_id},
    siege::Siege,
    wire::Door,
};
use portarium_identity::authority::{Authority, MintSpec};
use portarium_tests::{figure, hints, spiffe_id};
use rcgen::{
    BasicConstraints, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use std::time::{Duration, SystemTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

/// What is shown, and what the audit says of it.
type Case = (&'static str, Shown, &'static str);

/// A rule with `*` in its peers, to be got around.
const WILD: &str = r#"
[[policy]]
peers = ["spiffe://portarium.robotics/ns/*/sa/wild/*"]
methods = ["ListRobots"]
robots = ["*"]
fleets = ["*"]
"#;

/// Between two handshakes, so that each has a line of its own in the audit.
const PACE: Duration = Duration::from_millis(100);

const NO_ID: &str = "URI SAN is no SPIFFE ID";
const UPPER: &str = "has upper case";
const NOT_ADMITTED: &str = "the policy does not admit";

/// Texts in place of the control plane's SPIFFE ID.
fn ids(authority: &Authority) -> Vec<Case> {
    let path = "/ns/portarium/sa/control-plane/test";
    let in_domain = |path: &str| format!("spiffe://{TRUST_DOMAIN}{path}");
    let of = |authority_part: &str| format!("spiffe://{authority_part}{path}");
    let long = format!("{}{}", in_domain(path), "x".repeat(2048));
    let texts = [
        (
            "percent-encoding",
            in_domain("/ns/portarium/sa/control%2Dplane/test"),
            NO_ID,
        ),
        (
            "a percent-encoded slash",
            in_domain("/ns/portarium%2Fsa/control-plane/test"),
            NO_ID,
        ),
        (
            "a percent-encoded NUL",
            in_domain("/ns/portarium/sa/control-plane/test%00"),
            NO_ID,
        ),
        (
            "a dot segment",
            in_domain("/ns/portarium/./sa/control-plane/test"),
            NO_ID,
        ),
        (
            "two dots",
            in_domain("/ns/other/../portarium/sa/control-plane/test"),
            NO_ID,
        ),
        (
            "an empty segment",
            in_domain("/ns/portarium//sa/control-plane/test"),
            NO_ID,
        ),
        (
            "a slash at the end",
            in_domain("/ns/portarium/sa/control-plane/test/"),
            NO_ID,
        ),
        ("a port", of("portarium.robotics:443"), NO_ID),
        ("a user", of("root@portarium.robotics"), NO_ID),
        (
            "an upper-case trust domain",
            of("Portarium.Robotics"),
            UPPER,
        ),
        (
            "an upper-case scheme",
            format!("SPIFFE://{TRUST_DOMAIN}{path}"),
            UPPER,
        ),
        (
            "another scheme",
            format!("https://{TRUST_DOMAIN}{path}"),
            NO_ID,
        ),
        ("no trust domain", format!("spiffe://{path}"), NO_ID),
        ("one slash", format!("spiffe:/{TRUST_DOMAIN}{path}"), NO_ID),
        (
            "a query",
            in_domain("/ns/portarium/sa/control-plane/test?x"),
            NO_ID,
        ),
        (
            "a fragment",
            in_domain("/ns/portarium/sa/control-plane/test#x"),
            NO_ID,
        ),
        (
            "a NUL",
            in_domain("/ns/portarium/sa/control-plane/test\0"),
            NO_ID,
        ),
        (
            "a line end",
            in_domain("/ns/portarium/sa/control-plane/test\n"),
            NO_ID,
        ),
        ("white space", format!(" {}", in_domain(path)), NO_ID),
        (
            "a backslash",
            in_domain("/ns/portarium\\sa/control-plane/test"),
            NO_ID,
        ),
        (
            "a semicolon",
            in_domain("/ns/portarium/sa/control-plane;x=y/test"),
            NO_ID,
        ),
        ("more than 2048 bytes", long, NO_ID),
        ("a trust domain of 256 bytes", of(&"a".repeat(256)), NO_ID),
        ("an IPv6 address", of("[::1]"), NO_ID),
        ("no path", format!("spiffe://{TRUST_DOMAIN}"), "has no path"),
        (
            "an upper-case path",
            in_domain("/NS/portarium/sa/control-plane/test"),
            NOT_ADMITTED,
        ),
        (
            "a longer trust domain",
            of("portarium.robotics.example"),
            "no trust bundle",
        ),
        ("a shorter trust domain", of("robotics"), "no trust bundle"),
        ("the pattern itself", in_domain("/ns/*/sa/wild/*"), NO_ID),
        ("a star in a segment", in_domain("/ns/a/sa/wild/*"), NO_ID),
        (
            "two segments for one star",
            in_domain("/ns/a/b/sa/wild/x"),
            NOT_ADMITTED,
        ),
        (
            "no segment for a star",
            in_domain("/ns/sa/wild/x"),
            NOT_ADMITTED,
        ),
        (
            "an empty segment for a star",
            in_domain("/ns//sa/wild/x"),
            NO_ID,
        ),
        ("a segment less", in_domain("/ns/a/sa/wild"), NOT_ADMITTED),
        (
            "a segment more",
            in_domain("/ns/a/sa/wild/x/y"),
            NOT_ADMITTED,
        ),
        (
            "a segment before",
            in_domain("/x/ns/a/sa/wild/y"),
            NOT_ADMITTED,
        ),
        (
            "a longer segment",
            in_domain("/ns/a/sa/wild.x/y"),
            NOT_ADMITTED,
        ),
        ("two dots for a star", in_domain("/ns/../sa/wild/x"), NO_ID),
    ];
    texts
        .into_iter()
        .map(|(what, text, reason)| (what, with_id(authority, &text), reason))
        .collect()
}

/// SVIDs of the control plane with something wrong around its SPIFFE ID.
fn forms(authority: &Authority) -> Vec<Case> {
    let id = &spiffe_id(hints::CONTROL_PLANE);
    let signer = Signer::intermediate(authority);
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let no_svid = "no X.509-SVID";
    let second = san_extension(b"spiffe://portarium.robotics/ns/portarium/sa/operator/test");
    let latin = san_extension("spiffe://portarium.robotics/ns/ü".as_bytes());
    vec![
        (
            "two URI SANs",
            signer.leaf(id, |p| p.subject_alt_names.push(uri("https://a.b/"))),
            "more than one URI SAN",
        ),
        (
            "the same SPIFFE ID twice",
            signer.leaf(id, |p| p.subject_alt_names.push(uri(id))),
            "more than one URI SAN",
        ),
        (
            "two extensions with a SAN",
            signer.leaf(id, |p| p.custom_extensions.push(second)),
            no_svid,
        ),
        (
            "a SAN that is not ASCII",
            signer.leaf(id, |p| {
                p.subject_alt_names.clear();
                p.custom_extensions.push(latin);
            }),
            no_svid,
        ),
        (
            "no SAN",
            signer.leaf(id, |p| p.subject_alt_names.clear()),
            "no subject alternative name",
        ),
        (
            "the SPIFFE ID as a DNS name",
            signer.leaf(id, |p| {
                p.subject_alt_names = vec![SanType::DnsName(id.as_str().try_into().unwrap())]
            }),
            "no URI SAN",
        ),
        (
            "the SPIFFE ID as an e-mail address",
            signer.leaf(id, |p| {
                p.subject_alt_names = vec![SanType::Rfc822Name(id.as_str().try_into().unwrap())]
            }),
            "no URI SAN",
        ),
        (
            "a CA certificate",
            signer.leaf(id, |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                p.key_usages.push(KeyUsagePurpose::KeyCertSign);
            }),
            "is a CA certificate",
        ),
        (
            "no basic constraints",
            signer.leaf(id, |p| p.is_ca = IsCa::NoCa),
            "no basic constraints",
        ),
        (
            "no key usage",
            signer.leaf(id, |p| p.key_usages.clear()),
            "no key usage",
        ),
        (
            "no digitalSignature",
            signer.leaf(id, |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
            "lacks digitalSignature",
        ),
        (
            "a key that may sign certificates",
            signer.leaf(id, |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            "may sign certificates",
        ),
        (
            "a key that may sign CRLs",
            signer.leaf(id, |p| p.key_usages.push(KeyUsagePurpose::CrlSign)),
            "may sign certificates",
        ),
        (
            "no client's purpose",
            signer.leaf(id, |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
            }),
            "certificate",
        ),
        (
            "an unknown critical extension",
            signer.leaf(id, |p| p.custom_extensions.push(critical())),
            "certificate",
        ),
        (
            "ended before it began",
            signer.leaf(id, |p| std::mem::swap(&mut p.not_before, &mut p.not_after)),
            "certificate",
        ),
        (
            "expired",
            signer.leaf(id, |p| {
                p.not_after = (SystemTime::now() - Duration::from_secs(2)).into()
            }),
            "xpired",
        ),
        (
            "not yet valid",
            signer.leaf(id, |p| {
                p.not_before = (SystemTime::now() + Duration::from_secs(60)).into()
            }),
            "not valid yet",
        ),
    ]
}

/// Chains that do not lead where they should.
fn chains(authority: &Authority) -> Vec<Case> {
    let id = &spiffe_id(hints::CONTROL_PLANE);
    let signer = Signer::intermediate(authority);
    let good = || signer.leaf(id, |_| ());
    let own = || {
        authority
            .mint(&MintSpec::svid(spiffe_id("intruder"), VALID))
            .unwrap()
    };
    let mut deep = signer.below(|_| ());
    for _ in 0..6 {
        deep = deep.below(|_| ());
    }
    let path_length = signer.below(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let no_signing = signer.below(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let ended = signer.below(|p| p.not_after = (SystemTime::now() - Duration::from_secs(2)).into());
    let mut missing = good();
    missing.chain.truncate(1);
    let mut stuffed = good();
    let ca = stuffed.chain[1].clone();
    stuffed.chain.extend(std::iter::repeat_n(ca, 60));
    let mut stolen = Shown::from(authority.mint(&MintSpec::svid(id, VALID)).unwrap());
    stolen.key = Shown::from(own()).key;
    let mut turned = good();
    turned.chain.reverse();
    let mut flipped = good();
    let mut bytes = flipped.chain[0].to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    flipped.chain[0] = CertificateDer::from(bytes);
    let mut longer = good();
    let bytes = [longer.chain[0].as_ref(), b"more"].concat();
    longer.chain[0] = CertificateDer::from(bytes);
    let mut garbage = good();
    garbage.chain[0] = CertificateDer::from(vec![0x30; 64]);
    let mut root = good();
    root.chain = authority
        .bundle()
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    vec![
        (
            "nine certificates",
            deep.leaf(id, |_| ()),
            "more than 8 certificates",
        ),
        ("sixty certificates", stuffed, "more than 8 certificates"),
        (
            "a path longer than its CA allows",
            path_length.below(|_| ()).leaf(id, |_| ()),
            "certificate",
        ),
        (
            "a CA whose key may not sign",
            no_signing.leaf(id, |_| ()),
            "lacks keyCertSign",
        ),
        ("a CA that has ended", ended.leaf(id, |_| ()), "xpired"),
        (
            "a workload that plays CA",
            Signer::playing(own()).leaf(id, |_| ()),
            "is no CA certificate",
        ),
        ("no intermediate", missing, "UnknownIssuer"),
        ("another's certificate without its key", stolen, "ignature"),
        ("the wrong order", turned, "is a CA certificate"),
        ("a signature with one bit turned", flipped, "certificate"),
        ("bytes behind the certificate", longer, "certificate"),
        ("no certificate but bytes", garbage, "certificate"),
        (
            "the trust bundle's own certificate",
            root,
            "is a CA certificate",
        ),
    ]
}

/// A subject alternative name with one URI, whatever its bytes are.
fn san_extension(uri: &[u8]) -> CustomExtension {
    let length = u8::try_from(uri.len()).unwrap();
    let der = [&[0x30, length + 2, 0x86, length], uri].concat();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], der)
}

fn critical() -> CustomExtension {
    let mut extension =
        CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
    extension.set_criticality(true);
    extension
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn no_certificate_of_the_wrong_form_gets_in_though_our_own_authority_signed_it() {
    let siege = Siege::begin("attack, certificates", &[], WILD).await;
    let authority = siege.house.identities.authority();
    let mut cases = ids(authority);
    cases.extend(forms(authority));
    cases.extend(chains(authority));
    let count = cases.len();
    let mut wrong = Vec::new();
    for (what, shown, reason) in cases {
        sleep(PACE).await;
        let seen = siege.audit().len();
        let entered = Door::of(&siege.house, Some(&shown)).enter().await;
        assert!(entered.is_err(), "{what} was let in");
        let line = siege.refused_handshake(seen, what).await;
        let told = line["reason"].as_str().unwrap_or_default();
        if !told.contains(reason) {
            wrong.push(format!("{what}: {reason:?} was expected, not {told:?}"));
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // What is well-formed gets in: the forger is good at it.
    let signer = Signer::intermediate(authority);
    for id in [
        spiffe_id(hints::CONTROL_PLANE),
        format!("spiffe://{TRUST_DOMAIN}/ns/a/sa/wild/x"),
    ] {
        let good = signer.leaf(&id, |_| ());
        Door::of(&siege.house, Some(&good)).enter().await.unwrap();
    }
    let deep = (0..5).fold(signer, |signer, _| signer.below(|_| ()));
    let good = deep.leaf(&spiffe_id(hints::CONTROL_PLANE), |_| ());
    Door::of(&siege.house, Some(&good)).enter().await.unwrap();
    figure(
        "attack, certificates",
        &format!("{count} forms shown, 0 let in, each audited with its reason"),
    );
    siege.lift(16).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_is_no_tls_1_3_for_http_2_gets_nothing() {
    let siege = Siege::begin("attack, no TLS 1.3", &[], "").await;
    let shown = with_id(
        siege.house.identities.authority(),
        &spiffe_id(hints::CONTROL_PLANE),
    );
    let door = Door::of(&siege.house, Some(&shown));
    let hellos: [(&str, Vec<u8>); 8] = [
        ("TLS 1.0", hello(1)),
        ("TLS 1.1", hello(2)),
        ("TLS 1.2", hello(3)),
        (
            "HTTP/1.1",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
        ("HTTP/2 in plaintext", crate::wire::PREFACE.to_vec()),
        (
            "MQTT",
            b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a".to_vec(),
        ),
        (
            "a record too long",
            [&[22, 3, 1, 0xff, 0xff][..], &[0; 512]].concat(),
        ),
        ("zeros", vec![0; 512]),
    ];
    for (what, bytes) in &hellos {
        let seen = siege.audit().len();
        let mut tcp = door.tcp().await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(10), tcp.read_to_end(&mut answer)).await;
        // A TLS alert at most, and the end.
        assert!(
            read.unwrap().is_err() || answer.len() <= 7,
            "{what}: {answer:?}"
        );
        siege.refused_handshake(seen, what).await;
    }
    let seen = siege.audit().len();
    let other = Door::speaking(&siege.house, Some(&shown), &[b"http/1.1"]);
    other.enter().await.unwrap_err();
    let line = siege
        .refused_handshake(seen, "another application protocol")
        .await;
    assert!(
        line["reason"].as_str().unwrap().contains("known protocol"),
        "{line}"
    );
    door.enter().await.unwrap();
    figure(
        "attack, no TLS 1.3",
        &format!(
            "{} beginnings, 0 answered with more than an alert, each audited",
            hellos.len() + 1
        ),
    );
    siege.lift(16).await;
}

/// A ClientHello of this minor version that offers nothing newer.
fn hello(minor: u8) -> Vec<u8> {
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..], // supported_groups: x25519
        &[0, 13, 0, 4, 0, 2, 4, 3],      // signature_algorithms: ecdsa_secp256r1_sha256
    ]
    .concat();
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    // No session; ECDHE-ECDSA with AES-128-GCM; no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()
}
