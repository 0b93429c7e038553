// Snapshots and recordings, kept as files on the viewer's side.

export function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `toon-${new Date().toISOString().replace(/[:.]/g, "-")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const KINDS = ["video/mp4;codecs=avc1,opus", "video/webm;codecs=vp8,opus", "video/webm", "video/mp4"];

export class Recording {
  #recorder;

  constructor(stream, ended) {
    const mimeType = KINDS.find((kind) => MediaRecorder.isTypeSupported(kind));
    const parts = [];
    this.#recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    this.#recorder.addEventListener("dataavailable", ({ data }) => parts.push(data));
    this.#recorder.addEventListener("stop", () => {
      const type = this.#recorder.mimeType.split(";")[0] || "video/webm";
      if (parts.length) save(new Blob(parts, { type }), type.split("/")[1]);
      ended();
    });
    this.#recorder.start(1000);
  }

  stop() {
    if (this.#recorder.state !== "inactive") this.#recorder.stop();
  }
}
