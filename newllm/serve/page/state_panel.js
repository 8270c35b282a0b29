/** How much a conversation's memory is: the picture, the numbers, and the cache it does without. */

import { Picture } from "./picture.js";
import { drawTables } from "./tables.js";
import { bytes, count, layers, say } from "./words.js";

const BYTES_PER_NUMBER = 4;
const find = (id) => document.getElementById(id);

export class StatePanel {
  #picture = new Picture(find("picture"), find("strip"));
  #model = null;
  #shown = { rows: [], tables: [], tokens: 0, speed: null };

  setModel(facts) {
    this.#model = facts;
    this.refresh();
  }

  /**
   * rows: moments to draw, oldest first; tables: how full those of recall are; tokens: read so
   * far; speed: tokens/s, or null.
   */
  show({ rows, tables, tokens, speed }) {
    this.#shown = { rows, tables, tokens, speed };
    this.refresh();
  }

  /** Again, in the present words and colours. */
  refresh() {
    const { rows, tables, tokens, speed } = this.#shown;
    const model = this.#model;
    this.#picture.show(rows);
    find("recall").hidden = tables.length === 0;
    if (tables.length > 0) drawTables(find("tables"), tables);
    if (!model) return;
    const perToken = model.kv_cache_bytes_per_token;
    const cache = perToken * tokens;
    const state = model.state_bytes;
    const depth = layers(model.num_layers);
    const width = perToken / (2 * model.num_layers * BYTES_PER_NUMBER);

    find("tokens").textContent = count(tokens);
    find("speed").textContent = speed === null ? "–" : count(speed);
    find("state-bytes").textContent = bytes(state);
    find("cache-bytes").textContent = bytes(cache);
    const most = Math.max(state, cache);
    find("state-bar").style.width = `${(100 * state) / most}%`;
    find("cache-bar").style.width = `${(100 * cache) / most}%`;
    const times = cache / state;
    find("ratio").textContent = tokens === 0 ? say("ratio_none")
      : times < 1 ? say("ratio_small")
      : say("ratio", { times: times < 10 ? times.toFixed(1) : count(times) });
    find("formula").textContent = say("formula", {
      layers: depth, width: count(width), tokens: count(tokens), bytes: bytes(cache),
    });
    find("state-short").textContent = say(speed === null ? "short" : "short_speed", {
      state: bytes(state), tokens: count(tokens), speed: speed === null ? "" : count(speed),
    });
    this.#describe(rows.at(-1), depth, model.context_dim);
  }

  #describe(newest, depth, width) {
    const values = newest && { layers: depth, width: count(width), shown: count(newest[0].length) };
    const words = this.#picture.still ? "picture_words_still" : "picture_words";
    find("picture-words").textContent = say(newest ? words : "picture_none", values);
    find("picture").setAttribute("aria-label", say(newest ? "picture_label" : "picture_none", values));
  }
}
