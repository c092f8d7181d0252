//! What must not be told is not told, at any level.

use crate::bearer::{Bearer, Issuer, Recorder, parts};
use portarium_tests::{Arrangement, House, figure, free_port, hints, mission, stop, until};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};
use tokio_util::task::AbortOnDropHandle;

/// In parameters, and nowhere else.
const SECRETS: [&str; 3] = ["s3cr3t-value-7Qx", "s3cr3t-name-9Kd", "4711.081542"];

/// The gateway's own log as loud as it goes, and other crates' as well.
const LOUD: &str =
    "RUST_LOG=trace,rustls=trace,h2=trace,hyper=trace,tonic=trace,rumqttc=trace,spiffe=trace";

/// Both formats, each with what lines that are no news have in them.
const FORMATS: [(&str, &str); 2] = [
    ("PORTARIUM__LOG__FORMAT=text", "DEBUG "),
    ("PORTARIUM__LOG__FORMAT=json", "\"level\":\"DEBUG\""),
];

/// Every run of base64 that a private key could be recognised by.
fn keys(pem: &str) -> Vec<String> {
    let lines = pem.lines().filter(|line| !line.starts_with("---"));
    lines
        .filter(|line| line.len() > 20)
        .map(str::to_owned)
        .collect()
}

/// All files in the folder but the configuration; the broker's, with its own key, are not in it.
fn written(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut written = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_file() && name != "gateway.toml" {
            written.insert(name, fs::read(&path).unwrap());
        }
    }
    written
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn no_key_token_or_parameter_is_told_at_the_loudest() {
    for (format, loud) in FORMATS {
        nothing_is_told_in(format, loud).await;
    }
}

async fn nothing_is_told_in(format: &str, loud: &str) {
    let (issuer, robot, port) = (Issuer::new(), Recorder::default(), free_port());
    let keys_dir = tempfile::tempdir().unwrap();
    let house = House::arranged(Arrangement {
        workloads: &["x"],
        config: &(Recorder::config(port) + &issuer.config(keys_dir.path())),
        behind: &["env", LOUD, format],
        ..Arrangement::default()
    })
    .await;
    let _serving = AbortOnDropHandle::new(robot.listen(&house, port).await);
    let bearer = Bearer::of(&house, issuer).await;
    let mut tokens = Vec::new();
    let gateway = house.identities.manager(hints::GATEWAY).await;
    let mut snapshots = gateway.snapshots();
    let mut secrets: Vec<String> = SECRETS.map(str::to_owned).to_vec();
    let mut number = 0;
    // Over two rotations: each has a key of its own.
    for _ in 0..3 {
        let svid = snapshots.borrow_and_update().clone().unwrap();
        secrets.extend(keys(&svid.key_pem()));
        for robot in ["m", "g", "x"] {
            for (id, robot_id) in [
                (format!("told-{number}"), robot),
                (format!("refused-{number}"), "nobody"),
            ] {
                let mut asked = mission(robot_id, &id, Duration::from_millis(20));
                let fields = &mut asked.parameters.as_mut().unwrap().fields;
                fields.insert(SECRETS[1].into(), SECRETS[0].into());
                fields.insert("lat".into(), SECRETS[2].into());
                house.caller.dispatch(&asked).await.unwrap();
                number += 1;
            }
            house
                .caller
                .dispatch(&stop(robot, &format!("stop-{number}")))
                .await
                .unwrap();
        }
        let mut broken = mission("m", &format!("broken-{number}"), Duration::ZERO);
        let fields = &mut broken.parameters.as_mut().unwrap().fields;
        fields.insert(SECRETS[1].into(), SECRETS[0].repeat(2_000));
        house.caller.dispatch(&broken).await.unwrap();
        tokens.extend(bearer.resolve(&house, "told-0").await);
        snapshots.changed().await.unwrap();
    }
    until("a JWT-SVID shown to the robot", async || {
        !robot.tokens().is_empty()
    })
    .await;
    let access_tokens = tokens.len();
    tokens.extend(robot.tokens());
    secrets.extend(tokens.iter().flat_map(|token| parts(token)));
    let mut written = written(house.dir());
    // The journal has to know parameters, so that the search finds what it looks for; no key.
    let journal: BTreeMap<_, _> = written
        .extract_if(.., |name, _| name.starts_with("journal"))
        .collect();
    for (secret, known) in secrets
        .iter()
        .enumerate()
        .map(|(n, secret)| (secret, n < SECRETS.len()))
    {
        let held = journal
            .values()
            .any(|bytes| holds(bytes, secret.as_bytes()));
        assert_eq!(held, known, "{secret} in the journal");
    }
    assert!(written.contains_key("audit.jsonl") && written.contains_key("gateway.log"));
    let log = String::from_utf8_lossy(&written["gateway.log"]);
    assert!(log.contains(loud), "not loud");
    for part in ["PRIVATE KEY", "BEGIN ", "eyJ"]
        .iter()
        .copied()
        .chain(secrets.iter().map(String::as_str))
    {
        for (file, bytes) in &written {
            assert!(!holds(bytes, part.as_bytes()), "{part} is in {file}");
        }
    }
    let bytes: usize = written.values().map(Vec::len).sum();
    figure(
        "attack, logs",
        &format!(
            "{format}: {} secrets of {number} missions, 3 keys, {access_tokens} access tokens and {} \
             JWT-SVIDs: 0 in {bytes} bytes of {} files",
            secrets.len(),
            tokens.len() - access_tokens,
            written.len()
        ),
    );
}
