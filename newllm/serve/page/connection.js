/** Notices a server that went away, and that it is back. */

const PAUSES = [1, 1, 2, 2, 4, 8];
const CHECK_SECONDS = 10;

export class Connection {
  away = false;
  #wake = () => {};

  /** lost, found: called when the server went away, and (awaited; may throw) when it is back. */
  constructor(api, lost, found) {
    this.api = api;
    this.lost = lost;
    this.found = found;
    setInterval(() => this.check(), 1000 * CHECK_SECONDS);
  }

  /** Look whether it is there, unless that is being done or nobody looks at the page. */
  async check() {
    if (this.away || document.hidden) return;
    if (!(await this.api.alive())) this.lose();
  }

  /** It did not answer: ask until it does. */
  async lose() {
    if (this.away) return;
    this.away = true;
    this.lost();
    for (let i = 0; !(await this.#isBack()); i++) {
      const pause = PAUSES[Math.min(i, PAUSES.length - 1)];
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 1000 * pause);
      });
    }
  }

  /** Ask now. */
  retry() {
    this.#wake();
  }

  async #isBack() {
    if (!(await this.api.alive())) return false;
    this.away = false;
    await this.found();
    return true;
  }
}
