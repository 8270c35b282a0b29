/** A conversation between two turns, with the rules of newllm/chat/dialogue.py. */

import { ApiError } from "./errors.js";

export const UNDO_TURNS = 16;
const UNDO_BYTES = 2 ** 20;
export const TRANSCRIPT_BYTES = 2 ** 16;

export const DEFAULTS = { temperature: 0.7, top_p: 0.9, seed: null, repetition_penalty: 1.1 };

/** Where a conversation is: its state, where its random numbers are, and how much was said. */
export const START = {
  state: null, last_token: null, tokens_read: 0, messages: 0, draws: null,
};

export class Dialogue {
  sampling = { ...DEFAULTS };
  system = null;
  place = START;
  /** Places before the last turns, for undoing them; the oldest first. */
  before = [];
  /** The last messages that fit; the state was made by all of them. */
  transcript = [];

  get dropped() {
    return this.place.messages - this.transcript.length;
  }

  /** The tokens to read before the answer to a text. */
  prompt(model, text) {
    const { special, plain_text } = model.facts;
    const { tokens_read, last_token } = this.place;
    const cutShort = tokens_read > 0 && last_token !== special.end;
    let ids = tokens_read === 0 ? [special.bos] : cutShort ? [special.end] : [];
    for (const { role, content } of this.#messages(text)) {
      const words = model.tokenizer.encode(content);
      ids = ids.concat(plain_text ? words : [special[role], ...words, special.end]);
    }
    return plain_text ? ids : [...ids, special.assistant];
  }

  /** Go on to the place where an answer was written. */
  addTurn(text, answer, place, stateBytes) {
    const said = [...this.#messages(text), { role: "assistant", content: answer }];
    this.before.push(this.place);
    const most = Math.floor(UNDO_BYTES / (this.place.state ? stateBytes : 1));
    this.before = this.before.slice(-Math.max(1, Math.min(UNDO_TURNS, most)));
    this.place = { ...place, messages: this.place.messages + said.length };
    this.transcript.push(...said);
    while (textBytes(this.transcript) > TRANSCRIPT_BYTES) this.transcript.shift();
  }

  /** Go back to before the last turn. */
  undo() {
    if (this.before.length === 0) throw new ApiError("nothing_to_undo", "there is no turn to undo", 409);
    const { dropped } = this;
    const { draws } = this.place;
    this.place = this.before.pop();
    this.transcript.splice(Math.max(0, this.place.messages - dropped));
    if (this.sampling.seed === null) this.place = { ...this.place, draws };
  }

  /** A second conversation that goes on from here. */
  fork() {
    const other = new Dialogue();
    Object.assign(other, { sampling: this.sampling, system: this.system });
    other.place = this.sampling.seed === null ? { ...this.place, draws: null } : this.place;
    other.before = [...this.before];
    other.transcript = [...this.transcript];
    return other;
  }

  #messages(text) {
    const user = { role: "user", content: text.toWellFormed() };
    if (this.place.tokens_read > 0 || this.system === null) return [user];
    return [{ role: "system", content: this.system }, user];
  }
}

/** Bytes of the messages' contents, as UTF-8. */
export function textBytes(messages) {
  const encoder = new TextEncoder();
  return messages.reduce((total, { content }) => total + encoder.encode(content).length, 0);
}
