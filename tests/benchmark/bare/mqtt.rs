//! To robots behind a broker.

use super::{Southbound, Waiting};
use portarium_protocols::grpc::pb;
use rumqttc::{
    NetworkOptions, TlsConfiguration, Transport,
    v5::{
        AsyncClient, Event, EventLoop, MqttOptions,
        mqttbytes::{QoS, v5::Packet},
    },
};
use rustls::ClientConfig;
use std::sync::Arc;

/// Which broker, and whose robots: of a tenant of its own, so that nobody hears of another side's
/// missions.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Broker {
    #[arg(long)]
    broker: u16,
    #[arg(long)]
    tenant: String,
}

pub(super) struct Robots {
    tenant: String,
    mqtt: AsyncClient,
    waiting: Waiting,
}

impl Southbound for Robots {
    async fn carry(&self, mission: &pb::DispatchMissionRequest) {
        let ended = self.waiting.wait(mission);
        let topic = format!(
            "portarium/{}/robots/{}/commands/{}",
            self.tenant, mission.robot_id, mission.mission_id
        );
        self.mqtt
            .publish(topic, QoS::AtLeastOnce, false, command(mission))
            .await
            .unwrap();
        if let Some(ended) = ended {
            ended.await.unwrap();
        }
    }
}

impl Robots {
    pub(super) async fn connect(broker: Broker, tls: ClientConfig) -> Self {
        let mut options = MqttOptions::new(&broker.tenant, "localhost", broker.broker);
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))))
            .set_outgoing_inflight_upper_limit(1000);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (mqtt, events) = AsyncClient::new(options, 1000);
        let waiting = Waiting::default();
        tokio::spawn(listen(events, waiting.clone()));
        let tenant = broker.tenant;
        let statuses = format!("portarium/{tenant}/robots/+/missions/+/status");
        mqtt.subscribe(statuses, QoS::AtLeastOnce).await.unwrap();
        Self {
            tenant,
            mqtt,
            waiting,
        }
    }
}

async fn listen(mut events: EventLoop, waiting: Waiting) {
    loop {
        let Event::Incoming(Packet::Publish(publish)) = events.poll().await.unwrap() else {
            continue;
        };
        // An empty one clears a retained status.
        let Ok(status) = serde_json::from_slice::<serde_json::Value>(&publish.payload) else {
            continue;
        };
        if status["payload"]["status"] == "succeeded" {
            let topic = std::str::from_utf8(&publish.topic).unwrap();
            let mission = topic.split('/').nth(5).unwrap();
            waiting.succeeded(mission);
        }
    }
}

/// The same command as the gateway's.
fn command(mission: &pb::DispatchMissionRequest) -> Vec<u8> {
    let parameters = mission.parameters.as_ref().map(|all| &all.fields);
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 1,
        "sentAt": "2026-01-01T00:00:00.000Z",
        "payload": {
            "missionId": mission.mission_id,
            "correlationId": mission.correlation_id,
            "planEffectIdempotencyKey": mission.plan_effect_idempotency_key,
            "robotId": mission.robot_id,
            "fleetId": mission.fleet_id,
            "gatewayId": "bare",
            "actionType": mission.action_type,
            "actionName": mission.action_name,
            "parameters": parameters,
            "idempotencyKey": mission.idempotency_key,
            "supportsPreemption": mission.supports_preemption,
            "bypassTierEvaluation": mission.bypass_tier_evaluation,
            "completionMode": mission.completion_mode,
            "requiresOperatorConfirmation": mission.requires_operator_confirmation,
            "requestedAt": mission.requested_at,
        },
    }))
    .unwrap()
}
