// What the viewer sees, in numbers: frames shown per second, and how old each is when it is shown.
//
// The server says which RTP timestamp is now, and the browser with which one it shows a frame. Where a browser
// does not, what is known of the stages on average is added up, and said to be an estimate.

const SPAN = 10_000; // milliseconds that frames count
const RECENT = 2000; // of these, for frames per second
const ANSWERS = 10; // the quickest of so many tells best what time it is at the server
const TICKS = 90; // of RTP timestamps, a millisecond

export class Meter {
  #frames = [];
  #answers = [];
  #before = {};

  reset() {
    this.#frames = [];
    this.#answers = [];
    this.#before = {};
  }

  /** A frame came onto the screen; see requestVideoFrameCallback. */
  shown(now, { expectedDisplayTime = now, rtpTimestamp, receiveTime } = {}) {
    this.#frames.push({ at: expectedDisplayTime, rtp: rtpTimestamp, received: receiveTime });
  }

  /** The server answered which RTP timestamp is now, `after_ms` after the question had come. */
  told(clock, asked, answered) {
    if (!Number.isFinite(clock?.rtp)) return;
    const way = answered - asked - clock.after_ms;
    this.#answers.push({ way, at: answered - way / 2, rtp: clock.rtp });
    if (this.#answers.length > ANSWERS) this.#answers.shift();
  }

  /** Milliseconds from capture, as the server knows it, until each frame was shown. */
  #ages() {
    if (!this.#answers.length) return [];
    const best = this.#answers.reduce((least, each) => (each.way < least.way ? each : least));
    const told = this.#frames.filter(({ rtp }) => Number.isFinite(rtp));
    return told.map(({ at, rtp }) => at - best.at - ((rtp - best.rtp) | 0) / TICKS); // timestamps begin anew
  }

  /** Milliseconds from the network until each frame was shown. */
  #waits() {
    return this.#frames.filter(({ received }) => Number.isFinite(received)).map(({ at, received }) => at - received);
  }

  /** Milliseconds per item since the last reading, of a sum of seconds and a count of items. */
  #per(name, seconds, count) {
    const [secondsBefore, countBefore] = this.#before[name] || [0, 0];
    this.#before[name] = [seconds, count];
    return count > countBefore ? (1000 * (seconds - secondsBefore)) / (count - countBefore) : NaN;
  }

  /** `publishing`: whether the camera is here, and counts from there on; else from the server on. */
  async read(peer, server, publishing) {
    const now = performance.now();
    this.#frames = this.#frames.filter(({ at }) => at > now - SPAN);
    const stages = {};
    for (const report of (await peer.getStats()).values()) {
      if (report.type === "candidate-pair" && report.nominated) stages.network = 1000 * report.currentRoundTripTime;
      if (report.type === "outbound-rtp" && report.kind === "video") {
        stages["camera's encoder"] = this.#per("encode", report.totalEncodeTime, report.framesEncoded);
      }
      if (report.type === "inbound-rtp" && report.kind === "video") {
        stages.buffer = this.#per("buffer", report.jitterBufferDelay, report.jitterBufferEmittedCount);
        stages.decoder = this.#per("decode", report.totalDecodeTime, report.framesDecoded);
      }
    }
    if (server) stages.drawing = server.latency_ms.p50 ?? NaN;
    const known = Object.entries(stages).filter(([, value]) => Number.isFinite(value));
    const text = known.map(([name, value]) => `${name} ${value.toFixed(value < 10 ? 1 : 0)} ms`);
    if (server) {
      const plan = server.core?.plan;
      if (server.size) text.push(`${server.size.join("×")} ${server.codec}`);
      if (plan) text.push(`${plan.steps} step${plan.steps > 1 ? "s" : ""}, window ${plan.window}`);
      text.push(`${server.watchers} watching`);
    }
    // What no clock tells: the way that is the same for all, to the server or from it.
    const way = (stages.network || 0) / 2 + (publishing ? stages["camera's encoder"] || 0 : 0);
    const displayed = percentiles((publishing ? this.#ages() : this.#waits()).map((age) => age + way));
    const estimate = known.reduce((sum, [, value]) => sum + value, 0);
    return {
      fps: this.#frames.filter(({ at }) => at > now - RECENT).length / (RECENT / 1000),
      displayed,
      latency: displayed?.p50 ?? (publishing && !Number.isFinite(stages.drawing) ? NaN : estimate),
      stages: text.join(" · "),
    };
  }
}

/** p50, p95 and p99 of some values; null of none. */
function percentiles(values) {
  if (!values.length) return null;
  const sorted = values.sort((one, other) => one - other);
  const at = (part) => sorted[Math.ceil(part * sorted.length) - 1];
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) };
}
