'use strict';
// usage: node rotations.js TARGET SVID_DIR PROTO_FILE ROTATIONS ROBOT…
//
// Drives each robot with missions, one after the other, while the SVID rotates so many times:
// every fifth is cancelled, the others have to succeed. Prints what happened as one JSON object.

const fs = require('node:fs');
const path = require('node:path');
const { EventEmitter } = require('node:events');
const { randomUUID } = require('node:crypto');
const { GatewayClient } = require('./gateway_client');
const { listServices, refusalOf } = require('./reflection');

const TERMINAL = ['Succeeded', 'Failed', 'Cancelled'];
const MISSION_LIMIT_MS = 60_000;

const [target, dir, protoFile, rotations, ...robots] = process.argv.slice(2);
const client = new GatewayClient(target, dir, protoFile);
const seen = { calls: 0, failed: [], dispatched: 0, succeeded: 0, cancelled: 0, updates: 0, streams: 0 };
const missions = new Map();
const changes = new EventEmitter().setMaxListeners(0);

async function call(method, request) {
  seen.calls += 1;
  try {
    return await client.call(method, request);
  } catch (error) {
    seen.failed.push(`${method}: ${error.message}`);
    throw error;
  }
}

async function watch(begun) {
  let last = 0n;
  const opened = () => {
    seen.streams += 1;
    begun();
  };
  for await (const update of client.watch({ from_now: true }, opened)) {
    const position = BigInt(update.position);
    if (position <= last) seen.failed.push(`position ${position} came after ${last}`);
    last = position;
    seen.updates += 1;
    missions.set(update.mission_id, update.status);
    changes.emit('change');
  }
}

/** Waits until the watch has told one of these statuses, and returns it. */
function reached(missionId, statuses) {
  return new Promise((resolve, reject) => {
    const look = () => {
      const status = missions.get(missionId);
      if (!statuses.includes(status) && !TERMINAL.includes(status)) return;
      changes.off('change', look);
      clearTimeout(limit);
      resolve(status);
    };
    const limit = setTimeout(() => {
      changes.off('change', look);
      reject(new Error(`mission ${missionId} is still ${missions.get(missionId)}`));
    }, MISSION_LIMIT_MS);
    changes.on('change', look);
    look();
  });
}

async function mission(robotId, cancelled) {
  const missionId = randomUUID();
  const answer = await call('DispatchMission', {
    mission_id: missionId,
    correlation_id: randomUUID(),
    plan_effect_idempotency_key: randomUUID(),
    robot_id: robotId,
    action_type: 'robot:execute_action',
    action_name: 'navigate_to',
    parameters: { fields: { x: '4.5', duration: cancelled ? '60' : '0.1' } },
    idempotency_key: randomUUID(),
    supports_preemption: true,
    completion_mode: 'Auto',
    requested_at: new Date().toISOString(),
  });
  if (answer.status !== 'DISPATCH_STATUS_DISPATCHED') throw new Error(JSON.stringify(answer));
  seen.dispatched += 1;
  if (cancelled) {
    await reached(missionId, ['Executing']);
    const cancel = await call('CancelMission', { mission_id: missionId, reason: 'a test' });
    if (!cancel.accepted) throw new Error(JSON.stringify(cancel));
  }
  const told = await reached(missionId, TERMINAL);
  const { status } = await call('GetMissionStatus', { mission_id: missionId });
  const expected = cancelled ? 'Cancelled' : 'Succeeded';
  if (told !== expected || status !== expected) {
    throw new Error(`mission ${missionId} came to ${told}, ${status}; expected ${expected}`);
  }
  seen[cancelled ? 'cancelled' : 'succeeded'] += 1;
}

/** The generations that DIR has pointed to. */
function countGenerations() {
  const generations = new Set();
  const look = () => generations.add(fs.readlinkSync(path.join(dir, '..current')));
  look();
  fs.watch(dir, look).unref();
  return generations;
}

async function main() {
  const generations = countGenerations();
  await new Promise((begun) => {
    watch(begun).catch((error) => {
      seen.failed.push(`watch: ${error.message}`);
      begun();
    });
  });
  const drive = async (robot) => {
    for (let n = 1; generations.size <= Number(rotations); n += 1) await mission(robot, n % 5 === 0);
  };
  await Promise.all(robots.map(drive));
  seen.rotations = generations.size - 1;
  seen.services = await listServices(target, dir);
  const port = target.split(':').pop();
  seen.wrong_host_name = await refusalOf(`127.0.0.1:${port}`, dir);
}

main()
  .catch((error) => seen.failed.push(error.message))
  .finally(() => {
    process.stdout.write(`${JSON.stringify(seen)}\n`, () => process.exit(seen.failed.length && 1));
  });
