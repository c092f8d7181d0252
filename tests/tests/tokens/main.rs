//! Access tokens bound to certificates: good over the one connection that they are bound to, refused
//! with a line in the audit everywhere else, and never in the way of a stop.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli;
mod keys;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig};
use portarium_identity::{
    SvidManager,
    token::{SigningKey, Thumbprint, bind},
};
use portarium_protocols::grpc::{Credential, pb};
use portarium_tests::{
    Caller, Config, GatewayProcess, Identities, audit, figure, grpc_robot, hints, init, metric,
    mission, soon, stop, until,
};
use rcgen::KeyPair;
use serde_json::{Map, Value, json};
use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tonic::Code;

const HOUR: Duration = Duration::from_secs(3600);
const KID: &str = "2026-11";
const ISSUER: &str = "https://issuer.portarium.example";
const AUDIENCE: &str = "portarium-gateway";

/// Who issues tokens.
struct Issuer {
    pem: String,
    key: SigningKey,
}

impl Issuer {
    fn new() -> Self {
        let pem = KeyPair::generate().unwrap().serialize_pem();
        let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        Self { pem, key }
    }

    fn keys(&self) -> String {
        self.key.key_set(KID).to_string()
    }

    fn mint(&self, thumbprint: &Thumbprint, changed: Value) -> String {
        let claims = claims(thumbprint, changed);
        self.key.sign(&claims, KID).unwrap()
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// Good for five minutes, with some claims changed; `null` takes one away.
fn claims(thumbprint: &Thumbprint, changed: Value) -> Map<String, Value> {
    let good = json!({"iss": ISSUER, "aud": AUDIENCE, "iat": now(), "exp": now() + 300});
    let mut claims = good.as_object().unwrap().clone();
    bind(&mut claims, thumbprint);
    for (name, value) in changed.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.remove(name)),
            value => drop(claims.insert(name.clone(), value.clone())),
        }
    }
    claims
}

/// What the next calls show.
#[derive(Debug, Default)]
struct Shown(Mutex<Option<String>>);

impl Shown {
    fn show(&self, token: impl Into<String>) {
        *self.0.lock().unwrap() = Some(token.into());
    }
}

impl Credential for Shown {
    fn bearer(&self) -> io::Result<Option<String>> {
        Ok(self.0.lock().unwrap().clone())
    }
}

struct World {
    identities: Identities,
    gateway: GatewayProcess,
    _robot: portarium_gateway::dev::robot::grpc::GrpcRobots,
    _dir: tempfile::TempDir,
}

impl World {
    /// `keys`: the line of the configuration that says where keys come from.
    async fn start(ttl: Duration, keys: impl FnOnce(&Path) -> String) -> Self {
        Self::guarding(&["DispatchMission", "HoldRobot"], ttl, keys).await
    }

    /// As [`World::start`], where other methods need a token.
    async fn guarding(methods: &[&str], ttl: Duration, keys: impl FnOnce(&Path) -> String) -> Self {
        init();
        let dir = tempfile::tempdir().unwrap();
        let identities = Identities::living(dir.path(), &["g"], ttl).await;
        let log = ExecutionLog::in_memory();
        let robot = RobotConfig::new("g".parse().unwrap());
        let robot = grpc_robot(&identities, robot, &log).await;
        let keys = keys(dir.path());
        let config = Config::new(dir.path(), &identities)
            .grpc_robot("g", robot.local_addr().port(), "")
            .text(&format!(
                "[tokens]\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\nmethods = {methods:?}\n{keys}\n"
            ));
        let gateway = GatewayProcess::start(dir.path(), &config).await;
        Self {
            identities,
            gateway,
            _robot: robot,
            _dir: dir,
        }
    }

    async fn with_file(ttl: Duration, issuer: &Issuer) -> Self {
        Self::start(ttl, |dir| keys_file(dir, issuer)).await
    }

    async fn caller(&self, hint: &str) -> (Caller, SvidManager, Arc<Shown>) {
        let manager = self.identities.manager(hint).await;
        let shown = Arc::<Shown>::default();
        let credential = Some(shown.clone() as Arc<dyn Credential>);
        let caller = Caller::showing(credential, &manager, self.gateway.ports.grpc).await;
        (caller, manager, shown)
    }

