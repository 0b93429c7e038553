// What the server tells of a session, in words and in tables: what happened, where the time goes, what was dropped.

const $ = (id) => document.getElementById(id);
const SHOWN = 4; // events
const SPOKEN = ["refused", "promise", "source"]; // kinds that somebody should not miss
const HINT = $("lora-hint").textContent;
const NAMES = {
  displayed: "from camera to screen, of each frame",
  latency: "at the server: from capture to the network",
  playout: "waits to be shown evenly",
  window: "waits for later frames",
  input: "waits to be drawn",
  turn: "waits for other sessions",
};

export class News {
  #told = -Infinity;
  #say;

  constructor(say) {
    this.#say = say;
  }

  /** A session begins: nothing has happened in it yet. */
  reset() {
    this.#told = -Infinity;
    $("events").replaceChildren();
    $("figures").hidden = true;
    this.asked();
  }

  /** Another LoRA is asked for: what was said of the one before no longer counts. */
  asked() {
    $("lora-hint").textContent = HINT;
    $("lora-hint").className = "";
  }

  /** `displayed`: p50, p95 and p99 of what was seen here, or null. */
  show(server, displayed) {
    const events = server.core?.events || [];
    for (const event of events.filter(({ at }) => at > this.#told)) {
      this.#told = event.at;
      if (SPOKEN.includes(event.kind)) this.#say(event.message);
      if (event.kind === "refused" && event.message.includes("LoRA")) {
        $("lora-hint").textContent = event.message;
        $("lora-hint").className = "refused";
      } else if (event.kind === "loras") this.asked();
    }
    const latest = events.slice(-SHOWN).reverse();
    if ($("events").dataset.latest !== String(latest[0]?.at)) { // a screen reader would read it again and again
      $("events").dataset.latest = String(latest[0]?.at);
      $("events").replaceChildren(...latest.map(({ kind, message }) =>
        Object.assign(document.createElement("li"), { textContent: message, className: kind })));
    }
    this.#times(server, displayed || {});
  }

  #times({ latency_ms, stages_ms = {}, waits_ms = {}, dropped = {} }, displayed) {
    $("figures").hidden = false;
    const rows = [
      [NAMES.displayed, displayed],
      [NAMES.latency, latency_ms],
      ...Object.entries(stages_ms),
      ...Object.entries(waits_ms).map(([name, parts]) => [NAMES[name] || `waits for ${name}`, parts]),
    ];
    $("times").replaceChildren(...rows.map(([name, parts]) => {
      const row = document.createElement("tr");
      row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: name }));
      for (const part of ["p50", "p95", "p99"]) {
        const value = parts[part];
        row.insertCell().textContent = Number.isFinite(value) ? value.toFixed(value < 10 ? 1 : 0) : "–";
      }
      return row;
    }));
    const drops = Object.entries(dropped).flatMap(([place, reasons]) =>
      Object.entries(reasons).map(([reason, count]) => `${count} at ${place} (${reason})`));
    $("dropped").textContent = drops.length ? `Frames left out: ${drops.join(", ")}` : "No frame was left out.";
  }
}
