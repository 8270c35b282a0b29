/** One line above the message box: what went wrong and what to do, or what was done. */

const find = (id) => document.getElementById(id);
const SECONDS = 8;

let shown = null;
let timer = 0;

/**
 * Show a line until the next one.
 *
 * words: a function that makes it, so that it follows the language.
 * options: error (stays until closed), action (words of a button), act (what it does),
 *   seconds (how long it stays), closed (called when it goes).
 */
export function notice(words, options = {}) {
  hideNotice();
  shown = { words, ...options };
  find("notice").classList.toggle("error", Boolean(options.error));
  find("notice-words").setAttribute("role", options.error ? "alert" : "status");
  find("notice").hidden = false;
  refreshNotice();
  if (!options.error) timer = setTimeout(hideNotice, 1000 * (options.seconds ?? SECONDS));
}

export function hideNotice() {
  clearTimeout(timer);
  const closed = shown?.closed;
  shown = null;
  find("notice").hidden = true;
  closed?.();
}

/** Again, in the present language. */
export function refreshNotice() {
  if (!shown) return;
  find("notice-words").textContent = shown.words();
  find("notice-action").hidden = !shown.action;
  find("notice-action").textContent = shown.action?.() ?? "";
}

find("notice-close").addEventListener("click", hideNotice);
find("notice-action").addEventListener("click", () => shown?.act());
