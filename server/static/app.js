// The page: camera in, toon out, and everything that can be set about it.

import { Graph } from "/static/graph.js";
import { Meter } from "/static/meter.js";
import { News } from "/static/news.js";
import { Pauses } from "/static/pauses.js";
import { save, Recording } from "/static/keep.js";
import { Connection, Refused, request } from "/static/webrtc.js";

const $ = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.hash.slice(1));
const watchKey = parameters.get("watch");
const body = document.body;

let token = parameters.get("token") || sessionStorage.getItem("token") || "";
let connection = null;
let camera = null; // the local stream
let statisticsTimer = 0;
let recording = null;
let resume = ""; // the key of the session before: whoever comes back with it keeps the watch link
const pauses = new Pauses();

const graphs = {
  fps: new Graph($("fps"), { colour: "--second", least: 30 }),
  delay: new Graph($("delay"), { colour: "--accent", least: 200 }),
};

// ---- saying things

function state(name, text) {
  body.dataset.state = name;
  $("status").textContent = text;
  const live = name === "live";
  $("toggle").textContent = name === "idle" ? "Start" : "Stop";
  if (live) pauses.reset();
  $("snapshot").disabled = !live;
  $("record").disabled = !live || !window.MediaRecorder;
}

let toastTimer = 0;
function say(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 7000);
}

const CAMERA_PROBLEMS = {
  NotAllowedError: "The browser does not let this page use the camera: allow it in the address bar.",
  NotFoundError: "There is no camera, or no microphone, of this kind.",
  NotReadableError: "The camera is in use by another program.",
  OverconstrainedError: "The camera that was chosen is gone: choose another one.",
};

// ---- the token

function askForToken() {
  return new Promise((resolve) => {
    $("ask").addEventListener("close", () => resolve($("token").value.trim()), { once: true });
    $("ask").showModal();
  });
}

/** Runs `action`, and asks for the token as often as the server wants another one, unless it is `stale`. */
async function authorised(action, stale = () => false) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 401 || stale()) throw error;
      token = await askForToken();
      if (!token) throw error;
      sessionStorage.setItem("token", token);
    }
  }
}

// ---- what can be chosen

const settings = { prompt: null, style: null, steps: null, window: null, latency: null, seed: null, deflicker: null, loras: null };

async function fillCatalogue() {
  const response = await authorised(() => request("/catalogue", {
    headers: token ? { Authorization: `Bearer ${token}` } : {},
  }));
  const catalogue = await response.json();
  $("prompt").placeholder = catalogue.prompt || $("prompt").placeholder;
  const styles = [["", "as in the prompt"], ...catalogue.styles.map((name) => [name, name])];
  $("styles").replaceChildren(...styles.map(([value, text]) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "style", value });
    input.checked = value === "";
    label.append(input, Object.assign(document.createElement("span"), { textContent: text }));
    return label;
  }));
  $("lora").replaceChildren(new Option("none", ""), ...catalogue.loras.map((name) => new Option(name, name)));
  $("lora-choice").hidden = catalogue.loras.length === 0;
  const { bounds } = catalogue;
  $("steps").max = bounds.steps;
  $("window").max = bounds.window;
  const latency = $("latency");
  latency.min = latency.step * Math.max(1, Math.ceil((bounds.latency * 1000) / latency.step));
  latency.max = Math.max(latency.max, catalogue.latency * 1000);
  $("steps").value = catalogue.steps;
  $("window").value = catalogue.window;
  latency.value = Math.round(catalogue.latency * 1000);
  $("deflicker").checked = catalogue.deflicker;
  showValues();
}

function showValues() {
  $("steps-value").textContent = $("steps").value;
  $("window-value").textContent = `${$("window").value} frames`;
  $("latency-value").textContent = `${$("latency").value} ms`;
  $("weight-value").textContent = $("weight").value;
  $("lora-strength").hidden = $("lora").value === "";
}

let settingsTimer = 0;
function changed({ target }) {
  showValues();
  if (target.name === "lora") news.asked();
  if (["lora", "weight"].includes(target.name)) {
    settings.loras = $("lora").value ? { [$("lora").value]: Number($("weight").value) } : {};
  } else if (!(target.name in settings)) return;
  else if (target.name === "latency") settings.latency = Number(target.value) / 1000;
  else if (target.name === "deflicker") settings.deflicker = target.checked;
  else if (["prompt", "style"].includes(target.name)) settings[target.name] = target.value;
  else settings[target.name] = Number(target.value);
  clearTimeout(settingsTimer);
  settingsTimer = setTimeout(sendSettings, target.name === "prompt" ? 600 : 200);
}

async function sendSettings() {
  if (!connection || watchKey) return;
  try {
    await request(connection.links["urn:toonstream:settings"], {
      method: "PATCH",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(settings),
    });
  } catch (error) {
    say(error.message);
  }
}

