//! The embedded authority as peers see it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Agent, DOMAIN, entries, id, serve};
use portarium_identity::authority::{Authority, AuthorityConfig, AuthorityError};
use spiffe::{SpiffeId, TrustDomain, WorkloadApiClient};
use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, oid_registry, parse_x509_certificate,
    public_key::PublicKey,
};

async fn client(socket: &Path) -> WorkloadApiClient {
    WorkloadApiClient::connect_to(format!("unix://{}", socket.display()))
        .await
        .unwrap()
}

/// The certificate's subject as (OID, string tag, text), in order.
fn names(certificate: &X509Certificate<'_>) -> Vec<(String, String)> {
    certificate
        .subject()
        .iter_attributes()
        .map(|a| (a.attr_type().to_id_string(), a.as_str().unwrap().to_owned()))
        .collect()
}

fn critical(certificate: &X509Certificate<'_>, oid: &oid_registry::Oid<'static>) -> bool {
    certificate
        .get_extension_unique(oid)
        .unwrap()
        .unwrap()
        .critical
}

#[tokio::test]
async fn an_svid_has_exactly_the_shape_of_spires() {
    let agent = Agent::start(&["gw"]).await;
    let svid = client(&agent.socket())
        .await
        .fetch_x509_svid()
        .await
        .unwrap();
    assert_eq!(svid.cert_chain().len(), 1);
    let (rest, leaf) = parse_x509_certificate(svid.leaf().as_bytes()).unwrap();
    assert!(rest.is_empty());
    let subject = [
        ("2.5.4.6", "US"),
        ("2.5.4.10", "SPIRE"),
        ("2.5.4.3", "gw.test"),
    ];
    assert_eq!(
        names(&leaf),
        subject.map(|(o, t)| (o.to_owned(), t.to_owned()))
    );
    let sans = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(!sans.critical);
    let gw = id("gw");
    assert_eq!(
        sans.value.general_names,
        [GeneralName::DNSName("gw.test"), GeneralName::URI(&gw)]
    );
    let usage = leaf.key_usage().unwrap().unwrap();
    // digitalSignature, keyEncipherment, keyAgreement: bits 0, 2, 4.
    assert_eq!((usage.critical, usage.value.flags), (true, 0b1_0101));
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    for oid in [
        oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
        oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
    ] {
        assert!(!critical(&leaf, &oid));
    }
    assert_eq!(leaf.extensions().len(), 6);
    assert!(matches!(leaf.public_key().parsed().unwrap(), PublicKey::EC(p) if p.key_size() == 256));
    assert!(leaf.raw_serial()[0] < 0x80 && leaf.raw_serial().len() == 16);
    let back = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        - u64::try_from(leaf.validity().not_before.timestamp()).unwrap();
    assert!((10..15).contains(&back), "{back}");
    let other = client(&agent.socket())
        .await
        .fetch_x509_svid()
        .await
        .unwrap();
    agent.authority.rotate();
    let next = client(&agent.socket())
        .await
        .fetch_x509_svid()
        .await
        .unwrap();
    assert_eq!(other.leaf(), svid.leaf());
    assert_ne!(next.leaf(), svid.leaf());
}

#[tokio::test]
async fn an_svid_without_a_dns_name_has_no_common_name() {
    let agent = Agent::start(&[]).await;
    let mut entry = entries(&["gw"]);
    entry[0].dns_names.clear();
    agent.authority.set_entries(entry);
    let svid = client(&agent.socket())
        .await
        .fetch_x509_svid()
        .await
        .unwrap();
    let (_, leaf) = parse_x509_certificate(svid.leaf().as_bytes()).unwrap();
    assert_eq!(leaf.subject().to_string(), "C=US, O=SPIRE");
}

#[tokio::test]
async fn the_ca_is_one_and_names_its_trust_domain() {
    let agent = Agent::start(&["gw"]).await;
    let context = client(&agent.socket())
        .await
        .fetch_x509_context()
        .await
        .unwrap();
    let bundle = context
        .bundle_set()
        .get(&TrustDomain::new(DOMAIN).unwrap())
        .unwrap();
    assert_eq!(bundle.authorities().len(), 1);
    assert_eq!(
        bundle.authorities()[0].as_bytes(),
        agent.authority.bundle()[0]
    );
    let (_, ca) = parse_x509_certificate(bundle.authorities()[0].as_bytes()).unwrap();
    let usage = ca.key_usage().unwrap().unwrap();
    // keyCertSign, cRLSign: bits 5, 6.
    assert_eq!((usage.critical, usage.value.flags), (true, 0b110_0000));
    let constraints = ca.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    let sans = ca.subject_alternative_name().unwrap().unwrap();
    let domain = format!("spiffe://{DOMAIN}");
    assert_eq!(sans.value.general_names, [GeneralName::URI(&domain)]);
    let life = ca.validity().not_after.timestamp() - ca.validity().not_before.timestamp();
    assert_eq!(life, 24 * 3_600 + 10);
    let svid = &context.svids()[0];
    let (_, leaf) = parse_x509_certificate(svid.leaf().as_bytes()).unwrap();
    assert_eq!(leaf.issuer(), ca.subject());
}

#[tokio::test]
async fn all_entries_are_sent_with_their_hints() {
    let agent = Agent::start(&["a", "b"]).await;
    let context = client(&agent.socket())
        .await
        .fetch_x509_context()
        .await
        .unwrap();
    let sent: Vec<_> = context
        .svids()
        .iter()
        .map(|s| (s.hint(), s.spiffe_id().to_string()))
        .collect();
    assert_eq!(sent, [(Some("a"), id("a")), (Some("b"), id("b"))]);
}

