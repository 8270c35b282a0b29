/**
 * The server's API inside the browser: what newllm/serve/page/api.js asks a server for, this does
 * itself. So the page is the same; only nothing leaves it.
 */

import { Dialogue } from "./dialogue.js";
import { ApiError } from "./errors.js";
import { Model } from "./model.js";
import { proposed } from "./recall.js";
import { Sampler } from "./sampler.js";
import { decode, encode } from "./session_codec.js";
import { AnswerText } from "./tokenizer.js";

const LONGEST_ANSWER = 4096;
const TITLE = 60;
const find = (id) => document.getElementById(id);

export class Api {
  key = "";
  /** Conversations by id, the most recently used last. */
  #sessions = new Map();
  #model = Model.load("model/", (name) => {
    find("model").textContent = `${name} …`; // the page writes the model's name over it
  });

  constructor() {
    for (const name of ["api-key", "keep-key"]) {
      find(name).closest("label").hidden = true; // there is no server that asks for one
    }
  }

  /** What the server answers to a request of the page. */
  async json(method, path, body) {
    const model = await this.#model;
    const { pathname, searchParams } = new URL(path, location.href);
    const [id, action] = pathname.split("/").slice(3);
    if (path === "/v1/models") return { data: [modelFacts(model)] };
    if (!id && method === "GET") {
      const sought = (searchParams.get("search") ?? "").toLowerCase();
      const all = [...this.#sessions.values()].reverse().map(factsOf);
      return { data: all.filter(({ title }) => (title ?? "").toLowerCase().includes(sought)) };
    }
    if (!id) return this.#add(new Dialogue());
    if (id === "file") return this.#add(await decode(body, model));
    const session = this.#find(id, method !== "GET");
    if (method === "DELETE") return { deleted: this.#sessions.delete(id) };
    if (method === "GET") return { ...factsOf(session), transcript: session.dialogue.transcript };
    if (action === "fork") return this.#add(session.dialogue.fork());
    session.dialogue.undo();
    return factsOf(session);
  }

  async file(id) {
    return encode(this.#find(id, true).dialogue, await this.#model);
  }

  upload(blob) {
    return this.json("POST", "/v1/sessions/file", blob);
  }

  deleteLast(id) {
    this.#sessions.delete(id);
  }

  async alive() {
    return true;
  }

  /** Say something; yields what the server tells while the answer is written. */
  async *turn(id, asked, signal) {
    const model = await this.#model;
    const session = this.#find(id, true);
    session.busy = true;
    let usage;
    try {
      usage = yield* write(model, session.dialogue, asked, signal);
    } finally {
      session.busy = false;
    }
    yield { choices: [], session: factsOf(session), usage };
  }

  #add(dialogue) {
    const id = Array.from(crypto.getRandomValues(new Uint8Array(16)), hexadecimal).join("");
    const session = { id, dialogue, busy: false, lastUsed: Date.now() / 1000 };
    this.#sessions.set(id, session);
    return factsOf(session);
  }

  #find(id, idle) {
    const session = this.#sessions.get(id);
    if (!session) throw new ApiError("session_not_found", "there is no session of this id", 404);
    if (idle && session.busy) {
      throw new ApiError("session_busy", "an answer is being written in this session", 409);
    }
    session.lastUsed = Date.now() / 1000;
    this.#sessions.delete(id);
    this.#sessions.set(id, session);
    return session;
  }
}

/** Write the answer to what is asked; one that is stopped, or reaches its limit, ends there. */
async function* write(model, dialogue, asked, signal) {
  const { special, never_written } = model.facts;
  const { content, max_tokens, temperature, top_p, repetition_penalty } = asked;
  const { place } = dialogue;
  const seed = asked.seed ?? dialogue.sampling.seed;
  const draws = asked.seed === undefined ? place.draws : null;
  const sampling = { temperature, top_p, seed, repetition_penalty };
  const sampler = new Sampler(sampling, never_written, draws);
  const prompt = dialogue.prompt(model, content);
  const known = place.tokens_read + prompt.length;
  let [logits, state] = await model.read(prompt, place.state ?? model.zeroState(), signal);
  const before = state;
  let last_token = prompt.at(-1);
  let written = 0;
  const usage = () => ({ completion_tokens: written, total_tokens: known + written });
  const told = (piece, finish_reason = null) =>
    ({ choices: [{ delta: { content: piece }, finish_reason }] });
  const answer = new AnswerText();
  while (last_token !== special.end && written < max_tokens && !signal.aborted) {
    last_token = sampler.draw(logits);
    const recalled = Boolean(state.recall)
      && proposed(before.recall, state.recent, model.ways) === last_token;
    [logits, state] = await model.readOwn(last_token, state, before);
    written += 1;
    const piece = answer.add(model.tokenizer.piece(last_token));
    yield { ...told(piece), pieces: [[piece, recalled]], ...model.picture(state), usage: usage() };
  }
  const rest = answer.finish();
  const point = { state, last_token, tokens_read: known + written, draws: sampler.draws };
  if (place.tokens_read === 0) dialogue.sampling = sampling; // `newllm chat` goes on as it was begun
  dialogue.addTurn(content, answer.text, point, model.stateBytes);
  signal.throwIfAborted();
  yield told(rest, last_token === special.end ? "stop" : "length");
  return usage();
}

function modelFacts({ facts, stateBytes }) {
  const { num_layers, context_dim, embed_dim, dataset } = facts.record.settings;
  return {
    id: facts.name,
    newllm: {
      parameters: facts.parameters,
      num_layers,
      context_dim,
      dataset,
      state_bytes: stateBytes,
      kv_cache_bytes_per_token: 2 * num_layers * embed_dim * 4,
      max_answer_tokens: LONGEST_ANSWER,
    },
  };
}

function factsOf({ id, dialogue, busy, lastUsed }) {
  const question = dialogue.transcript.find(({ role }) => role === "user");
  return {
    id,
    busy,
    title: question ? question.content.trim().replace(/\s+/g, " ").slice(0, TITLE) : null,
    tokens_read: dialogue.place.tokens_read,
    messages: dialogue.place.messages,
    messages_dropped: dialogue.dropped,
    undo_turns: dialogue.before.length,
    last_used: lastUsed,
  };
}

function hexadecimal(byte) {
  return byte.toString(16).padStart(2, "0");
}
