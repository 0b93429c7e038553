// What the viewer sees, in numbers: frames shown per second, and the way from camera to screen in its stages.

export class Meter {
  #times = [];
  #before = {};

  reset() {
    this.#times = [];
    this.#before = {};
  }

  /** A frame came onto the screen. */
  shown() {
    this.#times.push(performance.now());
  }

  /** Milliseconds per item since the last reading, of a sum of seconds and a count of items. */
  #per(name, seconds, count) {
    const [secondsBefore, countBefore] = this.#before[name] || [0, 0];
    this.#before[name] = [seconds, count];
    return count > countBefore ? (1000 * (seconds - secondsBefore)) / (count - countBefore) : NaN;
  }

  async read(peer, server) {
    const now = performance.now();
    this.#times = this.#times.filter((time) => time > now - 2000);
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
    return {
      fps: this.#times.length / 2,
      latency: !server || Number.isFinite(stages.drawing) ? known.reduce((sum, [, value]) => sum + value, 0) : NaN,
      stages: text.join(" · "),
    };
  }
}
