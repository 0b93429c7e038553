// A WHIP and WHEP client: one offer by POST, candidates by PATCH, goodbye by DELETE.

export class Refused extends Error {
  /** `passing`: whether it may be tried again later. */
  constructor(status, message, passing) {
    super(message);
    this.status = status;
    this.passing = passing;
  }
}

/** Throws a Refused with the server's reason where the answer is not one. */
export async function request(url, options = {}) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Refused(0, "The server cannot be reached.", true);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem.detail || response.statusText, response.headers.has("Retry-After"));
}

function links(response) {
  const found = [];
  for (const match of (response.headers.get("Link") || "").matchAll(/<([^>]+)>((?:\s*;\s*[\w-]+="(?:[^"\\]|\\.)*")*)/g)) {
    const link = { url: match[1] };
    for (const [, name, value] of match[2].matchAll(/([\w-]+)="((?:[^"\\]|\\.)*)"/g)) {
      link[name] = value.replace(/\\(.)/g, "$1");
    }
    found.push(link);
  }
  return found;
}

function iceServers(response) {
  return links(response)
    .filter((link) => link.rel === "ice-server")
    .map(({ url, username, credential }) => (username ? { urls: url, username, credential } : { urls: url }));
}

export class Connection {
  /** Connects to a WHIP or WHEP endpoint. `prepare` adds tracks or transceivers to the peer connection. */
  static async open(endpoint, { token, prepare }) {
    const authorization = token ? { Authorization: `Bearer ${token}` } : {};
    const options = await request(endpoint, { method: "OPTIONS", headers: authorization });
    const peer = new RTCPeerConnection({ iceServers: iceServers(options), bundlePolicy: "max-bundle" });
    const connection = new Connection(peer);
    try {
      prepare(peer);
      peer.addEventListener("icecandidate", ({ candidate }) => connection.#found(candidate));
      await peer.setLocalDescription(await peer.createOffer());
      const response = await request(endpoint, {
        method: "POST",
        headers: { ...authorization, "Content-Type": "application/sdp" },
        body: peer.localDescription.sdp,
      });
      connection.url = new URL(response.headers.get("Location"), response.url).href;
      connection.etag = response.headers.get("ETag");
      connection.links = Object.fromEntries(links(response).map(({ rel, url }) => [rel, url]));
      await peer.setRemoteDescription({ type: "answer", sdp: await response.text() });
      connection.#send();
    } catch (error) {
      connection.close();
      throw error;
    }
    return connection;
  }

  #candidates = [];
  #timer = 0;
  #closed = false;

  constructor(peer) {
    this.peer = peer;
    this.links = {};
  }

  #found(candidate) {
    if (candidate && !candidate.candidate) return;
    this.#candidates.push(candidate);
    if (this.url) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#send(), 20);
    }
  }

  async #send() {
    const candidates = this.#candidates.splice(0);
    if (!candidates.length || this.#closed) return;
    const user = /a=ice-ufrag:(\S+)/.exec(this.peer.localDescription.sdp)[1];
    const mid = /a=mid:(\S+)/.exec(this.peer.localDescription.sdp)[1];
    const lines = [`a=ice-ufrag:${user}`, "m=video 9 UDP/TLS/RTP/SAVPF 0", `a=mid:${mid}`];
    for (const candidate of candidates) lines.push(candidate ? `a=${candidate.candidate}` : "a=end-of-candidates");
    await fetch(this.url, {
      method: "PATCH",
      headers: { "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": this.etag },
      body: `${lines.join("\r\n")}\r\n`,
    }).catch(() => undefined); // the connection may well come about without them
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    this.peer.close();
    if (this.url) fetch(this.url, { method: "DELETE", keepalive: true }).catch(() => undefined);
  }
}