#[tokio::test]
async fn jwt_svids_verify_against_their_audience_only() {
    let agent = Agent::start(&["gw", "other"]).await;
    let client = client(&agent.socket()).await;
    let gw = SpiffeId::new(id("gw")).unwrap();
    let svid = client.fetch_jwt_svid(["a", "b"], Some(&gw)).await.unwrap();
    assert_eq!(*svid.spiffe_id(), gw);
    assert_eq!(svid.audience(), ["a", "b"]);
    let valid = client.validate_jwt_token("b", svid.token()).await.unwrap();
    assert_eq!(*valid.spiffe_id(), gw);
    assert!(client.validate_jwt_token("c", svid.token()).await.is_err());
    let bundles = client.fetch_jwt_bundles().await.unwrap();
    let bundle = bundles.get(&TrustDomain::new(DOMAIN).unwrap()).unwrap();
    assert!(bundle.find_jwt_authority(svid.key_id()).is_some());
    let stranger = SpiffeId::new(id("stranger")).unwrap();
    assert!(client.fetch_jwt_svid(["a"], Some(&stranger)).await.is_err());
}

#[tokio::test]
async fn calls_without_the_security_header_are_invalid() {
    let agent = Agent::start(&["gw"]).await;
    let path = agent.socket();
    let connector = connector_to(path);
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .unwrap();
    for method in [
        "FetchX509SVID",
        "FetchX509Bundles",
        "FetchJWTSVID",
        "FetchJWTBundles",
        "ValidateJWTSVID",
    ] {
        assert_eq!(
            call(&channel, method, None).await,
            Code::InvalidArgument,
            "{method}"
        );
        assert_eq!(
            call(&channel, method, Some("false")).await,
            Code::InvalidArgument,
            "{method}"
        );
    }
    assert_eq!(
        call(&channel, "FetchX509SVID", Some("true")).await,
        Code::Ok
    );
}

async fn call(channel: &Channel, method: &str, header: Option<&'static str>) -> Code {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(());
    if let Some(value) = header {
        request
            .metadata_mut()
            .insert("workload.spiffe.io", value.parse().unwrap());
    }
    let path: PathAndQuery = format!("/SpiffeWorkloadAPI/{method}").parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    match grpc.server_streaming(request, path, codec).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

fn connector_to(
    path: std::path::PathBuf,
) -> impl tower::Service<
    tonic::codegen::http::Uri,
    Response = hyper_util::rt::TokioIo<tokio::net::UnixStream>,
    Error = std::io::Error,
    Future: Send,
> + Send {
    tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok(hyper_util::rt::TokioIo::new(stream))
        }
    })
}

#[tokio::test]
async fn the_socket_is_for_its_user_taken_from_nobody_and_goes_with_the_authority() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    let authority = serve(&socket, &["gw"]).await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Authority::start(AuthorityConfig {
        trust_domain: DOMAIN.into(),
        socket: socket.clone(),
        svid_ttl: Duration::from_secs(60),
        entries: Vec::new(),
    });
    let refused = second.await.err().unwrap().to_string();
    assert!(
        refused.contains("another authority serves there"),
        "{refused}"
    );
    assert!(client(&socket).await.fetch_x509_svid().await.is_ok());
    assert_eq!(files(), 1);
    drop(authority);
    assert_eq!(files(), 0);
    // What a killed process leaves behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let _authority = serve(&socket, &["gw"]).await;
    assert!(client(&socket).await.fetch_x509_svid().await.is_ok());
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let refused = Authority::start(AuthorityConfig {
        trust_domain: DOMAIN.into(),
        socket: file.clone(),
        svid_ttl: Duration::from_secs(60),
        entries: Vec::new(),
    });
    assert!(refused.await.is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let start = |trust_domain: &str, ttl, spiffe_id: &str| {
        let mut entries = entries(&["gw"]);
        entries[0].spiffe_id = spiffe_id.into();
        Authority::start(AuthorityConfig {
            trust_domain: trust_domain.into(),
            socket: folder.path().join("agent.sock"),
            svid_ttl: Duration::from_secs(ttl),
            entries,
        })
    };
    for (domain, ttl, entry) in [
        ("a b", 60, "spiffe://a.b/x"),
        ("a.b", 9, "spiffe://a.b/x"),
        ("a.b", 60, "spiffe://a.c/x"),
        ("a.b", 60, "spiffe://a.b"),
        ("a.b", 60, "x"),
    ] {
        let refused = start(domain, ttl, entry).await.err();
        assert!(
            matches!(refused, Some(AuthorityError::Config(_))),
            "{domain} {ttl} {entry}"
        );
    }
    assert!(start("a.b", 10, "spiffe://a.b/x").await.is_ok());
}

#[tokio::test]
async fn a_paused_authority_is_silent_and_answers_when_resumed() {
    let agent = Agent::start(&["gw"]).await;
    let client = client(&agent.socket()).await;
    agent.authority.pause();
    let mut call = std::pin::pin!(client.fetch_x509_svid());
    let silent = tokio::time::timeout(Duration::from_millis(200), &mut call).await;
    assert!(silent.is_err());
    agent.authority.resume();
    assert!(call.await.is_ok());
}
