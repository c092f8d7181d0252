//! A broker process, a robot and a gateway's side for the tests of the MQTT adapter.

#![allow(unreachable_pub, dead_code)]

use portarium_protocols::{
    adapter::{Adapter, Handover, Report, StopAnswer, Update},
    mission::{ActionType, Command, CompletionMode, MissionStatus},
    mqtt::{Broker, MqttAdapter, MqttConfig, MqttRobot, MqttStats},
};
use rumqttc::v5::{
    AsyncClient, Event, Incoming, MqttOptions,
    mqttbytes::{QoS, v5::LastWill},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{TcpListener, TcpStream},
    process::{Child, Command as Process, Stdio},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(20);

pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A mosquitto of its own, ended with the value.
pub struct Mosquitto {
    pub port: u16,
    dir: TempDir,
    child: Child,
}

impl Mosquitto {
    pub fn start() -> Self {
        Self::start_with(free_port(), "allow_anonymous true\n")
    }

    pub fn start_with(port: u16, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let common = format!(
            "listener {port} 127.0.0.1\nset_tcp_nodelay true\nmax_queued_messages 10000\n\
             persistence false\n{settings}"
        );
        std::fs::write(dir.path().join("mosquitto.conf"), common).unwrap();
        let child = Self::spawn(&dir, port);
        Self { port, dir, child }
    }

    fn spawn(dir: &TempDir, port: u16) -> Child {
        let child = Process::new("mosquitto")
            .arg("-c")
            .arg(dir.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is to be installed");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Holds it: what is sent to it lies in its sockets.
    pub fn halt(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Process::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    pub fn restart(&mut self) {
        self.child = Self::spawn(&self.dir, self.port);
    }

    /// The topics of all retained messages.
    pub async fn retained(&self) -> Vec<String> {
        let (client, mut events) =
            AsyncClient::new(MqttOptions::new("looks", "127.0.0.1", self.port), 10);
        client
            .subscribe("portarium/#", QoS::AtMostOnce)
            .await
            .unwrap();
        let mut topics = Vec::new();
        while let Ok(event) = timeout(Duration::from_millis(200), events.poll()).await {
            if let Event::Incoming(Incoming::Publish(publish)) = event.unwrap() {
                topics.push(String::from_utf8(publish.topic.to_vec()).unwrap());
            }
        }
        topics
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A robot that does nothing by itself.
pub struct Robot {
    tenant: String,
    id: String,
    client: AsyncClient,
    commands: Mutex<mpsc::UnboundedReceiver<Value>>,
    cancels: Mutex<mpsc::UnboundedReceiver<Value>>,
    subscribed: mpsc::UnboundedReceiver<()>,
    task: JoinHandle<()>,
}

impl Robot {
    pub async fn start(port: u16, id: &str) -> Self {
        Self::start_in(port, "t1", id).await
    }

    pub async fn start_in(port: u16, tenant: &str, id: &str) -> Self {
        Self::with_transport(port, tenant, id, rumqttc::Transport::tcp()).await
    }

    pub async fn with_transport(
        port: u16,
        tenant: &str,
        id: &str,
        transport: rumqttc::Transport,
    ) -> Self {
        let mut options = Self::options(port, tenant, id);
        options.set_transport(transport);
        Self::with(options, tenant, id).await
    }

    /// Without TLS, with presence and last will, for [`Robot::with`].
    pub fn options(port: u16, tenant: &str, id: &str) -> MqttOptions {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        let offline = presence("offline");
        let topic = format!("portarium/{tenant}/robots/{id}/presence");
        options.set_last_will(LastWill::new(topic, offline, QoS::AtLeastOnce, true, None));
        let mut network = rumqttc::NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        options.set_keep_alive(Duration::from_secs(5));
        options
    }

    pub async fn with(options: MqttOptions, tenant: &str, id: &str) -> Self {
        let (client, mut events) = AsyncClient::new(options, 10_000);
        let (command, commands) = mpsc::unbounded_channel();
        let (cancel, cancels) = mpsc::unbounded_channel();
        let (ready, mut subscribed) = mpsc::unbounded_channel();
        let filters = [
            format!("portarium/{tenant}/robots/{id}/commands/+"),
            format!("portarium/{tenant}/missions/+/cancel"),
        ];
        let subscriber = client.clone();
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                        for filter in &filters {
                            subscriber.try_subscribe(filter, QoS::AtLeastOnce).unwrap();
                        }
                    }
                    Ok(Event::Incoming(Incoming::SubAck(_))) => {
                        let _ = ready.send(());
                    }
                    Ok(Event::Incoming(Incoming::Publish(publish))) => {
                        let message = serde_json::from_slice(&publish.payload).unwrap();
                        let to = if publish.topic.ends_with(b"/cancel") {
                            &cancel
                        } else {
                            &command
                        };
                        let _ = to.send(message);
                    }
                    Ok(_) => {}
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        });
        for _ in 0..2 {
            timeout(PATIENCE, subscribed.recv())
                .await
                .expect("the robot's subscriptions");
        }
        Self {
            tenant: tenant.to_owned(),
            id: id.to_owned(),
            client,
            commands: Mutex::new(commands),
            cancels: Mutex::new(cancels),
            subscribed,
            task,
        }
    }

    pub async fn reconnected(&mut self) {
        for _ in 0..2 {
            timeout(PATIENCE, self.subscribed.recv())
                .await
                .expect("the robot's return");
        }
    }

    pub async fn next_command(&self) -> Value {
        let next = async { self.commands.lock().await.recv().await };
        timeout(PATIENCE, next).await.expect("a command").unwrap()
    }

    pub async fn next_cancel(&self) -> Value {
        let next = async { self.cancels.lock().await.recv().await };
        timeout(PATIENCE, next).await.expect("a cancel").unwrap()
    }

    pub async fn commands_until(&self, last: &str) -> Vec<String> {
        let mut heard = Vec::new();
        while heard.last().is_none_or(|m| m != last) {
            let command = self.next_command().await;
            heard.push(command["payload"]["missionId"].as_str().unwrap().to_owned());
        }
        heard
    }

    pub async fn report(&self, mission: &str, status: &str) {
        let Self { tenant, id, .. } = self;
        self.publish(
            format!("portarium/{tenant}/robots/{id}/missions/{mission}/status"),
            status,
        )
        .await;
    }

    pub async fn report_shared(&self, mission: &str, status: &str) {
        let tenant = &self.tenant;
        self.publish(
            format!("portarium/{tenant}/missions/{mission}/status"),
            status,
        )
        .await;
    }

    async fn publish(&self, topic: String, status: &str) {
        let message = json!({"schemaVersion": 1, "sentAt": "2026-01-01T00:00:00Z",
            "payload": {"status": status, "action_execution_id": "e", "observed_at": "now"}});
        self.client
            .publish(topic, QoS::AtLeastOnce, true, message.to_string())
            .await
            .unwrap();
    }

    pub async fn online(&self) {
        let Self { tenant, id, .. } = self;
        let topic = format!("portarium/{tenant}/robots/{id}/presence");
        self.client
            .publish(topic, QoS::AtLeastOnce, true, presence("online"))
            .await
            .unwrap();
    }

    /// Carries out every mission at once, and no stop.
    async fn obey(self: Arc<Self>) {
        loop {
            let heard = self.next_command().await;
            let mission = heard["payload"]["missionId"].as_str().unwrap().to_owned();
            if heard["payload"]["actionType"] == ActionType::ExecuteAction.as_str() {
                self.report(&mission, "executing").await;
                self.report(&mission, "succeeded").await;
            }
        }
    }

    /// Ends the connection without taking leave, so that the last will speaks.
    pub fn die(&self) {
        self.task.abort();
    }
}

impl Drop for Robot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn presence(state: &str) -> String {
    json!({"schemaVersion": 1, "sentAt": "x", "payload": {"state": state}}).to_string()
}

/// An adapter with the engine's end of its updates.
pub struct Gateway {
    pub adapter: Arc<MqttAdapter>,
    pub updates: mpsc::Receiver<Update>,
    link_down: bool,
}

impl Gateway {
    pub async fn start(port: u16) -> Self {
        Self::with(port, 1_024, None).await
    }

    /// With one robot `r1` of tenant `t1`, connected.
    pub async fn with(port: u16, updates: usize, plaintext_lease: Option<Duration>) -> Self {
        Self::from(
            MqttConfig {
                broker: Broker {
                    host: "127.0.0.1".into(),
                    port,
                },
                tls: None,
                plaintext_lease,
                client_id_base: "portarium.robotics:gateway".into(),
                robots: vec![robot("r1", "t1")],
                shared_status_topic: true,
            },
            updates,
        )
        .await
    }

    pub async fn from(config: MqttConfig, updates: usize) -> Self {
        let gateway = Self::launch(config, updates);
        until("both connections", async || {
            let stats = gateway.adapter.stats();
            stats.commands.connected && stats.stops.connected
        })
        .await;
        gateway
    }

    /// Without waiting for the broker.
    pub fn launch(config: MqttConfig, updates: usize) -> Self {
        let (sender, updates) = mpsc::channel(updates);
        let adapter = MqttAdapter::start(config, sender).unwrap();
        Self {
            adapter,
            updates,
            link_down: false,
        }
    }

    /// One mission and one stop after the other, each to its end, until that is enough. Fails
    /// if a command, a stop or a status is lost. Returns how many there were.
    pub async fn carry_missions(
        &mut self,
        robot: &Arc<Robot>,
        enough: impl Fn(&MqttStats) -> bool,
    ) -> usize {
        let answering = tokio::spawn(Arc::clone(robot).obey());
        let mut missions = 0;
        while !enough(&self.adapter.stats()) {
            let mission = format!("m{missions}");
            let sent = self
                .adapter
                .dispatch(command("r1", &mission), PATIENCE)
                .await;
            assert_eq!(sent, Ok(Handover::Sent));
            let stopped = self.adapter.stop(stop("r1", &format!("s{missions}"))).await;
            assert_eq!(stopped, Ok(StopAnswer::Requested));
            for expected in [MissionStatus::Executing, MissionStatus::Succeeded] {
                self.until_report(&mission, expected).await;
            }
            self.adapter.settle(&command("r1", &mission));
            missions += 1;
            sleep(Duration::from_millis(2)).await;
        }
        answering.abort();
        missions
    }

    /// A new subscription brings retained statuses once more; they are passed over.
    async fn until_report(&mut self, mission: &str, status: MissionStatus) {
        loop {
            let report = self.next_report().await;
            if report.mission.as_str() == mission && report.status == status {
                return;
            }
        }
    }

    async fn next_update(&mut self) -> Update {
        timeout(PATIENCE, self.updates.recv())
            .await
            .expect("an update")
            .unwrap()
    }

    pub async fn next_report(&mut self) -> Report {
        loop {
            match self.next_update().await {
                Update::Report(report) => return report,
                Update::Link { link, .. } => {
                    self.link_down |= link != portarium_protocols::adapter::Link::Up;
                }
                Update::Disbelieved(said) => panic!("{said:?}"),
            }
        }
    }

    pub async fn until_link(&mut self, up: bool) {
        loop {
            if let Update::Link { link, .. } = self.next_update().await
                && (link == portarium_protocols::adapter::Link::Up) == up
            {
                return;
            }
        }
    }

    pub fn saw_link_down(&self) -> bool {
        self.link_down
    }
}

pub fn robot(id: &str, tenant: &str) -> MqttRobot {
    MqttRobot {
        robot_id: id.parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        fleet: None,
        gateway_id: "gw".into(),
    }
}

pub fn command(robot: &str, mission: &str) -> Arc<Command> {
    Arc::new(Command {
        mission_id: mission.parse().unwrap(),
        correlation_id: "c".into(),
        plan_effect_idempotency_key: format!("plan-{mission}"),
        robot_id: robot.parse().unwrap(),
        fleet_id: None,
        action_type: ActionType::ExecuteAction,
        action_name: "navigate_to".into(),
        parameters: BTreeMap::from([("x".into(), "1".into()), ("y".into(), "2".into())]),
        idempotency_key: format!("key-{mission}"),
        supports_preemption: true,
        bypass_tier_evaluation: false,
        completion_mode: CompletionMode::Auto,
        requires_operator_confirmation: false,
        requested_at: "2026-01-01T00:00:00Z".into(),
    })
}

pub fn stop(robot: &str, mission: &str) -> Arc<Command> {
    let mut stop = Command::clone(&command(robot, mission));
    stop.action_type = ActionType::Stop;
    stop.bypass_tier_evaluation = true;
    Arc::new(stop)
}
