/** Deleting with a way back: out of sight now, off the server a little later. */

import { notice } from "./notice.js";
import { say } from "./words.js";

const SECONDS = 20;

export class Deletion {
  /** The conversation that is out of sight and still on the server, if there is one. */
  id = null;

  /** attempt: runs what may fail; gone: called with the id of what will not come back. */
  constructor(api, attempt, gone) {
    this.api = api;
    this.attempt = attempt;
    this.gone = gone;
    addEventListener("pagehide", () => {
      if (this.id) api.deleteLast(this.id);
      this.id = null;
    });
  }

  /** bringBack: called if it is wanted after all. An earlier deletion must be over. */
  begin(id, title, bringBack) {
    this.id = id;
    notice(() => say("deleted", { title }), {
      seconds: SECONDS,
      action: () => say("bring_back"),
      act: () => this.attempt(async () => {
        this.id = null;
        await bringBack();
        notice(() => say("brought_back"));
      }),
      closed: () => this.attempt(() => this.#carryOut()),
    });
  }

  async #carryOut() {
    const { id } = this;
    if (!id) return;
    this.id = null;
    this.gone(id);
    await this.api.json("DELETE", `/v1/sessions/${id}`);
  }
}
