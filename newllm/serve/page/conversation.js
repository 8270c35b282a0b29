/** One conversation: what was said, what its state looked like, and the turn being written. */

import { remember } from "./picture.js";
import { addPiece, settledRuns } from "./runs.js";
import { momentIn } from "./session_file.js";

const TRIES = 50;
const PAUSE = 100;

export class Conversation {
  /** Not begun: it gets an id with the first turn. */
  id = null;
  facts = null;
  messages = [];
  /** The last moments of the context vector. */
  rows = [];
  /** How full the tables of recall are; none without recall, or before the first turn. */
  tables = [];
  tokens = 0;
  speed = null;
  /** Its file, as of the last turn: it can be put back if the server forgets it. */
  copy = null;
  #writer = null;

  get writing() {
    return this.#writer !== null;
  }

  stop() {
    this.#writer?.abort();
  }

  /** Take over what the server says of it. */
  setFacts(facts) {
    this.facts = facts;
    this.id = facts.id;
    this.tokens = facts.tokens_read;
    if (!facts.transcript) return;
    const before = this.messages;
    this.messages = facts.transcript
      .filter((message) => message.role !== "system")
      .map((message, i) => ({
        ...message,
        note: before[i]?.content === message.content ? before[i].note : undefined,
        runs: settledRuns(before[i], message.content),
      }));
  }

  /** Read it from the server, with its state. */
  async load(api, id = this.id) {
    this.setFacts(await api.json("GET", `/v1/sessions/${id}`));
    if (!this.facts.busy) await this.keepCopy(api);
  }

  async keepCopy(api) {
    this.copy = await api.file(this.id);
    if (this.rows.length === 0) {
      const moment = await momentIn(this.copy);
      if (moment) this.rows.push(moment.context);
      this.tables = moment?.recall ?? [];
    }
  }

  /**
   * Say something; `changed` is called whenever there is something new to show.
   *
   * Throws what went wrong. `kept` tells whether the turn is part of the conversation even so:
   * what is shown then is what the state has read, to the letter.
   */
  async say(api, text, sampling, changed, model) {
    const before = this.facts?.messages ?? 0;
    const answer = { role: "assistant", content: "", runs: [], writing: true };
    this.messages.push({ role: "user", content: text }, answer);
    this.#writer = new AbortController();
    let ended = false;
    changed();
    try {
      if (this.id === null) this.setFacts(await api.json("POST", "/v1/sessions", { model }));
      await this.#listen(api, text, sampling, answer, changed);
      ended = true;
      await this.keepCopy(api);
      return true;
    } catch (error) {
      if (ended) throw Object.assign(error, { kept: true });
      const stopped = error.name === "AbortError";
      if (this.id === null || (error.status ?? 0) > 0 || error.code === "away") {
        this.messages.splice(-2);
        throw error;
      }
      const kept = await this.#settle(api, before);
      const last = this.messages.at(-1); // none, where the answer was too long to be kept as text
      if (kept && stopped && last) last.note = { reason: "stopped" };
      if (!stopped) throw Object.assign(error, { kept });
      return kept;
    } finally {
      this.#writer = null;
      delete answer.writing;
    }
  }

  async #listen(api, text, sampling, answer, changed) {
    const started = performance.now();
    const { revision } = this.facts; // another tab may have gone on with it
    const body = { content: text, stream: true, context: true, revision, ...sampling };
    let reason = "stop";
    for await (const told of api.turn(this.id, body, this.#writer.signal)) {
      const choice = told.choices[0];
      const content = choice?.delta.content ?? "";
      answer.content += content;
      for (const piece of told.pieces ?? [[content, false]]) addPiece(answer.runs, ...piece);
      reason = choice?.finish_reason ?? reason;
      if (told.context) remember(this.rows, told.context);
      if (told.recall) this.tables = told.recall;
      if (told.session) this.setFacts(told.session);
      if (told.usage) {
        const tokens = told.usage.completion_tokens;
        this.tokens = told.usage.total_tokens;
        this.speed = (1000 * tokens) / (performance.now() - started);
        if (told.choices.length === 0) answer.note = { reason, tokens, speed: this.speed };
      }
      changed();
    }
    delete answer.writing;
    changed();
  }

  /** After a break: wait until the server has closed the turn, and show what it kept of it. */
  async #settle(api, before) {
    for (let i = 0; i < TRIES; i++) {
      const facts = await api.json("GET", `/v1/sessions/${this.id}`);
      if (!facts.busy) {
        this.setFacts(facts);
        await this.keepCopy(api);
        return facts.messages > before;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
    return false;
  }
}
