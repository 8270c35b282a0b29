/** numpy's PCG64 (O'Neill 2014, XSL-RR 128/64) and its seeding: the same seed, the same numbers. */

const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
const wide = (value) => BigInt.asUintN(128, value);
const long = (value) => BigInt.asUintN(64, value);

export class Random {
  #state;
  #increment;
  /** Half of a number that numpy keeps for later; nothing here takes halves. */
  #half = { has_uint32: 0, uinteger: 0 };

  /** seed: a whole number >= 0 (number or BigInt), or null for other numbers every time. */
  constructor(seed) {
    const words = seed === null ? crypto.getRandomValues(new Uint32Array(8)) : seedWords(seed);
    const pair = (i) => (BigInt(words[2 * i + 1]) << 32n) | BigInt(words[2 * i]);
    this.#increment = wide((((pair(2) << 64n) | pair(3)) << 1n) | 1n);
    this.#state = wide(this.#increment + ((pair(0) << 64n) | pair(1)));
    this.#step();
  }

  /** Where the numbers are, as a session file has it. */
  get draws() {
    return { state: this.#state, inc: this.#increment, ...this.#half };
  }

  /** Go on from there. */
  set draws({ state, inc, ...half }) {
    this.#state = BigInt(state);
    this.#increment = BigInt(inc);
    this.#half = half;
  }

  /** 0 <= u < 1, with 53 bits. */
  uniform() {
    this.#step();
    const mixed = long((this.#state >> 64n) ^ this.#state);
    const turn = this.#state >> 122n;
    const number = long((mixed >> turn) | (mixed << (64n - turn)));
    return Number(number >> 11n) / 2 ** 53;
  }

  #step() {
    this.#state = wide(this.#state * MULTIPLIER + this.#increment);
  }
}

/** numpy's SeedSequence: 256 bits of a seed, as eight words of 32. */
function seedWords(seed) {
  const entropy = [];
  for (let rest = BigInt(seed); rest > 0n; rest >>= 32n) {
    entropy.push(Number(BigInt.asUintN(32, rest)));
  }
  const hash = hasher(0x43b0d7e5, 0x931e8875);
  const pool = Array.from({ length: 4 }, (_, i) => hash(entropy[i] ?? 0));
  const stir = (target, value) => {
    const mixed = Math.imul(0xca01f9dd, pool[target]) - Math.imul(0x4973f715, hash(value));
    pool[target] = fold(mixed);
  };
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) stir(to, pool[from]);
  }
  for (const value of entropy.slice(4)) for (let to = 0; to < 4; to++) stir(to, value);
  const draw = hasher(0x8b51f9dd, 0x58f38ded);
  return Array.from({ length: 8 }, (_, i) => draw(pool[i % 4]));
}

function hasher(constant, factor) {
  return (value) => {
    const mixed = value ^ constant;
    constant = Math.imul(constant, factor);
    return fold(Math.imul(mixed, constant));
  };
}

function fold(value) {
  return ((value ^ (value >>> 16)) >>> 0);
}
