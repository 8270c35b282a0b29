/** The exported graphs in onnxruntime-web, on one core of the CPU. */

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import { fullness } from "./tables.js";
import { Tokenizer } from "./tokenizer.js";

/** Tokens of a prompt read at a time. */
const PART = 64;
/** Milliseconds after which the browser gets its turn: about a frame. */
const BREATH = 12;
const SHOWN = 64;

/** What makes arrays of each type in a state. */
export const ARRAYS = { float32: Float32Array, int32: Int32Array, int64: BigInt64Array };

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = {
  wasm: new URL("./onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href,
};

export class Model {
  #graphs;
  #queue = Promise.resolve();

  /** Read what `newllm export --format onnx` wrote; begin: called with the name of each file. */
  static async load(folder, begin = () => {}) {
    const get = (name) => {
      begin(name);
      return fetched(folder + name);
    };
    const facts = await (await get("new_llm.json")).json();
    const definition = await (await get("tokenizer.json")).json();
    const graphs = {};
    for (const name of ["step", "prefill"]) {
      const content = new Uint8Array(await (await get(`${name}.onnx`)).arrayBuffer());
      graphs[name] = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
    }
    return new Model(facts, new Tokenizer(definition, facts.special_names.length), graphs);
  }

  constructor(facts, tokenizer, graphs) {
    this.facts = facts;
    this.tokenizer = tokenizer;
    this.#graphs = graphs;
    /** Name, type and shape of each part of a state. */
    this.arrays = facts.session.arrays;
    this.stateBytes = this.arrays.reduce(
      (total, [, type, shape]) => total + countOf(shape) * ARRAYS[type].BYTES_PER_ELEMENT, 0);
  }

  /** A state that has read nothing. */
  zeroState() {
    return Object.fromEntries(this.arrays.map(([name, type, shape]) =>
      [name, new ARRAYS[type](countOf(shape))]));
  }

  /** Read tokens, at least one: the logits after the last one, and the state. */
  async read(ids, state, signal) {
    let logits;
    for (let start = 0; start < ids.length; start += PART) {
      await breathe();
      signal?.throwIfAborted();
      const part = ids.slice(start, start + PART);
      [logits, state] = await this.#next("prefill", part, [1, part.length], state);
    }
    return [logits, state];
  }

  /** Read a token that the model wrote itself; before: the state that its answer began with. */
  async readOwn(id, state, before) {
    const lookedUp = before.recall && { looked_up: before.recall };
    await breathe();
    return this.#next("step", [id], [1], state, lookedUp);
  }

  /** A run of a graph, when the one before has ended. */
  async #next(...run) {
    const next = this.#queue.then(() => this.#run(...run));
    this.#queue = next.catch(() => {});
    return next;
  }

  async #run(graph, ids, shape, state, further = {}) {
    const feeds = { ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), shape) };
    for (const [name, type, sizes] of this.arrays) {
      feeds[name] = new ort.Tensor(type, state[name], sizes);
    }
    for (const [name, tables] of Object.entries(further)) {
      feeds[name] = new ort.Tensor("int32", tables, this.#shapeOf("recall"));
    }
    const told = await this.#graphs[graph].run(feeds);
    const after = this.arrays.map(([name]) => [name, told[`new_${name}`].data]);
    return [told.logits.data, Object.fromEntries(after)];
  }

  #shapeOf(name) {
    return this.arrays.find(([other]) => other === name)[2];
  }

  /** Slots of a set of recall; 1 in graphs from before there were sets. */
  get ways() {
    return this.#shapeOf("recall")[3] ?? 1;
  }

  /** At most 64 evenly spaced numbers of each layer's context vector; how full recall is. */
  picture(state) {
    const [name, , [layers]] = this.arrays[0];
    const width = state[name].length / layers;
    const step = Math.ceil(width / SHOWN);
    const context = Array.from({ length: layers }, (_, layer) =>
      Array.from(state[name].subarray(layer * width, (layer + 1) * width))
        .filter((_, i) => i % step === 0));
    const { recall } = state;
    return { context, recall: recall ? fullness(recall, this.#shapeOf("recall")[0]) : [] };
  }
}

export function countOf(shape) {
  return shape.reduce((product, length) => product * length, 1);
}

async function fetched(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status} ${response.statusText}`);
  return response;
}

let breathed = 0;

/** Now and then, let the browser draw, and take what its user does. */
async function breathe() {
  if (performance.now() - breathed < BREATH) return;
  const { port1, port2 } = new MessageChannel();
  await new Promise((resolve) => {
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
  port1.close();
  breathed = performance.now();
}
