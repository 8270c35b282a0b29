/** Conversations as files, byte for byte in the format of newllm/chat/session_file.py. */

import { Dialogue, TRANSCRIPT_BYTES, UNDO_TURNS, textBytes } from "./dialogue.js";
import { ApiError } from "./errors.js";
import { ARRAYS } from "./model.js";
import { inSets } from "./recall.js";

const MAGIC = new TextEncoder().encode("NEWLLM-SESSION 1\n");
const START = MAGIC.length + 4;
const DIGEST = 32;
const LARGEST_HEADER = 2 ** 20;
const WHERE = "the session file";

/** The content of a file: the present place, without those that can be gone back to. */
export async function encode(dialogue, model) {
  const { state, tokens_read, last_token, messages, draws } = dialogue.place;
  const header = {
    newllm_version: model.facts.newllm_version,
    ...model.facts.session,
    places: [{ tokens_read, last_token, messages, draws }],
    sampling: dialogue.sampling,
    system: dialogue.system,
    transcript: dialogue.transcript,
  };
  const exact = (_, value) => (typeof value === "bigint" ? JSON.rawJSON(String(value)) : value);
  const text = new TextEncoder().encode(JSON.stringify(header, exact));
  const size = new Uint8Array(4);
  new DataView(size.buffer).setUint32(0, text.length, true);
  const parts = state ? model.arrays.map(([name]) => state[name]) : [];
  const body = new Blob([MAGIC, size, text, ...parts]);
  return new Blob([body, await digest(await body.arrayBuffer())]);
}

/** The conversation in a file. Throws an ApiError: damaged, edited, or of another model. */
export async function decode(blob, model) {
  const damaged = refused("damaged or edited; use another copy of it");
  const largest = START + LARGEST_HEADER + (1 + UNDO_TURNS) * model.stateBytes + DIGEST;
  const content = new Uint8Array(await blob.slice(0, largest + 1).arrayBuffer());
  if (!MAGIC.every((byte, i) => content[i] === byte)) {
    throw refused("not a New-LLM session (or one of another format version)");
  }
  const body = content.subarray(0, -DIGEST);
  const found = await digest(body);
  if (content.length > largest || body.length < START
    || !found.every((byte, i) => content[body.length + i] === byte)) {
    throw damaged;
  }
  const size = new DataView(content.buffer).getUint32(MAGIC.length, true);
  try {
    const header = readHeader(body.subarray(START, START + size));
    if (header.model !== model.facts.session.model) {
      throw refused(
        "this conversation was with another model (or other --weights); "
        + "its state means nothing to this one");
    }
    return dialogueOf(header, content.slice(START + size, body.length).buffer, model);
  } catch (error) {
    throw error instanceof ApiError ? error : damaged;
  }
}

function refused(reason) {
  return new ApiError("invalid_session_file", `${WHERE}: ${reason}`);
}

async function digest(bytes) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}

function check(holds) {
  if (!holds) throw new RangeError("no value that a model writes");
}

/** The header, whose whole numbers may be wider than JavaScript's. */
function readHeader(bytes) {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  return JSON.parse(text, (_, value, { source }) =>
    typeof value === "number" && /^\d{16,}$/.test(source) ? BigInt(source) : value);
}

const isText = (value) => typeof value === "string" && value.isWellFormed();
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
const isWhole = (value, bits) =>
  (isCount(value) || typeof value === "bigint") && BigInt(value) < 1n << BigInt(bits);
const isNumber = (value, least, most = Infinity) =>
  Number.isFinite(value) && value >= least && value <= most;
const hasFields = (value, ...names) =>
  Object.keys(value).sort().join() === names.sort().join();

function dialogueOf(header, arrays, model) {
  check(hasFields(header, "newllm_version", "model", "arrays", "places", "sampling", "system",
    "transcript"));
  const [stored, ours, before] = [header.arrays, model.arrays, model.arrays.map(withoutSets)]
    .map((arrays) => JSON.stringify(arrays));
  check(stored === ours || stored === before);
  const { places, sampling, system, transcript } = header;
  check(places.length > 0 && places.length <= 1 + UNDO_TURNS);
  const begun = places.filter((place) => place.tokens_read > 0).length;
  check(arrays.byteLength === begun * model.stateBytes);
  const dialogue = new Dialogue();
  let start = 0;
  const all = places.map((place) => {
    checkPlace(place, model);
    const state = place.tokens_read > 0 ? stateAt(arrays, start, place, model) : null;
    if (state && stored !== ours) state.recall = inSets(state.recall);
    start += state ? model.stateBytes : 0;
    return { ...place, state };
  });
  check(all.every((place, i) => i === 0 || all[i - 1].messages <= place.messages));
  checkSampling(sampling);
  check(system === null || (isText(system) && system.length <= TRANSCRIPT_BYTES));
  for (const message of transcript) {
    check(hasFields(message, "role", "content") && isText(message.content));
    check(["system", "user", "assistant"].includes(message.role));
  }
  dialogue.place = all.pop();
  check(transcript.length <= dialogue.place.messages && textBytes(transcript) <= TRANSCRIPT_BYTES);
  return Object.assign(dialogue, { sampling, system, transcript, before: all });
}

function checkSampling(sampling) {
  check(hasFields(sampling, "temperature", "top_p", "seed", "repetition_penalty"));
  check(isNumber(sampling.temperature, 0) && isNumber(sampling.repetition_penalty, 1));
  check(isNumber(sampling.top_p, 0, 1) && sampling.top_p > 0);
  check(sampling.seed === null || isWhole(sampling.seed, 62));
}

function checkPlace(place, model) {
  check(hasFields(place, "tokens_read", "last_token", "messages", "draws"));
  const { tokens_read, last_token, messages, draws } = place;
  check(isCount(tokens_read) && isCount(messages) && (tokens_read > 0) === (last_token !== null));
  check(last_token === null || (isCount(last_token) && last_token < model.facts.vocab_size));
  if (draws === null) return;
  check(hasFields(draws, "state", "inc", "has_uint32", "uinteger"));
  check(isWhole(draws.state, 128) && isWhole(draws.inc, 128));
  check(isWhole(draws.has_uint32, 1) && isWhole(draws.uinteger, 32));
}

/** An array as sessions had it while each context of recall had one slot. */
function withoutSets([name, type, shape]) {
  if (name !== "recall" || shape.length < 4) return [name, type, shape];
  const [tables, batch, sets, ways] = shape;
  return [name, type, [tables, batch, sets * ways]];
}

/** A state, with numbers that one can have. */
function stateAt(arrays, start, place, model) {
  const state = {};
  for (const [name, type, shape] of model.arrays) {
    const count = shape.reduce((product, length) => product * length, 1);
    const end = start + count * ARRAYS[type].BYTES_PER_ELEMENT;
    const part = new ARRAYS[type](arrays.slice(start, end));
    check(part.every((value, at) => isPossible(name, value, at, place, model.facts.vocab_size)));
    state[name] = part;
    start = end;
  }
  return state;
}

/** Whether a part of a state can have a number: whole ones are tokens, or tokens and how often. */
function isPossible(name, value, at, { last_token, tokens_read }, vocabulary) {
  if (name === "previous") return value === BigInt(last_token + 1);
  if (name === "recent") {
    if (at === 0) return value === last_token + 1;
    return at < tokens_read ? value > 0 && value <= vocabulary : value === 0;
  }
  if (name === "recall") { // the token that followed, and how often in a row: see reference.py
    return value === 0
      || (value > 0 && (value >> 16) % 16 > 0 && value % 65536 < vocabulary);
  }
  return Number.isFinite(value);
}
