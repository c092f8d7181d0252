'use strict';
// A client of the gateway whose SVID comes from `portarium-gateway svid write --dir DIR`.
//
// gRPC for Node reads key and certificate once, when a channel is made. So a channel lasts as
// long as its SVID: whenever the files change, new calls go over a new channel, and the old one is
// closed when the last call on it must have ended.

const fs = require('node:fs');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const CALL_LIMIT_MS = 10_000;
const PAUSE_MS = 200;

class GatewayClient {
  #target;
  #dir;
  #Service;
  #client;
  #generation;
  #watcher;

  /** `target` is HOST:PORT; the gateway's certificate must carry that host name. */
  constructor(target, dir, protoFile) {
    const options = { keepCase: true, enums: String, longs: String, defaults: true };
    const definition = protoLoader.loadSync(protoFile, options);
    this.#Service = grpc.loadPackageDefinition(definition).portarium.robotics.v1.MissionService;
    this.#target = target;
    this.#dir = dir;
    this.#watcher = fs.watch(dir, () => this.#renew());
    this.#renew();
  }

  /** One call, for example `call('DispatchMission', {…})`. */
  call(method, request) {
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + CALL_LIMIT_MS;
      const answered = (error, answer) => (error ? reject(error) : resolve(answer));
      this.#client[method](request, { deadline }, answered);
    });
  }

  /**
   * Every update of the missions selected, none missed and none twice. A stream ends with the
   * certificates of its connection at the latest; the next one begins where it ended. `opened`
   * is called for each.
   */
  async *watch(selected, opened = () => {}) {
    let request = selected;
    for (;;) {
      const stream = this.#client.WatchMissions(request);
      const resumeAfter = (position) => {
        request = { ...selected, from_now: false, after_position: position };
      };
      // Where it begins, so that it can be resumed even before its first update.
      stream.once('metadata', (head) => {
        resumeAfter(head.get('portarium-position')[0]);
        opened();
      });
      try {
        for await (const update of stream) {
          resumeAfter(update.position);
          yield update;
        }
      } catch (error) {
        if (!isPassing(error)) throw error;
      } finally {
        stream.cancel();
      }
      await sleep(PAUSE_MS);
    }
  }

  close() {
    this.#watcher.close();
    this.#client.close();
  }

  #renew() {
    // `..current` is resolved once, so that the three files are of one generation.
    const generation = fs.realpathSync(path.join(this.#dir, '..current'));
    if (generation === this.#generation) return;
    // The generation before stays as well, so that there is time to read this one.
    const read = (name) => fs.readFileSync(path.join(generation, name));
    const [bundle, key, cert] = ['bundle.pem', 'key.pem', 'svid.pem'].map(read);

    const old = this.#client;
    this.#client = new this.#Service(this.#target, grpc.credentials.createSsl(bundle, key, cert));
    this.#generation = generation;
    if (old) setTimeout(() => old.close(), CALL_LIMIT_MS).unref();
  }
}

/** Whether the same request may well succeed on another connection. */
function isPassing(error) {
  const { UNAVAILABLE, CANCELLED, UNKNOWN, INTERNAL } = grpc.status;
  return [UNAVAILABLE, CANCELLED, UNKNOWN, INTERNAL].includes(error.code);
}

module.exports = { GatewayClient };
