/** The conversations at the side, the last used first. */

import { ago, count, say } from "./words.js";

const PAUSE_MS = 200;
/** Between the last key of what is looked for, and looking. */

const find = (id) => document.getElementById(id);

export class SessionList {
  #facts = [];
  #current = null;
  #searching = false;

  /**
   * choose: called with the id that was chosen; titleOf: what a conversation is called; more:
   * called for those that come after (awaited); search: called with what is looked for.
   */
  constructor({ choose, titleOf, more, search }) {
    this.choose = choose;
    this.titleOf = titleOf;
    find("more").addEventListener("click", async () => {
      const shown = this.#facts.length;
      await more();
      find("sessions").children[shown]?.querySelector("button").focus();
    });
    let timer = 0;
    find("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => search(find("search").value.trim()), PAUSE_MS);
    });
  }

  /** facts: to list; current: id of the open one; more: whether there are more; searching: whether
   * they are those that were looked for. */
  show(facts, current, more, searching) {
    this.#facts = facts;
    this.#current = current;
    this.#searching = searching;
    find("more").hidden = !more;
    this.refresh();
  }

  refresh() {
    const list = find("sessions");
    const focused = list.contains(document.activeElement) && document.activeElement.dataset.id;
    list.replaceChildren(...this.#facts.map((facts) => this.#rowOf(facts)));
    find("no-sessions").hidden = this.#facts.length > 0;
    find("no-sessions").textContent = say(this.#searching ? "none_found" : "no_sessions");
    if (focused) list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }

  #rowOf(facts) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const title = document.createElement("span");
    const tokens = document.createElement("small");
    const values = {
      title: this.titleOf(facts), tokens: count(facts.tokens_read), time: ago(facts.last_used),
    };
    title.textContent = values.title;
    title.dir = "auto";
    tokens.textContent = say("row", values);
    button.type = "button";
    button.dataset.id = facts.id;
    button.setAttribute("aria-label", say("row_label", values));
    if (facts.id === this.#current) button.setAttribute("aria-current", "true");
    button.append(title, tokens);
    button.addEventListener("click", () => this.choose(facts.id));
    item.append(button);
    return item;
  }
}
