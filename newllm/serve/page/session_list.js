/** The conversations at the side, the last used first. */

import { count, say } from "./words.js";

const PAGE = 100;
/** Conversations shown before one asks for more. */

const find = (id) => document.getElementById(id);

export class SessionList {
  #facts = [];
  #current = null;
  #most = PAGE;

  /** choose: called with the id that was chosen; titleOf: what a conversation is called. */
  constructor(choose, titleOf) {
    this.choose = choose;
    this.titleOf = titleOf;
    find("more").addEventListener("click", () => {
      this.#most += PAGE;
      this.refresh();
      find("sessions").children[this.#most - PAGE]?.querySelector("button").focus();
    });
  }

  show(facts, current) {
    this.#facts = facts;
    this.#current = current;
    this.refresh();
  }

  refresh() {
    const list = find("sessions");
    const focused = list.contains(document.activeElement) && document.activeElement.dataset.id;
    list.replaceChildren(...this.#facts.slice(0, this.#most).map((facts) => this.#rowOf(facts)));
    find("no-sessions").hidden = this.#facts.length > 0;
    find("more").hidden = this.#facts.length <= this.#most;
    if (focused) list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }

  #rowOf(facts) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const title = document.createElement("span");
    const tokens = document.createElement("small");
    const values = { title: this.titleOf(facts), tokens: count(facts.tokens_read) };
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
