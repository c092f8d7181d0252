//! Connections end with the identities that they rest on, each within seconds of the push.

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics};
use portarium_tests::{
    Caller, Config, GatewayProcess, Identities, Mosquitto, Proxy, audit, figure, grpc_robot, hints,
    init, mqtt_robot, spiffe_id, until_within,
};
use rustix::process::Signal;
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// What a push may take until nobody is connected any longer whom it ends.
const WITHIN: Duration = Duration::from_secs(10);

/// Nothing is renewed meanwhile, nothing ends by its time.
const LASTING: Duration = Duration::from_secs(3_600);

/// A gateway between a broker, a robot that serves gRPC and a caller, and what passes on each side.
struct Scene {
    to_broker: Proxy,
    to_robot: Proxy,
    from_caller: Proxy,
    caller: Arc<Caller>,
    gateway: GatewayProcess,
    identities: Identities,
    config: Config,
    _peers: Box<dyn std::any::Any + Send>,
}

impl Scene {
    async fn start(dir: &Path) -> Self {
        init();
        let identities = Identities::living(dir, &["m", "g"], LASTING).await;
        let broker = Mosquitto::start(dir, &identities).await;
        let log = ExecutionLog::in_memory();
        let robot = |id: &str| RobotConfig::new(id.parse().unwrap());
        let own = StatusTopics::Own;
        let m = mqtt_robot(&identities, broker.port, own, robot("m"), &log).await;
        let g = grpc_robot(&identities, robot("g"), &log).await;
        let gateway_id = identities.manager(hints::GATEWAY).await;
        let between = async |port, other: &str| {
            let ends = [gateway_id.clone(), identities.manager(other).await];
            Proxy::start(port, ends).await
        };
        let to_broker = between(broker.port, hints::BROKER).await;
        let to_robot = between(g.local_addr().port(), "g").await;
        let config = Config::new(dir, &identities)
            .broker("main", to_broker.port)
            .mqtt_robot("m", "")
            .grpc_robot("g", to_robot.port, "");
        let gateway = GatewayProcess::start(dir, &config).await;
        let from_caller = between(gateway.ports.grpc, hints::CONTROL_PLANE).await;
        let caller = Arc::new(Caller::control_plane(&identities, from_caller.port).await);
        caller.robots_reachable(&["m", "g"]).await;
        Self {
            to_broker,
            to_robot,
            from_caller,
            caller,
            gateway,
            identities,
            config,
            _peers: Box::new((broker, m, g)),
        }
    }

    fn open(proxy: &Proxy) -> usize {
        let links = proxy.links();
        links.iter().filter(|link| link.closed.is_none()).count()
    }

    /// Waits until nothing is open there, and says how long that took since then.
    async fn closed(&self, what: &str, proxy: &Proxy, since: Instant) -> Duration {
        until_within(WITHIN, what, async || Self::open(proxy) == 0).await;
        since.elapsed()
    }

    /// The configuration with more lines under `[identity]`, read again by the gateway.
    fn reload(&self, dir: &Path, lines: &str) {
        let text = self.config.render();
        let text = text.replacen("[identity]\n", &format!("[identity]\n{lines}\n"), 1);
        fs::write(dir.join("gateway.toml"), text).unwrap();
        self.gateway.signal(Signal::HUP);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn no_connection_outlives_the_gateways_own_entry() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path()).await;
    let own = scene.identities.manager(hints::GATEWAY).await;
    scene.identities.delete(hints::GATEWAY).await;
    // The agent pushes to both at once; how long it takes to hear of it is its affair.
    portarium_tests::until("the push", async || own.current().is_none()).await;
    let pushed = Instant::now();
    let (broker, robot, caller) = tokio::join!(
        scene.closed("the broker's connections to end", &scene.to_broker, pushed),
        scene.closed("the robot's connections to end", &scene.to_robot, pushed),
        scene.closed("the caller's connection to end", &scene.from_caller, pushed),
    );
    figure(
        "own entry deleted",
        &format!(
            "after the push MQTT closed in {broker:.1?}, gRPC south {robot:.1?}, north {caller:.1?}"
        ),
    );
    scene.identities.restore().await;
    scene.caller.robots_reachable(&["m", "g"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn who_is_denied_is_cut_at_once_and_comes_back_when_allowed_again() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path()).await;
    for (hint, proxy) in [
        (hints::BROKER, &scene.to_broker),
        ("g", &scene.to_robot),
        (hints::CONTROL_PLANE, &scene.from_caller),
    ] {
        let denied = Instant::now();
        scene.reload(dir.path(), &format!("deny = [\"{}\"]", spiffe_id(hint)));
        let took = scene
            .closed("the denied peer's connections to end", proxy, denied)
            .await;
        figure(
            "denied",
            &format!("{hint}: its connections are closed {took:.1?} after the signal"),
        );
        // Whoever tries again is refused before it counts as connected.
        let refused = format!("the policy does not admit {}", spiffe_id(hint));
        if hint == hints::CONTROL_PLANE {
            let told = || {
                let lines = audit(&scene.gateway.audit_file());
                lines.iter().any(|line| {
                    line["reason"]
                        .as_str()
                        .is_some_and(|r| r.contains(&refused))
                })
            };
            portarium_tests::until("the audit to name who was refused", async || told()).await;
        }
        scene.reload(dir.path(), "");
        scene.caller.robots_reachable(&["m", "g"]).await;
    }
}