async function fillDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) || [];
  for (const [select, kind, fallback] of [
    [$("camera"), "videoinput", "default camera"],
    [$("microphone"), "audioinput", "no sound"],
  ]) {
    const before = select.value;
    const found = devices.filter((device) => device.kind === kind && device.deviceId);
    select.replaceChildren(
      new Option(fallback, ""),
      ...found.map((device, index) => new Option(device.label || `${kind} ${index + 1}`, device.deviceId)),
    );
    select.value = found.some((device) => device.deviceId === before) ? before : "";
  }
}

// ---- on and off

async function openCamera() {
  if (!navigator.mediaDevices) throw new Error("Browsers give the camera to https pages and to localhost only.");
  const [video, audio] = [$("camera").value, $("microphone").value];
  return navigator.mediaDevices.getUserMedia({
    video: {
      width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 },
      ...(video ? { deviceId: { exact: video } } : { facingMode: "user" }),
    },
    audio: audio ? { deviceId: { exact: audio } } : false,
  });
}

let turn = 0; // counts what was begun and stopped: what has waited and finds another one came too late

async function start() {
  const mine = ++turn;
  const stale = () => turn !== mine;
  state(tries ? "waiting" : "starting", "Connecting…");
  try {
    if (!watchKey && !camera) {
      const opened = await openCamera();
      if (stale()) {
        release(opened);
        return;
      }
      camera = opened;
      camera.getVideoTracks()[0].addEventListener("ended", () => lost("The camera is gone: choose another one."));
      $("source").srcObject = camera;
      fillDevices();
    }
    const stream = new MediaStream();
    $("toon").muted = $("sound").getAttribute("aria-pressed") !== "true";
    const publish = resume ? `/whip?resume=${encodeURIComponent(resume)}` : "/whip";
    const endpoint = watchKey ? `/whep/${encodeURIComponent(watchKey)}` : publish;
    const opened = await authorised(() => Connection.open(endpoint, {
      token,
      prepare(peer) {
        peer.addEventListener("track", ({ track, receiver }) => {
          if (stale()) return;
          stream.addTrack(track);
          if ($("toon").srcObject !== stream) $("toon").srcObject = stream; // until now, the last picture of before
          if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
          $("toon").play().catch(() => undefined);
        });
        peer.addEventListener("connectionstatechange", () => {
          if (connection?.peer !== peer) return;
          if (peer.connectionState === "failed") again("The connection was lost");
          // It may heal by itself, or is found to have failed.
          else if (peer.connectionState === "disconnected") state("waiting", "The network is interrupted…");
        });
        if (watchKey) {
          peer.addTransceiver("video", { direction: "recvonly" });
          peer.addTransceiver("audio", { direction: "recvonly" });
        } else {
          for (const track of camera.getTracks()) {
            if (track.kind === "video") track.contentHint = "motion";
            peer.addTrack(track, camera);
          }
        }
      },
    }), stale);
    if (stale()) {
      opened.close();
      return;
    }
    connection = opened;
    const transport = opened.peer.getReceivers()[0]?.transport;
    transport?.addEventListener("statechange", () => { // the server says goodbye here, long before ICE notices
      if (transport.state !== "closed" || connection !== opened) return;
      if (watchKey) lost("It is over: the other side has ended it.");
      else measure({ over: true });
    });
    if (!watchKey) {
      resume = connection.url.split("/").pop();
      const key = connection.links["urn:toonstream:whep"].split("/").pop();
      $("link").value = `${location.origin}/#watch=${key}`;
      $("share").hidden = false;
      if (Object.values(settings).some((value) => value !== null)) sendSettings();
    }
    statisticsTimer = setInterval(() => measure(), 1000);
    state(tries ? "waiting" : "starting", "Waiting for the first picture…");
  } catch (error) {
    if (stale()) return;
    if (tries && error instanceof Refused && (error.passing || error.status === 404)) { // or nobody publishes yet
      again(error.message);
      return;
    }
    stop();
    say(CAMERA_PROBLEMS[error.name] || error.message);
  }
}

/** Lets go of the connection, but not of the camera. */
function disconnect() {
  recording?.stop();
  clearInterval(statisticsTimer);
  connection?.close();
  connection = null;
  meter.reset();
  news.reset();
  $("stages").textContent = $("delay-parts").textContent = "";
}

function release(stream) {
  stream?.getTracks().forEach((track) => track.stop());
}

function stop() {
  turn += 1;
  pauses.reset();
  tries = false;
  disconnect();
  release(camera);
  camera = null;
  $("source").srcObject = $("toon").srcObject = null;
  $("share").hidden = true;
  state("idle", "Ready");
}

let tries = false; // whether what is refused is tried again: it has worked before

