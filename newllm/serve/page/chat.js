/** The messages of one conversation. What is said becomes text, never HTML. */

import { drawRuns } from "./runs.js";
import { count, say } from "./words.js";

const NEAR = 80;
/** Pixels from the end within which the view follows what is written. */

const find = (id) => document.getElementById(id);

export class ChatView {
  #list = find("messages");
  #scroll = find("scroll");
  #shown = null;
  #atEnd = true;
  /** What an underline means; below the first answer that has one. */
  #legend = document.createElement("p");

  constructor() {
    this.#legend.id = "recalled-words";
    this.#legend.className = "hint";
    this.#list.addEventListener("copy", copyPlain);

    this.#scroll.addEventListener("scroll", () => {
      const { scrollTop, clientHeight, scrollHeight } = this.#scroll;
      this.#atEnd = scrollTop + clientHeight > scrollHeight - NEAR;
    });
    new ResizeObserver(() => this.#follow()).observe(this.#scroll);
  }

  /** Show a conversation from its beginning. */
  show(conversation) {
    this.#shown = conversation;
    this.#list.replaceChildren(...conversation.messages.map(itemOf));
    this.#explain();
    const dropped = conversation.facts?.messages_dropped ?? 0;
    find("welcome").hidden = conversation.messages.length + dropped > 0;
    find("dropped").hidden = dropped === 0;
    find("dropped").textContent = say("dropped", { count: count(dropped) });
    this.#scroll.scrollTop = 0;
    this.#atEnd = true;
    this.#follow();
  }

  /** The last message has grown, or ended. */
  update(conversation) {
    const message = conversation.messages.at(-1);
    const last = this.#list.lastElementChild;
    if (this.#shown !== conversation || !message || !last) return;
    drawRuns(last.querySelector(".text"), message);
    dress(last, message);
    if (!this.#legend.isConnected) this.#explain();
    this.#follow();
  }

  #explain() {
    this.#legend.textContent = say("recalled");
    this.#list.querySelector(".recalled")?.closest("li").append(this.#legend);
  }

  /** Stay at the end, for those who have not scrolled away from it. */
  #follow() {
    const begun = this.#list.childElementCount > 0;
    if (begun && this.#atEnd) this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }
}

function itemOf(message) {
  const item = document.createElement("li");
  const who = document.createElement("p");
  const text = document.createElement("p");
  const note = document.createElement("p");
  item.className = message.role;
  who.className = message.role === "user" ? "who unseen" : "who";
  who.textContent = say(message.role === "user" ? "you" : "model");
  text.className = "text";
  text.dir = "auto";
  drawRuns(text, message);
  note.className = "note";
  item.append(who, text, note);
  dress(item, message);
  return item;
}

/** What stands around the text: whether it is being written, and how it ended. */
function dress(item, message) {
  const empty = message.role === "assistant" && !message.writing && message.content === "";
  item.classList.toggle("writing", Boolean(message.writing));
  const text = item.querySelector(".text");
  text.classList.toggle("empty", empty);
  if (empty) text.textContent = say("empty_answer");
  item.querySelector(".note").textContent = noteOf(message);
}

/** What is copied is text alone, without the lines under it. */
function copyPlain(event) {
  if (getSelection().isCollapsed) return;
  event.clipboardData.setData("text/plain", String(getSelection()));
  event.preventDefault();
}

function noteOf({ note }) {
  if (!note) return "";
  const values = { tokens: count(note.tokens ?? 0), speed: count(note.speed ?? 0) };
  return say({ length: "note_length", stop: "note", stopped: "note_stopped" }[note.reason], values);
}
