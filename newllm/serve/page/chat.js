/** The messages of one conversation. What is said becomes text, never HTML. */

import { copyText, drawText } from "./message_text.js";
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
  /** What can be done with the last answer; below it. */
  #actions = document.createElement("div");

  /** again, edit: called when the last answer is to be another, the last question is to be changed. */
  constructor({ again, edit }) {
    this.#actions.className = "actions";
    this.#actions.append(
      button("copy", PATHS.copy, async (made) => {
        await copyText(this.#shown.messages.at(-1).content);
        made.title = made.ariaLabel = say("copied");
      }),
      button("again", PATHS.again, again),
      button("edit", PATHS.edit, edit),
    );
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
    this.#offer(conversation);
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
    drawText(last.querySelector(".text"), message);
    dress(last, message);
    if (!message.writing) this.#offer(conversation);
    if (!this.#legend.isConnected) this.#explain();
    this.#follow();
  }

  #offer(conversation) {
    const { messages, facts } = conversation;
    this.#actions.remove();
    if (messages.at(-1)?.role !== "assistant" || messages.at(-1).writing) return;
    for (const made of this.#actions.children) {
      made.title = made.ariaLabel = say(made.dataset.does);
      if (made.dataset.does !== "copy") made.hidden = !facts?.undo_turns;
    }
    this.#list.lastElementChild.append(this.#actions);
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

const PATHS = {
  copy: "M9 9h10v11H9zM5 15V4h10",
  again: "M5 12a7 7 0 1 0 2-5M5 4v4h4",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
};

function button(does, path, act) {
  const made = document.createElement("button");
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  made.type = "button";
  made.dataset.does = does;
  icon.setAttribute("viewBox", "0 0 24 24");
  icon.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  icon.append(line);
  made.append(icon);
  made.addEventListener("click", () => act(made));
  return made;
}

function itemOf(message) {
  const item = document.createElement("li");
  const who = document.createElement("p");
  const text = document.createElement("div");
  const note = document.createElement("p");
  item.className = message.role;
  who.className = message.role === "user" ? "who unseen" : "who";
  who.textContent = say(message.role === "user" ? "you" : "model");
  text.className = "text";
  text.dir = "auto";
  drawText(text, message);
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
