//! A gateway with one robot on real SPIRE, and a second trust domain.

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, grpc::GrpcRobots};
use portarium_identity::{SvidConfig, SvidManager};
use portarium_tests::{
    Caller, Config, GatewayProcess, Identities, Registration, Spire, audit, grpc_robot, hints,
    init, soon, until,
};
use serde_json::Value;
use std::{path::Path, sync::Arc, time::Duration};

/// The trust domain of the platform.
pub(super) const IO: &str = "portarium.io";

/// The trust domain of gateways and robots.
pub(super) const ROBOTICS: &str = "portarium.robotics";

/// Long enough that nothing is renewed during a test.
pub(super) const LASTING: Duration = Duration::from_secs(3_600);

/// The platform's control plane may do what our own may.
const POLICY: &str = r#"
[[policy]]
peers = ["spiffe://portarium.io/ns/portarium/sa/portarium-control-plane"]
methods = ["DispatchMission", "GetMissionStatus", "ListRobots", "GetRobot"]
robots = ["*"]
fleets = ["*"]
actions = ["*"]
"#;

/// A gateway, a robot `g` that serves gRPC, a control plane of the same trust domain.
pub(super) struct Scene {
    pub(super) identities: Identities,
    pub(super) gateway: GatewayProcess,
    pub(super) caller: Arc<Caller>,
    /// The gateway's identity, as the gateway has it.
    pub(super) own: SvidManager,
    _robot: GrpcRobots,
}

impl Scene {
    /// Started and in reach, with SVIDs that live for so long.
    pub(super) async fn start(dir: &Path, ttl: Duration) -> Self {
        init();
        let identities = Identities::living(dir, &["g"], ttl).await;
        identities.spire();
        let log = ExecutionLog::in_memory();
        let robot = RobotConfig::new("g".parse().unwrap());
        let robot = grpc_robot(&identities, robot, &log).await;
        let config = Config::new(dir, &identities)
            .grpc_robot("g", robot.local_addr().port(), "")
            .text(POLICY);
        let gateway = GatewayProcess::start(dir, &config).await;
        let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
        caller.robots_reachable(&["g"]).await;
        Self {
            own: identities.manager(hints::GATEWAY).await,
            identities,
            gateway,
            caller,
            _robot: robot,
        }
    }

    /// The audit's lines so far.
    pub(super) fn audit(&self) -> Vec<Value> {
        audit(&self.gateway.audit_file())
    }

    /// How many authorities the gateway has been told of.
    pub(super) fn authorities(&self) -> usize {
        let bundle = self.own.current().map(|now| now.bundle_pem());
        bundle.map_or(0, |bundle| bundle.matches("BEGIN").count())
    }
}

/// Waits until the audit has, behind the first lines, one of a refusal like this.
pub(super) async fn told(scene: &Scene, seen: usize, method: &str, reason: &str) {
    let is = |line: &&Value| {
        line["method"] == *method
            && line["decision"] == "refused"
            && line["reason"].as_str().is_some_and(|r| r.contains(reason))
    };
    until(
        &format!("{method} refused in the audit: {reason}"),
        async || scene.audit()[seen..].iter().any(|line| is(&line)),
    )
    .await;
}

/// The platform's trust domain, on a SPIRE server and agent of its own.
pub(super) struct Io {
    pub(super) spire: Spire,
}

impl Io {
    /// Started, with an entry for its control plane, and federated with the scene's, both ways.
    pub(super) async fn federated(scene: &Scene) -> Self {
        let robotics = scene.identities.spire();
        let spire = Spire::start(IO).await;
        spire.federate(robotics).await;
        let control_plane = Registration {
            spiffe_id: format!("spiffe://{IO}/ns/portarium/sa/portarium-control-plane"),
            hint: hints::CONTROL_PLANE.into(),
            dns_names: Vec::new(),
            ttl: LASTING,
            federates_with: vec![ROBOTICS.into()],
        };
        spire.register(vec![control_plane]).await;
        robotics.federate(&spire).await;
        let gateway = Registration {
            federates_with: vec![IO.into()],
            ..scene.identities.registration(hints::GATEWAY)
        };
        robotics.update(&gateway).await;
        Self { spire }
    }

    /// Its control plane's identity.
    pub(super) async fn manager(&self) -> SvidManager {
        let manager = SvidManager::start(SvidConfig {
            endpoint_socket: Some(format!("unix://{}", self.spire.socket().display())),
            hint: Some(hints::CONTROL_PLANE.into()),
            ..SvidConfig::default()
        })
        .unwrap();
        soon("an SVID", manager.ready()).await;
        manager
    }
}