/** What was there is gone: try until it is there again, or somebody presses Stop. */
function again(reason) {
  if (body.dataset.state === "idle" || pauses.waiting) return;
  disconnect();
  tries = true;
  const pause = pauses.before(start);
  state("waiting", `${reason.replace(/\.$/, "")}; again in ${Math.ceil(pause)} s…`);
}

function lost(reason) {
  if (body.dataset.state === "idle") return;
  stop();
  say(reason);
}

// ---- how it runs

const meter = new Meter();
const news = new News(say);

function countFrames() {
  const video = $("toon");
  if (!("requestVideoFrameCallback" in video)) {
    video.addEventListener("playing", () => state("live", "Live"));
    return;
  }
  const shown = (now, metadata) => {
    meter.shown(now, metadata);
    if (connection && ["starting", "waiting"].includes(body.dataset.state)) state("live", "Live");
    video.requestVideoFrameCallback(shown);
  };
  video.requestVideoFrameCallback(shown);
}

async function measure({ over = false } = {}) {
  const current = connection;
  if (!current) return;
  let server = null;
  const url = current.links["urn:toonstream:statistics"];
  if (url) {
    try {
      const asked = performance.now();
      const response = await request(url);
      const answered = performance.now();
      server = await response.json();
      if (current === connection) meter.told(server.clock, asked, answered);
    } catch (error) {
      if (current !== connection) return;
      if (error.status === 410 && !error.passing) lost(`It ended: ${error.message}.`);
      else if (error.status === 404) again("The server has started anew"); // it knows nothing of this session
      else if (error.status === 410 || over) again(error.message);
      return;
    }
  }
  const figures = await meter.read(current.peer, server, Boolean(url));
  if (current !== connection) return;
  if (server) news.show(server, figures.displayed);
  graphs.fps.add(figures.fps);
  graphs.delay.add(figures.latency);
  $("fps-value").textContent = figures.fps.toFixed(1);
  $("delay-value").textContent = Number.isFinite(figures.latency) ? Math.round(figures.latency) : "–";
  $("delay-parts").textContent = figures.displayed
    ? `(p95 ${Math.round(figures.displayed.p95)}, p99 ${Math.round(figures.displayed.p99)})`
    : "(an estimate: this browser does not say when it shows which frame)";
  $("stages").textContent = figures.stages;
}

// ---- buttons

function press(button, pressed = button.getAttribute("aria-pressed") !== "true") {
  button.setAttribute("aria-pressed", String(pressed));
  return pressed;
}

$("begin").addEventListener("click", start);
$("toggle").addEventListener("click", () => (body.dataset.state === "idle" ? start() : stop()));
$("view").addEventListener("click", () => { $("stage").dataset.view = press($("view")) ? "both" : "toon"; });
$("mirror").addEventListener("click", () => { $("stage").classList.toggle("mirrored", press($("mirror"))); });
$("sound").addEventListener("click", () => { $("toon").muted = !press($("sound")); });
$("full").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else if ($("stage").requestFullscreen) $("stage").requestFullscreen();
  else $("toon").webkitEnterFullscreen?.();
});
$("snapshot").addEventListener("click", () => {
  const video = $("toon");
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  const context = canvas.getContext("2d");
  if ($("stage").classList.contains("mirrored")) {
    context.translate(canvas.width, 0);
    context.scale(-1, 1);
  }
  context.drawImage(video, 0, 0);
  canvas.toBlob((blob) => save(blob, "png"), "image/png");
});
$("record").addEventListener("click", () => {
  if (recording) {
    recording.stop();
    return;
  }
  recording = new Recording($("toon").srcObject, () => {
    recording = null;
    press($("record"), false);
  });
  press($("record"), true);
});
$("dice").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * 1e6);
  changed({ target: $("seed") });
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("link").value);
    say("The link is copied.");
  } catch {
    $("link").select();
    say("Copy the link with your keyboard.");
  }
});
$("toon").addEventListener("resize", () => {
  $("stage").style.setProperty("--ratio", $("toon").videoWidth / $("toon").videoHeight);
});
$("settings").addEventListener("input", changed);
$("settings").addEventListener("submit", (event) => event.preventDefault());
for (const select of [$("camera"), $("microphone")]) {
  select.addEventListener("change", () => {
    if (!connection) return;
    stop();
    start();
  });
}
navigator.mediaDevices?.addEventListener?.("devicechange", fillDevices);
window.addEventListener("pagehide", stop);

// ---- begin

$("stage").classList.toggle("mirrored", !watchKey);
countFrames();
if (watchKey) {
  body.dataset.mode = "watch";
  $("headline").textContent = "Watch a toon, live";
  $("subline").textContent = "";
  $("begin").textContent = "Watch";
  $("delay-what").textContent = "ms, server to screen";
} else {
  if (parameters.has("token")) history.replaceState(null, "", location.pathname);
  fillDevices();
  fillCatalogue().catch((error) => say(error.message));
}
