//! The simulated robot as a process: steered, killed, and its log read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use portarium_gateway::dev::{
    broker::{Access, Broker, Limits},
    robot::{ExecutionLog, LogEvent},
};
use portarium_protocols::grpc::pb::{self, mission_service_client::MissionServiceClient};
use rumqttc::v5::{
    AsyncClient, Event, MqttOptions,
    mqttbytes::{QoS, v5::Packet},
};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    async fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sim-robot"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self {
            child,
            input,
            output,
        };
        assert_eq!(process.line().await, "ready");
        process
    }

    async fn line(&mut self) -> String {
        timeout(PATIENCE, self.output.next_line())
            .await
            .expect("a line")
            .unwrap()
            .expect("alive")
    }

    async fn tell(&mut self, command: &str) -> String {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
        self.line().await
    }
}

/// The statuses and presences that arrive, as JSON text, and a way to command.
async fn control(broker: &Broker) -> (AsyncClient, mpsc::Receiver<String>) {
    let mut options = MqttOptions::new("control", "127.0.0.1", broker.local_addr().port());
    options.set_outgoing_inflight_upper_limit(50);
    let (client, mut events) = AsyncClient::new(options, 10);
    client
        .subscribe("portarium/t/#", QoS::AtLeastOnce)
        .await
        .unwrap();
    let (sender, heard) = mpsc::channel(1000);
    tokio::spawn(async move {
        while let Ok(event) = events.poll().await {
            if let Event::Incoming(Packet::Publish(publish)) = event {
                let _ = sender
                    .send(String::from_utf8(publish.payload.to_vec()).unwrap())
                    .await;
            }
        }
    });
    (client, heard)
}

async fn hear(heard: &mut mpsc::Receiver<String>, word: &str) {
    while !timeout(PATIENCE, heard.recv())
        .await
        .expect(word)
        .unwrap()
        .contains(word)
    {}
}

async fn dispatch(client: &AsyncClient, robot: &str, mission: &str, duration: &str) {
    let message = serde_json::json!({
        "schemaVersion": 1, "sentAt": "", "payload": {
            "missionId": mission, "robotId": robot, "actionType": "robot:execute_action",
            "actionName": "spin", "idempotencyKey": mission, "parameters": {"duration": duration},
        },
    });
    let topic = format!("portarium/t/robots/{robot}/commands/{mission}");
    client
        .publish(topic, QoS::AtLeastOnce, false, message.to_string())
        .await
        .unwrap();
}

async fn broker() -> Broker {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Broker::start(listener, Access::Open, Limits::default()).unwrap()
}

fn events(log: &Path) -> Vec<LogEvent> {
    ExecutionLog::read(log)
        .unwrap()
        .into_iter()
        .map(|entry| entry.event)
        .collect()
}

#[tokio::test]
async fn a_robot_that_is_killed_leaves_a_log_of_what_it_did_and_its_will() {
    let broker = broker().await;
    let (client, mut heard) = control(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let address = broker.local_addr().to_string();
    let arguments = [
        "mqtt",
        "--plaintext",
        "--broker",
        &address,
        "--tenant",
        "t",
        "--robot",
        "r",
        "--will-delay",
        "0",
        "--log",
        log.to_str().unwrap(),
    ];
    let mut first = Process::start(&arguments).await;
    hear(&mut heard, "online").await;
    dispatch(&client, "r", "m", "60").await;
    hear(&mut heard, "executing").await;
    first.child.kill().await.unwrap();
    hear(&mut heard, "offline").await;
    assert_eq!(events(&log), [LogEvent::MotionStart]);
    // One that begins anew remembers nothing, and appends to the same log.
    let mut second = Process::start(&arguments).await;
    dispatch(&client, "r", "m", "0").await;
    hear(&mut heard, "succeeded").await;
    assert_eq!(
        events(&log),
        [
            LogEvent::MotionStart,
            LogEvent::MotionStart,
            LogEvent::MotionEnd
        ]
    );
    drop(second.input);
    assert!(
        timeout(PATIENCE, second.child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    hear(&mut heard, "offline").await;
}

#[tokio::test]
async fn robots_are_steered_by_lines_one_by_one_or_together() {
    let broker = broker().await;
    let (client, mut heard) = control(&broker).await;
    let address = broker.local_addr().to_string();
    let mut process = Process::start(&[
        "mqtt",
        "--plaintext",
        "--broker",
        &address,
        "--tenant",
        "t",
        "--robot",
        "r",
        "--robots",
        "5",
        "--connections",
        "2",
        "--own-topics",
    ])
    .await;
    assert_eq!(process.tell("behaviour refuse r-1").await, "ok");
    dispatch(&client, "r-1", "a", "0").await;
    hear(&mut heard, "told to refuse").await;
    dispatch(&client, "r-4", "b", "0").await;
    hear(&mut heard, "succeeded").await;
    for command in [
        "vanish",
        "return",
        "forget",
        "duration 0.1",
        "behaviour normal",
    ] {
        assert_eq!(process.tell(command).await, "ok", "{command}");
    }
    for nonsense in [
        "",
        "dance",
        "behaviour",
        "behaviour odd",
        "vanish r-9",
        "vanish r-1 x",
        "duration -1",
    ] {
        assert!(
            process.tell(nonsense).await.starts_with("error: "),
            "{nonsense}"
        );
    }
}

#[tokio::test]
async fn a_grpc_robot_in_its_own_process_answers() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let _process = Process::start(&[
        "grpc",
        "--plaintext",
        "--listen",
        &free,
        "--robot",
        "r",
        "--idempotent",
    ])
    .await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{free}")).unwrap();
    let mut client = MissionServiceClient::new(endpoint.connect().await.unwrap());
    let request = pb::DispatchMissionRequest {
        mission_id: "m".into(),
        robot_id: "r".into(),
        action_type: "robot:execute_action".into(),
        idempotency_key: "k".into(),
        ..pb::DispatchMissionRequest::default()
    };
    let answer = client.dispatch_mission(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), pb::DispatchStatus::Dispatched);
}
