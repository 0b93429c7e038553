// A line over the last minute, drawn on a canvas.

const LENGTH = 120; // samples

export class Graph {
  #values = [];

  constructor(canvas, { colour, least }) {
    this.canvas = canvas;
    this.colour = colour;
    this.least = least; // the scale reaches at least this far
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  add(value) {
    this.#values.push(value);
    if (this.#values.length > LENGTH) this.#values.shift();
    this.draw();
  }

  clear() {
    this.#values = [];
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const top = Math.max(this.least, ...this.#values.filter(Number.isFinite)) * 1.15;
    context.strokeStyle = style.getPropertyValue("--line");
    context.fillStyle = style.getPropertyValue("--soft");
    context.font = "11px system-ui, sans-serif";
    context.lineWidth = 1;
    for (const part of [0, 0.5, 1]) {
      const y = Math.round((height - 1) * (1 - part)) + 0.5;
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(width, y);
      context.stroke();
      if (part === 0.5) context.fillText(String(Math.round(top / 2)), 2, y - 4);
    }
    const step = width / (LENGTH - 1);
    const left = width - (this.#values.length - 1) * step;
    const colour = style.getPropertyValue(this.colour);
    const line = new Path2D();
    let begun = false;
    this.#values.forEach((value, index) => {
      if (!Number.isFinite(value)) {
        begun = false;
        return;
      }
      const x = left + index * step;
      const y = (height - 2) * (1 - value / top) + 1;
      if (begun) line.lineTo(x, y);
      else line.moveTo(x, y);
      begun = true;
    });
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.lineJoin = "round";
    context.stroke(line);
  }
}
