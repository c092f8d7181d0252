#![allow(clippy::unwrap_used)]
use super::*;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

async fn health(readiness: &Arc<Readiness>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve_health(
        listener,
        Arc::clone(readiness),
        shutdown.clone(),
    ));
    Server {
        address,
        shutdown,
        task,
    }
}

/// The whole answer to one request.
async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn readyz_names_each_component_that_is_not_ready_on_a_line_of_its_own() {
    let readiness = Readiness::new();
    let (identity, journal) = (
        readiness.component("identity"),
        readiness.component("journal"),
    );
    let server = health(&readiness).await;

    let answer = get(server.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(body(&answer), "identity: starting\njournal: starting\n");

    identity.not_ready("the socket\nis not there");
    journal.ready();
    let answer = get(server.address, "/readyz").await;
    assert_eq!(body(&answer), "identity: the socket is not there\n");

    identity.ready();
    let answer = get(server.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(body(&answer), "ready\n");

    identity.degraded("the SVID ends soon");
    let answer = get(server.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(
        body(&answer),
        "ready\ndegraded: identity: the SVID ends soon\n"
    );
    identity.ready();

    journal.not_ready("the disk is full");
    assert!(
        get(server.address, "/readyz")
            .await
            .starts_with("HTTP/1.1 503 ")
    );
    drop(journal);
    assert!(
        get(server.address, "/readyz")
            .await
            .starts_with("HTTP/1.1 200 ")
    );
}

#[tokio::test]
async fn livez_does_not_depend_on_readiness_and_nothing_else_is_served() {
    let readiness = Readiness::new();
    let _identity = readiness.component("identity");
    let server = health(&readiness).await;
    let answer = get(server.address, "/livez").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && body(&answer) == "alive\n",
        "{answer}"
    );
    for path in ["/", "/metrics", "/../etc/passwd"] {
        assert!(get(server.address, path).await.starts_with("HTTP/1.1 404 "));
    }
}

#[tokio::test]
async fn metrics_are_served_as_open_metrics() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_admin(
        listener,
        Metrics::new(),
        CancellationToken::new(),
    ));
    let answer = get(address, "/metrics").await;
    assert!(
        answer.contains("application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(body(&answer).ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn a_prober_is_answered_while_others_hold_all_places() {
    let readiness = Readiness::new();
    let server = health(&readiness).await;
    let mut idle = Vec::new();
    for _ in 0..32 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert!(
        get(server.address, "/livez")
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    let closed = timeout(Duration::from_secs(1), idle[0].read(&mut [0]))
        .await
        .unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    let others = idle[1].try_read(&mut [0]).unwrap_err();
    assert_eq!(others.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let readiness = Readiness::new();
    let server = health(&readiness).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    // The server may have closed already.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_never_asks_is_sent_away() {
    let readiness = Readiness::new();
    let server = health(&readiness).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /livez HT").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn shutdown_ends_the_server_with_clients_connected() {
    let readiness = Readiness::new();
    let server = health(&readiness).await;
    let _idle = TcpStream::connect(server.address).await.unwrap();
    get(server.address, "/livez").await;
    server.shutdown.cancel();
    timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap()
        .unwrap();
}
