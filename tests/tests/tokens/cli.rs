//! The command line alone.

use super::{AUDIENCE, HOUR, ISSUER, Issuer, KID, World, mint_for};
use portarium_tests::{binary, hints, mission, spiffe_id, until};
use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Runs the shipped binary: its exit code, standard output and standard error.
pub(super) fn run(words: &[&str], variables: &[(&str, String)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(binary("portarium-gateway"));
    command.args(words).envs(variables.iter().cloned());
    let ended = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        ended.status.code(),
        text(&ended.stdout),
        text(&ended.stderr),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_minted_shown_and_verified_with_the_command_line_alone() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("issuer.pem").display().to_string();
    fs::write(&key, Issuer::new().pem).unwrap();
    let (code, keys, why) = run(&["token", "keys", "--key", &key, "--kid", KID], &[]);
    assert_eq!(code, Some(0), "{why}");
    let world = World::start(HOUR, |folder| {
        let path = folder.join("keys.json");
        fs::write(&path, &keys).unwrap();
        format!("keys_file = \"{}\"", path.display())
    })
    .await;
    let variables = [
        ("SPIFFE_ENDPOINT_SOCKET", world.identities.endpoint()),
        (
            "PORTARIUM_SERVER",
            format!("localhost:{}", world.gateway.ports.grpc),
        ),
        ("PORTARIUM_SERVER_ID", spiffe_id(hints::GATEWAY)),
    ];
    let as_control_plane = |words: &[&str]| {
        run(
            &[words, &["--hint", hints::CONTROL_PLANE]].concat(),
            &variables,
        )
    };
    let mint = [
        "token",
        "mint",
        "--key",
        &key,
        "--kid",
        KID,
        "--issuer",
        ISSUER,
        "--audience",
        AUDIENCE,
    ];
    let (code, minted, why) = as_control_plane(&mint);
    assert_eq!(code, Some(0), "{why}");
    let token = dir.path().join("token").display().to_string();
    fs::write(&token, &minted).unwrap();
    let dispatch = [
        "mission",
        "dispatch",
        "--robot",
        "g",
        "--action",
        "navigate_to",
    ];
    let (code, _, why) = as_control_plane(&dispatch);
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("access token: none came"), "{why}");
    let (code, _, why) = as_control_plane(&[&dispatch[..], &["--token-file", &token]].concat());
    assert_eq!(code, Some(0), "{why}");
    let (code, _, why) = as_control_plane(&[&dispatch[..], &["--token-file", "/nowhere"]].concat());
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("--token-file /nowhere: No such file"), "{why}");
    // No token is asked for on a stop, and so none that is missing or broken is in its way.
    let broken = dir.path().join("broken").display().to_string();
    fs::write(&broken, "a\nb").unwrap();
    let pipe = dir.path().join("pipe").display().to_string();
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for (file, reason) in [
        ("/nowhere", "No such file"),
        (&broken, "it has no token in it"),
        (&pipe, "it cannot be read within 500ms"),
    ] {
        let stop = ["mission", "stop", "--robot", "g", "--token-file", file];
        let (code, told, why) = as_control_plane(&stop);
        assert_eq!(code, Some(0), "{why}");
        assert!(told.starts_with("robot g: "), "{told}");
        let remark = format!("--token-file {file}: {reason}");
        assert!(why.contains(&remark), "{why}");
        assert!(why.contains("the stop goes out without a token"), "{why}");
    }
    // As an issuer mints that only sees the certificate of its caller.
    let lasting = dir.path().join("operator");
    world
        .identities
        .write_lasting(hints::OPERATOR, HOUR, &lasting);
    let certificate = lasting.join("svid.pem").display().to_string();
    let (code, minted, why) = run(&[&mint[..], &["--certificate", &certificate]].concat(), &[]);
    assert_eq!(code, Some(0), "{why}");
    fs::write(&token, &minted).unwrap();
    let (code, _, why) = as_control_plane(&[&dispatch[..], &["--token-file", &token]].concat());
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("bound to another certificate"), "{why}");
    let (code, jwt, why) = as_control_plane(&["svid", "jwt", "--audience", "robot-arm"]);
    assert_eq!((code, jwt.trim().split('.').count()), (Some(0), 3), "{why}");
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_with_the_next_token_in_the_file() {
    let issuer = Issuer::new();
    let methods = ["WatchMissions"];
    let world = World::guarding(&methods, HOUR, |dir| super::keys_file(dir, &issuer)).await;
    let (caller, manager, _) = world.caller(hints::CONTROL_PLANE).await;
    caller.robots_reachable(&["g"]).await;
    let dir = tempfile::tempdir().unwrap();
    let (token, seen) = (dir.path().join("token"), dir.path().join("seen"));
    fs::write(&token, mint_for(&issuer, &manager, 4)).unwrap();
    let errors = dir.path().join("errors");
    let words = ["mission", "watch", "--after", "0", "--hint"];
    let watch = Command::new(binary("portarium-gateway"))
        .args(words)
        .arg(hints::CONTROL_PLANE)
        .arg("--token-file")
        .arg(&token)
        .env("SPIFFE_ENDPOINT_SOCKET", world.identities.endpoint())
        .env(
            "PORTARIUM_SERVER",
            format!("localhost:{}", world.gateway.ports.grpc),
        )
        .env("PORTARIUM_SERVER_ID", spiffe_id(hints::GATEWAY))
        .stdin(Stdio::null())
        .stdout(fs::File::create(&seen).unwrap())
        .stderr(fs::File::create(&errors).unwrap())
        .spawn();
    let _watch = Running(watch.unwrap());
    let sees = async |what: &str| {
        caller
            .accepted(&mission("g", what, Duration::from_millis(1)))
            .await;
        until(what, async || {
            fs::read_to_string(&seen).unwrap().contains(what)
        })
        .await;
    };
    sees("before-its-end").await;
    fs::write(&token, mint_for(&issuer, &manager, 300)).unwrap();
    until("the end of the first", async || {
        fs::read_to_string(&errors).unwrap().contains("has expired")
    })
    .await;
    sees("after-its-end").await;
}