    /// The reasons for which calls of this method were refused, in order.
    fn refused(&self, method: &str) -> Vec<String> {
        let lines = audit(&self.gateway.audit_file()).into_iter();
        let of_method = |line: &Value| line["method"] == method && line["decision"] == "refused";
        let refused = lines.filter(of_method);
        refused
            .map(|line| line["reason"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

fn keys_file(dir: &Path, issuer: &Issuer) -> String {
    let file = dir.join("keys.json");
    fs::write(&file, issuer.keys()).unwrap();
    format!("keys_file = \"{}\"", file.display())
}

/// A token for this workload's SVID that ends so soon.
fn mint_for(issuer: &Issuer, manager: &SvidManager, seconds: u64) -> String {
    let thumbprint = manager.current().unwrap().thumbprint;
    issuer.mint(&thumbprint, json!({"exp": now() + seconds}))
}

async fn try_once(caller: &Caller, id: &str) -> Result<(), tonic::Status> {
    let request = mission("g", id, Duration::from_millis(1));
    caller.dispatch(&request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_token_but_one_for_this_connection_is_refused_and_audited_and_a_stop_needs_none() {
    let issuer = Issuer::new();
    let world = World::with_file(HOUR, &issuer).await;
    let (caller, manager, shown) = world.caller(hints::CONTROL_PLANE).await;
    caller.robots_reachable(&["g"]).await;
    let mine = manager.current().unwrap().thumbprint;
    let others = world.identities.manager(hints::OPERATOR).await;
    let theirs = others.current().unwrap().thumbprint;
    let good = issuer.mint(&mine, json!({}));
    let head = |head: Value| Base64UrlUnpadded::encode_string(head.to_string().as_bytes());
    let payload = good.split('.').nth(1).unwrap();
    let unsigned = format!("{}.{payload}.", head(json!({"alg": "none", "kid": KID})));
    let past = now() - 1;
    let table = [
        ("no token", String::new(), "send it as"),
        (
            "replayed by another workload",
            issuer.mint(&theirs, json!({})),
            "another certificate",
        ),
        (
            "without cnf",
            issuer.mint(&mine, json!({"cnf": null})),
            "not bound",
        ),
        (
            "wrong aud",
            issuer.mint(&mine, json!({"aud": "robots"})),
            "another audience",
        ),
        (
            "wrong iss",
            issuer.mint(&mine, json!({"iss": "https://evil.example"})),
            "another issuer",
        ),
        ("alg none", unsigned, "no signed JWT"),
        (
            "HS256 with the public key",
            with_shared_secret(&issuer, &mine),
            "not one of its key",
        ),
        (
            "expired",
            issuer.mint(&mine, json!({"exp": past})),
            "has expired",
        ),
        (
            "without an end",
            issuer.mint(&mine, json!({"exp": null})),
            "no expiry",
        ),
        (
            "not yet valid",
            issuer.mint(&mine, json!({"nbf": now() + 60})),
            "not valid yet",
        ),
        (
            "another issuer's key",
            Issuer::new().mint(&mine, json!({})),
            "does not verify",
        ),
        ("changed", good.replacen('.', ".e30", 1), "does not verify"),
        ("longer than any", "x".repeat(10_000), "longer than"),
    ];
    let mut expected = Vec::new();
    for (what, token, reason) in &table {
        if token.is_empty() {
            *shown.0.lock().unwrap() = None;
        } else {
            shown.show(token);
        }
        let status = try_once(&caller, what).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status}");
        assert!(status.message().contains(reason), "{what}: {status}");
        // Stops, and what the configuration does not name, need none.
        caller.accepted(&stop("g", &what.replace(' ', "-"))).await;
        expected.push(*reason);
    }
    for n in 0..1_000 {
        shown.show(
            issuer
                .key
                .sign(&claims(&mine, json!({})), &format!("k{n}"))
                .unwrap(),
        );
        let status = try_once(&caller, "unknown key").await.unwrap_err();
        assert!(status.message().contains("has its kid"), "{status}");
    }
    shown.show(&good);
    caller.robots_reachable(&["g"]).await;
    caller
        .accepted(&mission("g", "good", Duration::from_millis(1)))
        .await;
    let kept = caller.status("no token").await;
    assert!(kept.is_err(), "{kept:?}");
    until("lines in the audit", async || {
        world.refused("DispatchMission").len() == table.len() + 1_000
    })
    .await;
    for (reason, expected) in world.refused("DispatchMission").iter().zip(expected) {
        assert!(reason.starts_with("access token: "), "{reason}");
        assert!(reason.contains(expected), "{reason}");
    }
    let everything =
        fs::read_to_string(world.gateway.audit_file()).unwrap() + &world.gateway.output();
    for (what, token, _) in &table {
        let secret = token.len() > 60 && everything.contains(&token[token.len() - 60..]);
        assert!(!secret, "{what} stands in the audit or the log");
    }
    let refused = metric(
        world.gateway.ports.admin,
        "portarium_gateway_access_tokens_total",
        "refused",
    )
    .await;
    figure(
        "tokens",
        &format!(
            "{} kinds of bad tokens and 1000 unknown keys: all refused and audited ({refused} counted), {} stops without one obeyed",
            table.len(),
            table.len()
        ),
    );
}

/// Signed with what everyone knows, as if that were a secret.
fn with_shared_secret(issuer: &Issuer, mine: &Thumbprint) -> String {
    use aws_lc_rs::hmac;
    let text = |json: String| Base64UrlUnpadded::encode_string(json.as_bytes());
    let head = text(json!({"alg": "HS256", "kid": KID}).to_string());
    let payload = text(Value::Object(claims(mine, json!({}))).to_string());
    let signed = format!("{head}.{payload}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, issuer.keys().as_bytes());
    let signature = hmac::sign(&key, signed.as_bytes());
    format!(
        "{signed}.{}",
        Base64UrlUnpadded::encode_string(signature.as_ref())
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_the_old_token_is_refused_and_a_new_one_is_taken() {
    let issuer = Issuer::new();
    let world = World::with_file(Duration::from_secs(10), &issuer).await;
    let (caller, manager, shown) = world.caller(hints::CONTROL_PLANE).await;
    shown.show(issuer.mint(&manager.current().unwrap().thumbprint, json!({})));
    caller.robots_reachable(&["g"]).await;
    caller
        .accepted(&mission("g", "first", Duration::from_millis(1)))
        .await;
    let mut last = String::new();
    until("the connection is renewed", async || {
        let tried = try_once(&caller, "with the old one").await;
        last = tried
            .err()
            .map(|status| status.message().to_owned())
            .unwrap_or_default();
        last.contains("after a rotation mint a new one")
    })
    .await;
    shown.show(issuer.mint(&manager.current().unwrap().thumbprint, json!({})));
    caller
        .accepted(&mission("g", "second", Duration::from_millis(1)))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_needs_a_token_by_whichever_method_and_whose_it_was_stands_in_the_audit() {
    let issuer = Issuer::new();
    let methods = ["CancelMission"];
    let world = World::guarding(&methods, HOUR, |dir| keys_file(dir, &issuer)).await;
    let (caller, manager, shown) = world.caller(hints::CONTROL_PLANE).await;
    caller.robots_reachable(&["g"]).await;
    caller.accepted(&mission("g", "long", HOUR)).await;
    let cancel_action = pb::DispatchMissionRequest {
        action_type: "robot:cancel_action".into(),
        action_name: "cancel".into(),
        ..mission("g", "cancel", Duration::ZERO)
    };
    let without = caller.dispatch(&cancel_action).await.unwrap_err();
    assert_eq!(without.code(), Code::Unauthenticated, "{without}");
    let without = caller.cancel("long").await.unwrap_err();
    assert_eq!(without.code(), Code::Unauthenticated, "{without}");

    let mine = manager.current().unwrap().thumbprint;
    let long = "x".repeat(2_000);
    shown.show(issuer.mint(&mine, json!({"sub": "planner", "jti": long})));
    caller.accepted(&cancel_action).await;
    shown.show(Issuer::new().mint(&mine, json!({"sub": "nobody"})));
    assert!(caller.cancel("long").await.is_err());
    let lines = soon("the line", async {
        loop {
            let lines = audit(&world.gateway.audit_file());
            if lines.iter().any(|line| line["token_sub"] == "planner") {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let line = lines.iter().find(|line| line["token_sub"] == "planner");
    assert_eq!(line.unwrap()["action_type"], "robot:cancel_action");
    let id = line.unwrap()["token_jti"].as_str().unwrap();
    assert!(id.starts_with("xxx") && id.len() < 600, "{}", id.len());
    let others = lines.iter().filter(|line| line.get("token_sub").is_some());
    assert_eq!(others.count(), 1, "of a token that was not verified");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_the_token_that_opened_it() {
    let issuer = Issuer::new();
    let methods = ["WatchMissions"];
    let world = World::guarding(&methods, HOUR, |dir| keys_file(dir, &issuer)).await;
    let (caller, manager, shown) = world.caller(hints::CONTROL_PLANE).await;
    caller.robots_reachable(&["g"]).await;
    caller
        .accepted(&mission("g", "first", Duration::from_millis(1)))
        .await;
    let watch = async |after_position| {
        let wanted = pb::WatchMissionsRequest {
            after_position,
            ..Default::default()
        };
        let opened = caller.client().unwrap().watch_missions(wanted).await;
        opened.map(tonic::Response::into_inner)
    };
    assert_eq!(watch(0).await.unwrap_err().code(), Code::Unauthenticated);
    let ends = now() + 3;
    shown.show(mint_for(&issuer, &manager, 3));
    let mut updates = watch(0).await.unwrap();
    let mut last = 0;
    let ended = soon("its end", async {
        loop {
            match updates.message().await {
                Ok(update) => last = update.unwrap().position,
                Err(status) => return status,
            }
        }
    })
    .await;
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("resume from the last"), "{ended}");
    assert!((ends..=ends + 1).contains(&now()), "{} {ends}", now());
    assert!(last > 0);
    shown.show(mint_for(&issuer, &manager, 300));
    let mut updates = watch(last).await.unwrap();
    caller
        .accepted(&mission("g", "second", Duration::from_millis(1)))
        .await;
    let next = soon("the next update", updates.message()).await;
    assert_eq!(next.unwrap().unwrap().mission_id, "second");
    until("lines in the audit", async || {
        world.refused("WatchMissions").len() == 2
    })
    .await;
}
