/** Byte-level BPE with the ids of newllm/data/tokenizers.py; special tokens belong to no text. */

const SPLIT =
  /'(?:[sSdDmMtT\u017f]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*|\p{White_Space}*[\r\n]|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** The same as the file has it, for a regular expression engine with `(?i:..)`. */
const EXPECTED = String.raw`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`;

export class Tokenizer {
  #ids = new Map();
  #pieces = [];
  /** Of two ids that stand side by side, as one number: [rank, id of both together]. */
  #merges = new Map();
  #byteIds;

  /** definition: the content of tokenizer.json; special: how many ids are no text. */
  constructor(definition, special) {
    const { model, pre_tokenizer } = definition;
    if (pre_tokenizer.pretokenizers[0].pattern.Regex !== EXPECTED) {
      throw new Error("tokenizer.json splits texts in a way that this page does not know");
    }
    this.special = special;
    const byteOf = new Map(byteAlphabet().map((character, byte) => [character, byte]));
    for (const [text, id] of Object.entries(model.vocab)) {
      this.#ids.set(text, id);
      if (id >= special) {
        this.#pieces[id] = Uint8Array.from(text, (character) => byteOf.get(character));
      }
    }
    this.size = this.#ids.size;
    model.merges.forEach(([left, right], rank) => {
      const pair = this.#pair(this.#ids.get(left), this.#ids.get(right));
      this.#merges.set(pair, [rank, this.#ids.get(left + right)]);
    });
    this.#byteIds = byteAlphabet().map((character) => this.#ids.get(character));
  }

  /** Ids of a text; lone surrogates are read as U+FFFD. */
  encode(text) {
    const ids = [];
    for (const [word] of text.toWellFormed().matchAll(SPLIT)) {
      const bytes = new TextEncoder().encode(word);
      for (const id of this.#merge(Array.from(bytes, (byte) => this.#byteIds[byte]))) ids.push(id);
    }
    return ids;
  }

  /** UTF-8 bytes that a token adds to a text: none for special ones. */
  piece(id) {
    return this.#pieces[id] ?? new Uint8Array();
  }

  #pair(left, right) {
    return left * this.size + right;
  }

  #rank(ids, place) {
    return this.#merges.get(this.#pair(ids[place], ids[place + 1]))?.[0] ?? Infinity;
  }

  /** Merge the pair of lowest rank, the leftmost first, until there is none. */
  #merge(ids) {
    for (;;) {
      let lowest = Infinity;
      for (let i = 0; i + 1 < ids.length; i++) lowest = Math.min(lowest, this.#rank(ids, i));
      if (lowest === Infinity) return ids;
      ids = this.#mergeAll(ids, lowest);
    }
  }

  /** Merge every pair of a rank from left to right, up to where a lower rank comes about. */
  #mergeAll(ids, rank) {
    const merged = [];
    for (let i = 0; i < ids.length; i++) {
      if (i + 1 === ids.length || this.#rank(ids, i) !== rank) {
        merged.push(ids[i]);
        continue;
      }
      const both = this.#merges.get(this.#pair(ids[i], ids[i + 1]))[1];
      const around = [merged.at(-1) ?? -1, both, ids[i + 2] ?? -1];
      merged.push(both);
      i += 1;
      const lower = (place) => !around.slice(place, place + 2).includes(-1)
        && this.#rank(around, place) < rank;
      if (lower(0) || lower(1)) return merged.concat(ids.slice(i + 1));
    }
    return merged;
  }
}

/** The text of an answer as its tokens come, in pieces that are never taken back. */
export class AnswerText {
  text = "";
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  /** The piece that is certain after these bytes: whole characters, no white space at the start. */
  add(bytes) {
    return this.#say(this.#decoder.decode(bytes, { stream: true }));
  }

  /** The last piece, when nothing follows. */
  finish() {
    return this.#say(this.#decoder.decode());
  }

  #say(piece) {
    const said = this.text ? piece : piece.replace(LEADING, "");
    this.text += said;
    return said;
  }
}

/** What Python's `lstrip` takes off. */
const LEADING = /^[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;

/** The printable character that stands for each byte, as byte-level BPE has it since GPT-2. */
function byteAlphabet() {
  const plain = (byte) =>
    (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae;
  let others = 0;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(plain(byte) ? byte : 256 + others++));
}
