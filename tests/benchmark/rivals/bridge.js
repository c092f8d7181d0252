'use strict';
// The bridge as people write it in Node today: grpc-js and mqtt.js.
// No journal, no policy, no rotation: a mission is forgotten when this process ends.

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const { connect } = require('mqtt');

const text = { type: 'string' };
const { values: args } = parseArgs({
  options: { listen: text, broker: text, certificates: text, protos: text },
});
const read = (name) => fs.readFileSync(path.join(args.certificates, name));
const [ca, key, cert] = ['bundle.pem', 'key.pem', 'svid.pem'].map(read);

const definition = protoLoader.loadSync('portarium/robotics/v1/mission.proto', {
  includeDirs: [args.protos],
  keepCase: true,
  enums: String,
  defaults: true,
});
const { MissionService } = grpc.loadPackageDefinition(definition).portarium.robotics.v1;

const waiting = new Map();
const mqtt = connect(`mqtts://localhost:${args.broker}`, {
  ...{ ca, key, cert },
  protocolVersion: 5,
  clientId: 'node-bridge',
});

function dispatchMission({ request }, answer) {
  const { mission_id, robot_id } = request;
  waiting.set(mission_id, () =>
    answer(null, { status: 'DISPATCH_STATUS_DISPATCHED', mission_id }),
  );
  const topic = `portarium/node/robots/${robot_id}/commands/${mission_id}`;
  mqtt.publish(topic, command(request), { qos: 1 });
}

function command(mission) {
  return JSON.stringify({
    schemaVersion: 1,
    sentAt: '2026-01-01T00:00:00.000Z',
    payload: {
      missionId: mission.mission_id,
      correlationId: mission.correlation_id,
      planEffectIdempotencyKey: mission.plan_effect_idempotency_key,
      robotId: mission.robot_id,
      fleetId: mission.fleet_id,
      gatewayId: 'node',
      actionType: mission.action_type,
      actionName: mission.action_name,
      parameters: mission.parameters.fields,
      idempotencyKey: mission.idempotency_key,
      supportsPreemption: mission.supports_preemption,
      bypassTierEvaluation: mission.bypass_tier_evaluation,
      completionMode: mission.completion_mode,
      requiresOperatorConfirmation: mission.requires_operator_confirmation,
      requestedAt: mission.requested_at,
    },
  });
}

mqtt.on('message', (topic, payload) => {
  if (payload.length === 0) return; // It clears a retained status.
  if (JSON.parse(payload).payload.status !== 'succeeded') return;
  const mission = topic.split('/')[5];
  waiting.get(mission)?.();
  waiting.delete(mission);
});

mqtt.once('connect', async () => {
  mqtt.stream.setNoDelay(true);
  await mqtt.subscribeAsync('portarium/node/robots/+/missions/+/status', { qos: 1 });
  const server = new grpc.Server();
  server.addService(MissionService.service, { DispatchMission: dispatchMission });
  const pair = { private_key: key, cert_chain: cert };
  const credentials = grpc.ServerCredentials.createSsl(ca, [pair], true);
  server.bindAsync(`127.0.0.1:${args.listen}`, credentials, (error) => {
    if (error) throw error;
    console.log('ready');
  });
});
