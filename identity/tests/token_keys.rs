//! The keys of those who issue tokens, from files, addresses and the Workload API.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Agent, DOMAIN};
use portarium_identity::{
    TrustDomain,
    token::{KeySource, KeysConfig, SigningKey, Thumbprint, TokenError, TokenKeys, TokenRules},
};
use rcgen::KeyPair;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use spiffe::{SpiffeId, WorkloadApiClient};
use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::{AbortHandle, spawn},
    time::{Instant, sleep},
};
use tokio_rustls::TlsAcceptor;

const SOON: Duration = Duration::from_millis(50);

fn key_set(kid: &str) -> String {
    let pem = KeyPair::generate().unwrap().serialize_pem();
    let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
    key.key_set(kid).to_string()
}

/// Follows until dropped.
struct Following {
    keys: Arc<TokenKeys>,
    task: AbortHandle,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn follow(source: KeySource, refresh: Duration) -> Following {
    portarium_identity::install_crypto_provider();
    let keys = Arc::new(TokenKeys::new(KeysConfig { source, refresh }).unwrap());
    let task = spawn({
        let keys = keys.clone();
        async move { match keys.follow().await {} }
    })
    .abort_handle();
    Following { keys, task }
}

impl Following {
    fn count(&self) -> usize {
        self.keys.current().map_or(0, |keys| keys.len())
    }

    async fn until(&self, what: &str, holds: impl Fn(&TokenKeys) -> bool) {
        let began = Instant::now();
        while !holds(&self.keys) {
            let problem = self.keys.problem();
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{what}: {problem:?}"
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_problem(&self, expected: &str) {
        let says = |keys: &TokenKeys| keys.problem().is_some_and(|told| told.contains(expected));
        self.until(expected, says).await;
    }
}

#[tokio::test]
async fn a_file_that_goes_changes_or_breaks_is_followed_and_the_last_good_keys_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let source = KeySource::File(path.clone());
    let config = KeysConfig {
        source: source.clone(),
        refresh: SOON,
    };
    let missing = config.check().err().unwrap().to_string();
    assert!(missing.contains("keys.json: No such file"), "{missing}");
    // It may also come later.
    let following = follow(source, SOON);
    following.until_problem("keys.json: No such file").await;
    fs::write(&path, key_set("a")).unwrap();
    assert!(config.check().is_ok());
    following
        .until("the key", |keys| keys.current().is_some())
        .await;
    fs::remove_file(&path).unwrap();
    following.until_problem("No such file").await;
    fs::write(&path, "{\"keys\":[").unwrap();
    following.until_problem("no JSON Web Key Set").await;
    fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    following.until_problem("larger than").await;
    assert_eq!(following.count(), 1);
    let two = format!(
        "{{\"keys\":[{},{}]}}",
        one(&key_set("b")),
        one(&key_set("c"))
    );
    fs::write(&path, two).unwrap();
    following
        .until("both", |keys| keys.current().unwrap().len() == 2)
        .await;
    assert_eq!(following.keys.problem(), None);
    fs::write(&path, "{\"keys\":[]}").unwrap();
    following
        .until("withdrawn", |keys| keys.current().is_none())
        .await;
    let problem = following.keys.problem().unwrap();
    assert!(problem.contains("none of its keys"), "{problem}");
}

fn one(set: &str) -> &str {
    set.strip_prefix("{\"keys\":[")
        .unwrap()
        .strip_suffix("]}")
        .unwrap()
}

/// An HTTP server that says what it is told to, and counts who asks.
struct Server {
    url: String,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

#[derive(Clone)]
enum Says {
    Answer(String),
    /// A head, and a body without an end.
    Endless,
    Nothing,
    Goes,
}

impl Server {
    async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys?v=1", listener.local_addr().unwrap());
        let (says, asked) = (Arc::new(Mutex::new(says)), Arc::new(AtomicUsize::new(0)));
        let (now, count) = (says.clone(), asked.clone());
        spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let says = now.lock().unwrap().clone();
                let count = count.clone();
                spawn(async move {
                    let mut request = vec![0; 4096];
                    let length = stream.read(&mut request).await.unwrap();
                    let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
                    assert!(
                        request.starts_with("get /keys?v=1 http/1.1\r\n"),
                        "{request}"
                    );
                    assert!(request.contains("\r\nhost: 127.0.0.1:"), "{request}");
                    count.fetch_add(1, Relaxed);
                    match says {
                        Says::Answer(text) => stream.write_all(text.as_bytes()).await.unwrap(),
                        Says::Endless => {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                            while stream.write_all(&[b' '; 65_536]).await.is_ok() {}
                        }
                        Says::Nothing => sleep(Duration::from_secs(60)).await,
                        Says::Goes => {}
                    }
                });
            }
        });
        Self { url, says, asked }
    }

    fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn source(&self) -> KeySource {
        KeySource::Url {
            url: self.url.clone(),
            ca_file: None,
        }
    }
}

