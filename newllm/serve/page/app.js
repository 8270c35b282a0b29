/** The page: what its parts do to each other. */

import { Api } from "./api.js";
import { ChatView } from "./chat.js";
import { Connection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { hideNotice, notice, refreshNotice } from "./notice.js";
import * as preferences from "./preferences.js";
import { SessionList } from "./session_list.js";
import { Settings } from "./settings.js";
import { StatePanel } from "./state_panel.js";
import { showWelcome } from "./welcome.js";
import { bytes, count, language, rounded, say, sayError, setLanguage } from "./words.js";

const DELETE_SECONDS = 20;
const find = (id) => document.getElementById(id);
const phone = matchMedia("(max-width: 760px)");

const api = new Api();
const chat = new ChatView();
const panel = new StatePanel();
const list = new SessionList((id) => attempt(() => open(id)), titleOf);
const settings = new Settings((key) => {
  api.key = key;
  attempt(connect);
});
const connection = new Connection(api, lost, found);

let model = null;
let current = new Conversation();
/** Conversations that were opened here, by id. */
const opened = new Map();
/** What the server told of all. */
let known = [];
/** Deleted here, and soon on the server. */
let doomed = null;
let opening = 0;

// What is shown

function titleOf(facts) {
  return preferences.nameOf(facts?.id) ?? facts?.title ?? say("untitled");
}

function show() {
  chat.show(current);
  showAround();
}

/** All but the messages. */
function showAround() {
  const { id, facts, rows, tokens, speed, writing } = current;
  find("title").textContent = titleOf(facts);
  document.title = id ? `${titleOf(facts)} · New-LLM` : "New-LLM";
  panel.show(rows, tokens, speed);
  list.show(known.filter((one) => one.id !== doomed?.id), id);
  find("send").hidden = writing;
  find("stop").hidden = !writing;
  for (const name of ["rename", "fork", "save", "delete"]) find(name).disabled = !id || writing;
  find("undo").disabled = !facts?.undo_turns || writing;
  history.replaceState(null, "", id ? `#${id}` : location.pathname);
}

function showAll() {
  setLanguage(language());
  find("language").textContent = say("other_language");
  find("language").lang = language() === "en" ? "ja" : "en";
  const dark = preferences.theme() === "dark";
  find("theme").textContent = say(dark ? "theme_light" : "theme_dark");
  find("theme").setAttribute("aria-label", say(dark ? "theme_to_light" : "theme_to_dark"));
  preferences.showTheme();
  showWelcome(model, (words) => {
    find("question").value = words;
    send();
  });
  if (model) {
    const facts = model.newllm;
    const layers = facts.num_layers === 1
      ? say("layer_one") : say("layer_many", { count: count(facts.num_layers) });
    find("model").textContent = `${model.id} · ${layers} · ${say("parameters", { count: rounded(facts.parameters) })}`;
  }
  refreshNotice();
  show();
}

function announce(words) {
  find("live").textContent = words;
}

function error(problem) {
  if (problem.code === "away") {
    connection.lose();
  } else if (problem.code === "invalid_api_key") {
    notice(() => sayError(problem), {
      error: true, action: () => say("settings"), act: () => settings.open("api-key"),
    });
  } else {
    notice(() => sayError(problem), { error: true });
  }
}

async function attempt(action) {
  try {
    return await action();
  } catch (problem) {
    error(problem);
  }
}

// The server

async function connect() {
  const { data } = await api.json("GET", "/v1/models");
  hideNotice();
  model = data[0];
  panel.setModel(model.newllm);
  settings.setLimit(model.newllm.max_answer_tokens);
  showAll();
  await refreshList();
  const id = location.hash.slice(1) || current.id;
  if (id && known.some((one) => one.id === id)) await open(id);
}

function lost() {
  notice(() => say("away"), { error: true, action: () => say("retry"), act: () => connection.retry() });
}

async function found() {
  await attempt(async () => {
    const { id, copy } = current;
    await connect();
    notice(() => say("back"));
    if (!id || known.some((one) => one.id === id)) return;
    await putBack(id, copy);
  });
}

/** The server forgot the present conversation: begin it again from the page's copy. */
async function putBack(id, copy) {
  opened.delete(id);
  current.id = null;
  if (!copy) {
    notice(() => say("lost"), { error: true });
    return;
  }
  const facts = await api.upload(copy);
  preferences.setName(facts.id, preferences.nameOf(id));
  await refreshList();
  await open(facts.id);
  notice(() => say("restored"));
}

async function refreshList() {
  known = (await api.json("GET", "/v1/sessions")).data;
  showAround();
}

// Conversations

function begin() {
  hideNotice();
  opening += 1;
  current = new Conversation();
  show();
  closeSidebar();
  find("question").focus();
}

async function open(id) {
  closeSidebar();
  const conversation = opened.get(id) ?? new Conversation();
  const turn = ++opening;
  if (!conversation.writing) await conversation.load(api, id);
  if (turn !== opening) return; // another one was chosen meanwhile
  opened.set(id, conversation);
  current = conversation;
  show();
  if (!phone.matches) find("question").focus();
}

async function send() {
  const field = find("question");
  const text = field.value.trim();
  if (!text || current.writing || connection.away || !model) return;
  const conversation = current;
  hideNotice();
  field.value = "";
  fit();
  announce(say("writing"));
  const wasNew = conversation.id === null;
  let begun = false;
  const changed = () => {
    if (conversation.id) opened.set(conversation.id, conversation);
    if (conversation === current) begun ? chat.update(conversation) : show();
    if (conversation === current) panel.show(conversation.rows, conversation.tokens, conversation.speed);
    begun = true;
  };
  let kept = false;
  try {
    kept = await conversation.say(api, text, settings.sampling, changed);
    announce(say("answered", { text: conversation.messages.at(-1)?.content ?? "" }));
  } catch (problem) {
    kept = problem.kept ?? false;
    error(problem);
  }
  if (!kept && conversation === current && !field.value) {
    field.value = text;
    fit();
  }
  if (!kept && wasNew && conversation.id) await attempt(() => forget(conversation));
  if (conversation === current) show();
  if (!connection.away) await attempt(refreshList);
}

/** A conversation in which nothing was said does not stay on the server. */
async function forget(conversation) {
  const { id } = conversation;
  conversation.id = conversation.facts = null;
  await api.json("DELETE", `/v1/sessions/${id}`);
}

async function undo() {
  const question = current.messages.findLast((message) => message.role === "user");
  await api.json("POST", `/v1/sessions/${current.id}/undo`);
  current.rows = [];
  current.speed = null;
  await current.load(api);
  show();
  if (!find("question").value && question) find("question").value = question.content;
  fit();
  find("question").focus();
  notice(() => say("undone"));
  await refreshList();
}

async function fork() {
  const title = titleOf(current.facts);
  const rows = [...current.rows];
  const facts = await api.json("POST", `/v1/sessions/${current.id}/fork`);
  preferences.setName(facts.id, say("copy_of", { title }));
  await refreshList();
  await open(facts.id);
  current.rows = rows;
  show();
  notice(() => say("forked"));
}

async function save() {
  const { id, facts, tokens } = current;
  const blob = await api.file(id);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${titleOf(facts).replace(/[\\/:*?"<>|\p{Cc}]/gu, "-").slice(0, 60)}.session`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  notice(() => say("saved", { bytes: bytes(blob.size), tokens: count(tokens) }));
}

async function upload(files) {
  for (const file of files) {
    const facts = await api.upload(file);
    const name = file.name.replace(/( \(\d+\))?\.session$/, "");
    if (!/^[0-9a-f]{8}$/.test(name)) preferences.setName(facts.id, name); // the server's own names
    await refreshList();
    await open(facts.id);
    const values = { title: titleOf(facts), tokens: count(facts.tokens_read) };
    notice(() => say("opened", values));
  }
}

/** Out of sight now, from the server a little later: until then it can be brought back. */
function remove() {
  const { id, facts } = current;
  const title = titleOf(facts);
  begin(); // ends an earlier deletion's notice, which carries it out
  doomed = { id };
  showAround();
  notice(() => say("deleted", { title }), {
    seconds: DELETE_SECONDS,
    action: () => say("bring_back"),
    act: () => attempt(async () => {
      doomed = null;
      await open(id);
      showAround();
      notice(() => say("brought_back"));
    }),
    closed: () => attempt(carryOut),
  });
}

async function carryOut() {
  if (!doomed) return;
  const { id } = doomed;
  known = known.filter((one) => one.id !== id);
  doomed = null;
  opened.delete(id);
  await api.json("DELETE", `/v1/sessions/${id}`);
}

// Renaming, the side, files

function startRenaming() {
  find("rename-field").value = titleOf(current.facts);
  find("rename-field").hidden = false;
  find("title").hidden = true;
  find("rename-field").select();
}

function endRenaming(keep) {
  const field = find("rename-field");
  if (field.hidden) return;
  field.hidden = true;
  find("title").hidden = false;
  if (!keep) return;
  preferences.setName(current.id, field.value.trim());
  showAround();
}

function closeSidebar() {
  document.body.classList.remove("sidebar");
  find("veil").hidden = true;
  makeInert();
}

function makeInert() {
  find("sidebar").inert = phone.matches && !document.body.classList.contains("sidebar");
  find("page").inert = phone.matches && document.body.classList.contains("sidebar");
}

function openSidebar() {
  document.body.classList.add("sidebar");
  find("veil").hidden = false;
  makeInert();
  find("new").focus();
}

function toggle(button, name) {
  const open = document.body.classList.toggle(name);
  button.setAttribute("aria-expanded", String(open));
}

function fit() {
  const field = find("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

// Events

const on = (id, event, listener) => find(id).addEventListener(event, listener);

on("composer", "submit", (event) => {
  event.preventDefault();
  send();
});
on("question", "input", fit);
on("question", "keydown", (event) => {
  const plain = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  if (!plain) return;
  event.preventDefault();
  send();
});
on("stop", "click", () => {
  current.stop();
  find("question").focus();
});
on("new", "click", begin);
on("undo", "click", () => attempt(undo));
on("fork", "click", () => attempt(fork));
on("save", "click", () => attempt(save));
on("delete", "click", remove);
on("rename", "click", startRenaming);
on("rename-field", "blur", () => endRenaming(true));
on("rename-field", "keydown", (event) => {
  if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
  endRenaming(event.key === "Enter");
  event.stopPropagation();
});
on("open", "click", () => find("file").click());
on("file", "change", async () => {
  await attempt(() => upload([...find("file").files]));
  find("file").value = "";
});
on("open-sidebar", "click", openSidebar);
on("close-sidebar", "click", closeSidebar);
on("veil", "click", closeSidebar);
on("open-tools", "click", () => toggle(find("open-tools"), "tools"));
on("open-state", "click", () => toggle(find("open-state"), "state"));
on("theme", "click", () => {
  preferences.setTheme(preferences.theme() === "dark" ? "light" : "dark");
  showAll();
});
on("language", "click", () => {
  const other = language() === "en" ? "ja" : "en";
  preferences.setLanguage(other);
  setLanguage(other);
  showAll();
});

document.addEventListener("click", (event) => {
  if (event.target.closest("#open-tools") || !document.body.classList.contains("tools")) return;
  toggle(find("open-tools"), "tools");
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || find("settings").open) return;
  if (document.body.classList.contains("tools")) toggle(find("open-tools"), "tools");
  else if (document.body.classList.contains("sidebar")) closeSidebar();
  else current.stop();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && model && !connection.away) attempt(refreshList);
});
addEventListener("pagehide", () => {
  if (doomed) api.deleteLast(doomed.id);
  doomed = null;
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  find("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("drop").hidden = true;
});
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  find("drop").hidden = true;
  attempt(() => upload([...event.dataTransfer.files]));
});

phone.addEventListener("change", closeSidebar);
preferences.onSystemTheme(showAll);
setLanguage(preferences.language());
makeInert();
showAll();
attempt(connect);
