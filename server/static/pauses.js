// How long to wait before trying again: longer each time, up to a limit, and never all clients at once.

const FIRST = 1000; // milliseconds
const LONGEST = 15000;

export class Pauses {
  #row = 0;
  #timer = 0;

  get waiting() {
    return this.#timer !== 0;
  }

  /** Runs `action` after the next pause; gives its seconds. */
  before(action) {
    this.cancel();
    const pause = Math.min(LONGEST, FIRST * 2 ** this.#row) * (1 - 0.3 * Math.random());
    this.#row += 1;
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      action();
    }, pause);
    return pause / 1000;
  }

  /** It works: the next pause is short again. */
  reset() {
    this.cancel();
    this.#row = 0;
  }

  cancel() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }
}
