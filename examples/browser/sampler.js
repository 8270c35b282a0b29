/** Draws tokens as newllm/inference/sampling.py and nucleus.py do, from the same random numbers. */

import { ApiError } from "./errors.js";
import { Random } from "./random.js";

/** The repetition penalty is on so many tokens, the last ones of the answer. */
const WINDOW = 64;

export class Sampler {
  #random;
  #recent = [];

  /** sampling: temperature, top_p, seed, repetition_penalty; draws: where an earlier one ended. */
  constructor(sampling, forbidden, draws) {
    this.sampling = sampling;
    this.forbidden = forbidden;
    this.#random = new Random(draws ? 0 : sampling.seed);
    if (draws) this.#random.draws = draws;
  }

  get draws() {
    return this.#random.draws;
  }

  /** The next token for logits, a Float32Array. */
  draw(logits) {
    const token = choose(logits, this.forbidden, this.#recent, this.sampling, this.#random.uniform());
    if (token < 0) throw new ApiError("not_finite", "the model's scores are not finite");
    this.#recent.push(token);
    if (this.#recent.length > WINDOW) this.#recent.shift();
    return token;
  }
}

/** A token, or -1 if none can be drawn. */
function choose(logits, forbidden, recent, sampling, uniform) {
  const { temperature, top_p, repetition_penalty: penalty } = sampling;
  const weights = Float32Array.from(logits);
  if (weights.some(Number.isNaN)) return -1;
  for (const token of penalty === 1 ? [] : recent) {
    weights[token] = logits[token] > 0 ? logits[token] / penalty : logits[token] * penalty;
  }
  for (const token of forbidden) weights[token] = -Infinity;
  const peak = weights.reduce((most, weight) => Math.max(most, weight), -Infinity);
  if (!Number.isFinite(peak)) return -1;
  if (temperature === 0) return weights.indexOf(peak);
  const inverse = Math.min(1 / temperature, 1e30);
  for (let i = 0; i < weights.length; i++) weights[i] = Math.exp((weights[i] - peak) * inverse);
  if (top_p < 1) keepNucleus(weights, top_p);
  return pick(weights, uniform);
}

/** Zero what the likeliest tokens with this share of the weight leave over (arXiv:1904.09751). */
function keepNucleus(weights, share) {
  const total = sum(weights);
  const light = ((1 - share) * total) / weights.length; // together lighter than what is left over
  const order = [];
  weights.forEach((weight, token) => {
    if (weight >= light) order.push(token);
    else weights[token] = 0;
  });
  order.sort((a, b) => weights[b] - weights[a] || a - b);
  let missing = share * total;
  for (const token of order) {
    const weight = weights[token];
    if (missing <= 0) weights[token] = 0;
    missing -= weight;
  }
}

/** The token at `uniform` of the weight, in the order of the ids. */
function pick(weights, uniform) {
  let target = uniform * sum(weights);
  let last = -1;
  for (let i = 0; i < weights.length; i++) {
    if (weights[i] === 0) continue;
    last = i;
    target -= weights[i];
    if (target < 0) break;
  }
  return last;
}

function sum(weights) {
  return weights.reduce((total, weight) => total + weight, 0);
}
