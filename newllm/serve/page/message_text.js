/** Draws a message's text. What is drawn only grows, so that a selection in it stays. */

import { blocksOf, spansOf } from "./blocks.js";
import { say } from "./words.js";

/** Draw a message; `element` holds what is drawn of it so far. */
export function drawText(element, { runs, content }) {
  const all = runs ?? [{ text: content, recalled: false }];
  const text = all.map((run) => run.text).join("");
  const blocks = blocksOf(text);
  blocks.forEach((block, i) => {
    let node = element.children[i];
    if (node?.dataset.kind !== block.kind) {
      while (element.children.length > i) element.lastElementChild.remove();
      node = nodeOf(block);
      element.append(node);
    }
    const code = node.querySelector("code.lines");
    if (code) node.querySelector(".language").textContent = block.language || say("code");
    drawSpans(code ?? node, spansOf(text, block, all));
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

function nodeOf(block) {
  const node = document.createElement(block.kind === "code" ? "div" : "span");
  node.dataset.kind = block.kind;
  if (block.kind === "text") return node;
  node.className = "listing";
  const head = document.createElement("div");
  const language = document.createElement("span");
  const copy = document.createElement("button");
  const pre = document.createElement("pre");
  const code = document.createElement("code");
  head.className = "code-head";
  language.className = "language";
  copy.type = "button";
  copy.className = "copy";
  copy.textContent = say("copy");
  copy.addEventListener("click", async () => {
    const lines = [...code.childNodes].filter((part) => !part.classList?.contains("mark"));
    await copyText(lines.map((part) => part.textContent).join(""));
    copy.textContent = say("copied");
    setTimeout(() => { copy.textContent = say("copy"); }, 2000);
  });
  code.className = "lines";
  pre.tabIndex = 0; // long lines are scrolled to by keyboard
  pre.append(code);
  head.append(language, copy);
  node.append(head, pre);
  return node;
}

/** Put a text on the clipboard; pages that came without TLS have only the older way. */
export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

function drawSpans(element, spans) {
  const nodes = element.childNodes;
  spans.forEach((span, i) => {
    const kind = kindOf(span);
    const old = nodes[i];
    const shown = old?.textContent ?? "";
    if (!old || (old.dataset?.span ?? "") !== kind || !span.text.startsWith(shown)) {
      while (nodes.length > i) element.lastChild.remove();
      element.append(spanOf(span, kind));
    } else if (shown.length < span.text.length) {
      deepest(old).appendData(span.text.slice(shown.length));
    }
  });
  while (nodes.length > spans.length) element.lastChild.remove();
}

function kindOf({ text, mark, code, strong, recalled }) {
  const gap = mark && text.includes("\n");
  return [mark && "mark", gap && "gap", code && "code", strong && "strong", recalled && "recalled"]
    .filter(Boolean).join(" ");
}

function spanOf(span, kind) {
  const text = document.createTextNode(span.text);
  if (!kind) return text;
  const made = document.createElement(
    span.recalled ? "u" : span.code ? "code" : span.strong ? "strong" : "span",
  );
  made.className = kind;
  made.dataset.span = kind;
  made.append(text);
  return made;
}

function deepest(node) {
  return node.firstChild ?? node;
}
