/** What this browser remembers: colours, language, settings, and names given to conversations. */

const MOST_NAMES = 500;

export const DEFAULTS = {
  temperature: 0.7,
  top_p: 0.9,
  repetition_penalty: 1.1,
  max_tokens: 256,
  seed: null,
};

/** Storage may be switched off, or full: then nothing outlives the page. */
const unstored = {};

function read(name, otherwise) {
  if (name in unstored) return unstored[name];
  try {
    return JSON.parse(localStorage.getItem(`newllm.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(`newllm.${name}`, JSON.stringify(value));
  } catch {
    unstored[name] = value;
  }
}

const dark = matchMedia("(prefers-color-scheme: dark)");

/** "dark" or "light": what was chosen here, else what the system prefers. */
export function theme() {
  return read("theme", null) ?? (dark.matches ? "dark" : "light");
}

export function setTheme(value) {
  write("theme", value);
}

export function onSystemTheme(listener) {
  dark.addEventListener("change", listener);
}

/** "en" or "ja": what was chosen here, else the first of the browser's languages that is known. */
export function language() {
  const known = navigator.languages.map((tag) => tag.slice(0, 2)).filter((l) => /en|ja/.test(l));
  return read("language", null) ?? known[0] ?? "en";
}

export function setLanguage(value) {
  write("language", value);
}

export function sampling() {
  return { ...DEFAULTS, ...read("sampling", {}) };
}

export function setSampling(value) {
  write("sampling", value);
}

/** The name that was given to a conversation here, if one was. */
export function nameOf(id) {
  return read("names", {})[id];
}

export function setName(id, name) {
  const names = read("names", {});
  delete names[id]; // the newest stand last
  if (name) names[id] = name;
  write("names", Object.fromEntries(Object.entries(names).slice(-MOST_NAMES)));
}

/** What lasts as long as the tab: drafts, and the key if that was wished. */
function kept(name) {
  try {
    return sessionStorage.getItem(`newllm.${name}`) ?? "";
  } catch {
    return unstored[name] ?? "";
  }
}

function keep(name, value) {
  try {
    if (value) sessionStorage.setItem(`newllm.${name}`, value);
    else sessionStorage.removeItem(`newllm.${name}`);
  } catch {
    unstored[name] = value;
  }
}

export function keptKey() {
  return kept("key");
}

export function keepKey(key) {
  keep("key", key);
}

/** What was written and not sent, in a conversation or (null) before one. */
export function draftOf(id) {
  return kept(`draft.${id ?? "new"}`);
}

export function keepDraft(id, text) {
  keep(`draft.${id ?? "new"}`, text);
}
