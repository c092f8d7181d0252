'use strict';
// Server reflection by hand: gRPC for Node has a server of it, and its proto, but no client.

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const LIMIT_MS = 10_000;
const { reflection } = grpc.loadPackageDefinition(
  protoLoader.loadSync('grpc/reflection/v1/reflection.proto', {
    includeDirs: [path.join(path.dirname(require.resolve('@grpc/reflection/package.json')), 'build/proto')],
    keepCase: true,
  }),
).grpc;

function client(target, dir) {
  const read = (name) => fs.readFileSync(path.join(dir, '..current', name));
  const [bundle, key, cert] = ['bundle.pem', 'key.pem', 'svid.pem'].map(read);
  return new reflection.v1.ServerReflection(target, grpc.credentials.createSsl(bundle, key, cert));
}

/** The names of all services of a server. */
async function listServices(target, dir) {
  const reflecting = client(target, dir);
  const stream = reflecting.ServerReflectionInfo({ deadline: Date.now() + LIMIT_MS });
  stream.end({ list_services: '' });
  const names = [];
  for await (const answer of stream) {
    if (answer.error_response) throw new Error(answer.error_response.error_message);
    names.push(...answer.list_services_response.service.map((service) => service.name));
  }
  reflecting.close();
  return names.sort();
}

/** Why a call to this target fails; `null` if it does not. */
async function refusalOf(target, dir) {
  try {
    await listServices(target, dir);
    return null;
  } catch (error) {
    return error.message;
  }
}

module.exports = { listServices, refusalOf };
