/** The dialog of settings. */

import * as preferences from "./preferences.js";

const find = (id) => document.getElementById(id);
const SLIDERS = ["temperature", "top_p", "repetition_penalty"];

export class Settings {
  /** keyChanged: called with the API key when the dialog is closed with another one. */
  constructor(keyChanged) {
    this.#show(preferences.sampling());
    for (const name of [...SLIDERS, "max_tokens", "seed"]) {
      find(name).addEventListener("input", () => this.#changed());
    }
    find("defaults").addEventListener("click", () => {
      this.#show(preferences.DEFAULTS);
      this.#changed();
    });
    find("open-settings").addEventListener("click", () => this.open());
    let key = preferences.keptKey();
    find("api-key").value = key;
    find("keep-key").checked = key !== "";
    find("settings").addEventListener("close", () => {
      this.#show(preferences.sampling()); // what was no number is as it was
      const given = find("api-key").value.trim();
      preferences.keepKey(find("keep-key").checked ? given : "");
      if (given !== key) keyChanged((key = given));
    });
  }

  /** Show the dialog; focus: the id of the field to begin with. */
  open(focus) {
    if (!find("settings").open) find("settings").showModal();
    if (focus) find(focus).focus();
  }

  /** The server's longest answer. */
  setLimit(most) {
    find("max_tokens").max = most;
  }

  /** What every turn asks for. */
  get sampling() {
    const { seed, ...rest } = preferences.sampling();
    rest.max_tokens = Math.min(rest.max_tokens, Number(find("max_tokens").max) || Infinity);
    return seed === null ? rest : { ...rest, seed };
  }

  #changed() {
    const value = preferences.sampling();
    for (const name of SLIDERS) value[name] = find(name).valueAsNumber;
    const most = find("max_tokens");
    if (most.validity.valid) value.max_tokens = most.valueAsNumber;
    const seed = find("seed");
    if (seed.validity.valid) value.seed = seed.value === "" ? null : seed.valueAsNumber;
    preferences.setSampling(value);
    this.#tell(value);
  }

  #show(value) {
    for (const name of [...SLIDERS, "max_tokens", "seed"]) find(name).value = value[name] ?? "";
    this.#tell(value);
  }

  #tell(value) {
    for (const name of SLIDERS) find(`${name}-value`).textContent = value[name].toFixed(2);
  }
}
