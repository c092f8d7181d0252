"""The bridge as people write it in Python today: asyncio, grpcio and aiomqtt.

No journal, no policy, no rotation: a mission is forgotten when this process ends.
"""

import argparse
import asyncio
import json
import socket
import ssl
import sys
from pathlib import Path

import aiomqtt
import grpc

ARGUMENTS = argparse.ArgumentParser()
ARGUMENTS.add_argument("--listen", type=int, required=True)
ARGUMENTS.add_argument("--broker", type=int, required=True)
ARGUMENTS.add_argument("--certificates", type=Path, required=True)
ARGUMENTS.add_argument("--protos", required=True)
ARGS = ARGUMENTS.parse_args()

# Compiled as it is imported, by grpcio-tools.
sys.path.append(ARGS.protos)
PROTOS, SERVICES = grpc.protos_and_services("portarium/robotics/v1/mission.proto")


class Bridge(SERVICES.MissionServiceServicer):
    def __init__(self, mqtt):
        self.mqtt = mqtt
        self.waiting = {}

    async def DispatchMission(self, request, context):
        ended = asyncio.get_running_loop().create_future()
        self.waiting[request.mission_id] = ended
        topic = f"portarium/python/robots/{request.robot_id}/commands/{request.mission_id}"
        await self.mqtt.publish(topic, command(request), qos=1)
        await ended
        return PROTOS.DispatchMissionResponse(
            status=PROTOS.DISPATCH_STATUS_DISPATCHED, mission_id=request.mission_id
        )

    async def listen(self):
        await self.mqtt.subscribe("portarium/python/robots/+/missions/+/status", qos=1)
        async for message in self.mqtt.messages:
            if not message.payload:
                continue  # It clears a retained status.
            if json.loads(message.payload)["payload"]["status"] == "succeeded":
                ended = self.waiting.pop(message.topic.value.split("/")[5], None)
                if ended and not ended.done():
                    ended.set_result(None)


def command(mission):
    return json.dumps(
        {
            "schemaVersion": 1,
            "sentAt": "2026-01-01T00:00:00.000Z",
            "payload": {
                "missionId": mission.mission_id,
                "correlationId": mission.correlation_id,
                "planEffectIdempotencyKey": mission.plan_effect_idempotency_key,
                "robotId": mission.robot_id,
                "fleetId": mission.fleet_id,
                "gatewayId": "python",
                "actionType": mission.action_type,
                "actionName": mission.action_name,
                "parameters": dict(mission.parameters.fields),
                "idempotencyKey": mission.idempotency_key,
                "supportsPreemption": mission.supports_preemption,
                "bypassTierEvaluation": mission.bypass_tier_evaluation,
                "completionMode": mission.completion_mode,
                "requiresOperatorConfirmation": mission.requires_operator_confirmation,
                "requestedAt": mission.requested_at,
            },
        }
    )


def pem(name):
    return (ARGS.certificates / name).read_bytes()


async def main():
    tls = ssl.create_default_context(cafile=ARGS.certificates / "bundle.pem")
    tls.load_cert_chain(ARGS.certificates / "svid.pem", ARGS.certificates / "key.pem")
    mqtt = aiomqtt.Client(
        "localhost",
        ARGS.broker,
        identifier="python-bridge",
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=tls,
        max_inflight_messages=1000,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )
    credentials = grpc.ssl_server_credentials(
        [(pem("key.pem"), pem("svid.pem"))], pem("bundle.pem"), require_client_auth=True
    )
    # The callers ping every 2 s.
    server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 1000)])
    async with mqtt:
        bridge = Bridge(mqtt)
        SERVICES.add_MissionServiceServicer_to_server(bridge, server)
        server.add_secure_port(f"127.0.0.1:{ARGS.listen}", credentials)
        await server.start()
        print("ready", flush=True)
        await bridge.listen()


asyncio.run(main())
