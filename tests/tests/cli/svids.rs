//! `svid show`, `watch` and `write`.

use crate::{
    TTL,
    common::{LIMIT, Process, World, assert_contains, id, process},
};
use portarium_gateway::dev::hints::{CONTROL_PLANE, OPERATOR};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

#[tokio::test]
async fn an_svid_in_files_is_of_one_generation_whenever_it_is_read() {
    let world = World::new(Duration::from_secs(10)).await;
    let dir = world.file("svid");
    let words = format!("svid write --dir {}", dir.display());
    let mut writer = process::command(&words.split(' ').collect::<Vec<_>>());
    writer.args(["--hint", CONTROL_PLANE, "--socket", &world.socket()]);
    let writer = Process::spawn(writer);
    writer.says("generation 1: ").await;
    let mode = fs::metadata(dir.join("key.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let mut svids = std::collections::BTreeSet::new();
    let mut reads = 0;
    let began = Instant::now();
    while svids.len() < 20 && began.elapsed() < LIMIT {
        if reads % 20 == 0 {
            world.stage.authority.rotate();
        }
        if let Some(svid) = read_generation(&dir) {
            svids.insert(svid);
            reads += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(svids.len() >= 20, "{} generations", svids.len());
    println!(
        "FIGURE cli: {reads} reads of three files over {} generations, all of one",
        svids.len()
    );
    writer.interrupt();
    let ended = writer.ended().await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    // What was written stays for those who still read it.
    assert!(read_generation(&dir).is_some());
}

/// The certificate, once key and certificate were found to be a pair; `None` where the generation
/// went away in between.
fn read_generation(dir: &Path) -> Option<String> {
    let generation = fs::canonicalize(dir.join("..current")).unwrap();
    let read = |name: &str| fs::read(generation.join(name)).ok();
    let [svid, key, bundle] = [read("svid.pem")?, read("key.pem")?, read("bundle.pem")?];
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&svid).collect();
    let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(&bundle) {
        roots.add(authority.unwrap()).unwrap();
    }
    // Fails where the key is another certificate's.
    rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.unwrap(), key)
        .unwrap();
    Some(String::from_utf8(svid).unwrap())
}

#[tokio::test]
async fn the_svid_is_shown_and_watched() {
    let world = World::new(TTL).await;
    let shown = json_svid(&world, "svid show").await;
    assert_eq!(shown["spiffe_id"], id(OPERATOR));
    assert_eq!(shown["hint"], OPERATOR);
    let out = svid(&world, "svid show").await.ended().await;
    assert_eq!(out.code, Some(0), "{out:?}");
    assert_contains(&out.out, &id(OPERATOR));

    let watch = svid(&world, "svid watch").await;
    watch.says("generation 1: ").await;
    world.stage.authority.rotate();
    watch.says("generation 2: ").await;
    watch.interrupt();
    assert_eq!(watch.ended().await.code, Some(0));
}

async fn svid(world: &World, words: &str) -> Process {
    let mut command = process::command(&words.split(' ').collect::<Vec<_>>());
    command.args(["--hint", OPERATOR, "--socket", &world.socket()]);
    Process::spawn(command)
}

async fn json_svid(world: &World, words: &str) -> Value {
    let ended = svid(world, &format!("{words} --json")).await.ended().await;
    serde_json::from_str(&ended.out).unwrap()
}

#[tokio::test]
async fn without_an_agent_the_svid_is_not_shown_and_that_is_said_within_five_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}/agent.sock", dir.path().display());
    let began = Instant::now();
    let ended = process::run(&["svid", "show", "--socket", &socket]).await;
    let took = began.elapsed();
    assert_eq!(
        (ended.code, ended.err.lines().count()),
        (Some(1), 1),
        "{ended:?}"
    );
    assert_contains(&ended.err, "the Workload API socket does not exist");
    assert!(took < Duration::from_secs(5), "{took:?}");
    println!("FIGURE cli: svid show without a socket fails after {took:.2?}");

    let ended = process::run(&["svid", "show"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_contains(&ended.err, "SPIFFE_ENDPOINT_SOCKET");

    // Several SVIDs and no choice: the choices are named.
    let world = World::new(TTL).await;
    let ended = process::run(&["svid", "show", "--socket", &world.socket()]).await;
    assert_eq!(
        (ended.code, ended.err.lines().count()),
        (Some(1), 1),
        "{ended:?}"
    );
    assert_contains(&ended.err, "choose one with --hint");
    assert_contains(&ended.err, OPERATOR);
}