fn ok(body: &str) -> Says {
    let length = body.len();
    Says::Answer(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
}

#[tokio::test]
async fn an_address_that_is_gone_huge_elsewhere_or_wrong_costs_no_key_that_is_there() {
    let server = Server::start(ok(&key_set("a"))).await;
    let following = follow(server.source(), SOON);
    following
        .until("the first key", |keys| keys.current().is_some())
        .await;
    for (says, problem) in [
        (Says::Endless, "length limit exceeded"),
        (Says::Goes, "connection closed"),
        (
            Says::Answer("HTTP/1.1 302 Found\r\nlocation: /other\r\n\r\n".into()),
            "answered 302",
        ),
        (
            Says::Answer("HTTP/1.1 500 No\r\n\r\n".into()),
            "answered 500",
        ),
        (Says::Answer("SSH-2.0-x\r\n".into()), "invalid HTTP version"),
        (ok("<html>"), "no JSON Web Key Set"),
        // Less than it said.
        (
            Says::Answer("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"keys\":[]}".into()),
            "end of file",
        ),
    ] {
        server.says(says);
        following.until_problem(problem).await;
        assert_eq!(following.count(), 1);
        server.says(ok(&key_set("a")));
        following
            .until("well again", |keys| keys.problem().is_none())
            .await;
    }
}

#[tokio::test]
async fn keys_that_the_issuer_withdraws_are_used_no_longer() {
    let server = Server::start(ok(&key_set("a"))).await;
    let following = follow(server.source(), SOON);
    for none in [
        "{\"keys\":[]}",
        "{\"keys\":[{\"kty\":\"new\",\"kid\":\"a\"}]}",
    ] {
        server.says(ok(&key_set("a")));
        following
            .until("the key", |keys| keys.current().is_some())
            .await;
        server.says(ok(none));
        following
            .until("withdrawn", |keys| keys.current().is_none())
            .await;
        following.until_problem("none of its keys").await;
    }
}

/// An `https` server whose certificate is its own authority.
async fn secured(body: String) -> (u16, String) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, own.cert.pem())
}

#[tokio::test]
async fn authorities_are_read_anew_with_the_keys() {
    portarium_identity::install_crypto_provider();
    let (port, authority) = secured(key_set("a")).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let following = follow(
        KeySource::Url {
            url: format!("https://localhost:{port}/keys"),
            ca_file: Some(path.clone()),
        },
        SOON,
    );
    following.until_problem("ca.pem: ").await;
    let another = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&path, another.cert.pem()).unwrap();
    following.until_problem("certificate").await;
    fs::write(&path, authority).unwrap();
    following
        .until("the key", |keys| keys.current().is_some())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_given_up_and_reading_keys_never_waits() {
    let server = Server::start(Says::Nothing).await;
    let following = follow(server.source(), SOON);
    assert!(following.keys.current().is_none());
    following.until_problem("no answer within 10s").await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_missed_by_the_thousand_are_asked_for_once_in_ten_seconds() {
    let server = Server::start(ok(&key_set("a"))).await;
    let following = follow(server.source(), Duration::from_secs(3_600));
    following
        .until("the first key", |keys| keys.current().is_some())
        .await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(100) {
        for _ in 0..1_000 {
            following.keys.missed();
        }
        sleep(Duration::from_millis(100)).await;
    }
    let asked = server.asked.load(Relaxed);
    assert!((10..=12).contains(&asked), "{asked}");
}

#[test]
fn an_address_is_https_or_on_this_machine() {
    let new = |url: &str, ca_file: Option<&Path>| {
        let source = KeySource::Url {
            url: url.into(),
            ca_file: ca_file.map(Into::into),
        };
        let refresh = SOON;
        KeysConfig { source, refresh }.check()
    };
    portarium_identity::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.pem");
    let own = rcgen::generate_simple_self_signed(["issuer.example".to_owned()]).unwrap();
    fs::write(&authority, own.cert.pem()).unwrap();
    for good in [
        "https://issuer.example/keys",
        "https://[::1]:8443",
        "http://localhost:8080/k",
    ] {
        assert!(new(good, Some(&authority)).is_ok(), "{good}");
    }
    for bad in [
        "",
        "issuer.example",
        "http://issuer.example/keys",
        "https://user:secret@issuer.example/",
        "file:///etc/passwd",
        "https://",
    ] {
        let error = new(bad, Some(&authority)).unwrap_err().to_string();
        assert!(
            error.contains("is no address of a key set"),
            "{bad}: {error}"
        );
    }
    let missing = folder.path().join("other.pem");
    let error = new("https://issuer.example", Some(&missing)).unwrap_err();
    assert!(error.to_string().contains("other.pem"), "{error}");
}

#[tokio::test]
async fn the_jwt_authorities_of_a_trust_domain_come_from_the_workload_api() {
    let agent = Agent::start(&["gw"]).await;
    let endpoint = format!("unix://{}", agent.socket().display());
    let source = |domain: &str| KeySource::WorkloadApi {
        endpoint_socket: Some(endpoint.clone()),
        trust_domain: TrustDomain::new(domain).unwrap(),
    };
    let following = follow(source(DOMAIN), SOON);
    following
        .until("the authority", |keys| keys.current().is_some())
        .await;
    let client = WorkloadApiClient::connect_to(&endpoint).await.unwrap();
    let token = client
        .fetch_jwt_token(["gateway"], None::<&SpiffeId>)
        .await
        .unwrap();
    let rules = TokenRules {
        issuer: "issuer".into(),
        audience: "gateway".into(),
    };
    let here = Thumbprint::of(&CertificateDer::from(&b"mine"[..]));
    let keys = following.keys.current().unwrap();
    // Its signature is good; a JWT-SVID has no issuer.
    let verified = rules.verify(&token, &keys, &here, SystemTime::now());
    assert_eq!(verified, Err(TokenError::Issuer));

    let stranger = follow(source("elsewhere.test"), SOON);
    stranger
        .until_problem("no JWT authorities of elsewhere.test")
        .await;
    assert_eq!(stranger.count(), 0);

    let folder = agent.stop();
    following.until_problem("Workload API").await;
    assert_eq!(following.count(), 1);
    drop(folder);
}
