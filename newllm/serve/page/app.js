/** The page: what its parts do to each other. */

import { Api } from "./api.js";
import { ChatView } from "./chat.js";
import { Connection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { Deletion } from "./deletion.js";
import { receiveFiles, saveFile, titleIn } from "./files.js";
import { askName } from "./heading.js";
import { closeSidebar, closeSomething, fit, phone } from "./layout.js";
import { hideNotice, notice, refreshNotice } from "./notice.js";
import * as preferences from "./preferences.js";
import { SessionList } from "./session_list.js";
import { Settings } from "./settings.js";
import { StatePanel } from "./state_panel.js";
import { beginToggles, showToggles } from "./toggles.js";
import { showWelcome } from "./welcome.js";
import { bytes, count, layers, rounded, say, sayError } from "./words.js";

const find = (id) => document.getElementById(id);

const api = new Api();
const chat = new ChatView();
const panel = new StatePanel();
const list = new SessionList((id) => attempt(() => open(id)), titleOf);
const settings = new Settings((key) => {
  api.key = key;
  attempt(connect);
});
const connection = new Connection(api, lost, found);
const deletion = new Deletion(api, attempt, (id) => {
  known = known.filter((one) => one.id !== id);
  opened.delete(id);
});

let model = null;
let current = new Conversation();
/** Conversations that were opened here, by id. */
const opened = new Map();
/** What the server told of all. */
let known = [];
let opening = 0;
let drawing = 0;
/** The conversation that the address names, until it is open. */
let wanted = addressed();

// What is shown

function titleOf(facts) {
  return preferences.nameOf(facts?.id) ?? facts?.title ?? say("untitled");
}

/** The id in the page's address; other anchors are no conversations. */
function addressed() {
  return location.hash.match(/^#([0-9a-f]{32})$/)?.[1] ?? null;
}

function show() {
  chat.show(current);
  showAround();
}

/** All but the messages. */
function showAround() {
  const { id, facts, writing } = current;
  find("title").textContent = titleOf(facts);
  document.title = id ? `${titleOf(facts)} · New-LLM` : "New-LLM";
  panel.show(current);
  list.show(known.filter((one) => one.id !== deletion.id), id);
  find("send").hidden = writing;
  find("stop").hidden = !writing;
  for (const name of ["rename", "fork", "save", "delete"]) find(name).disabled = !id || writing;
  find("undo").disabled = !facts?.undo_turns || writing;
  history.replaceState(null, "", id ? `#${id}` : location.pathname);
}

function showAll() {
  showToggles();
  showWelcome(model, (words) => {
    find("question").value = words;
    send();
  });
  if (model) {
    const { num_layers, parameters } = model.newllm;
    const size = say("parameters", { count: rounded(parameters) });
    find("model").textContent = [model.id, layers(num_layers), size].join(" · ");
  }
  refreshNotice();
  show();
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
    await action();
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
  const id = wanted || current.id;
  wanted = null;
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
  const facts = known.find((one) => one.id === current.id);
  if (facts && !facts.busy && !current.writing && facts.tokens_read !== current.tokens) {
    current.rows = []; // it went on elsewhere
    await current.load(api);
    show();
  }
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

/** What streams is drawn once a frame, however fast it comes. */
function drawTurn() {
  drawing = 0;
  if (!current.writing) return; // its end is shown by `send`
  chat.update(current);
  panel.show(current);
}

async function send() {
  await connected; // Enter may come before the page knows its model
  const field = find("question");
  const text = field.value.trim();
  if (connection.away) lost();
  if (!text || current.writing || connection.away || !model) return;
  const conversation = current;
  hideNotice();
  field.value = "";
  fit();
  find("live").textContent = say("writing");
  const wasNew = conversation.id === null;
  const changed = () => {
    if (conversation.id) opened.set(conversation.id, conversation);
    if (!drawing) drawing = requestAnimationFrame(drawTurn);
  };
  let kept = false;
  try {
    const turn = conversation.say(api, text, settings.sampling, changed);
    show();
    kept = await turn;
    find("live").textContent = say("answered", { text: conversation.messages.at(-1)?.content ?? "" });
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
  conversation.messages = [];
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
  const { messages, rows, tables } = current;
  const facts = await api.json("POST", `/v1/sessions/${current.id}/fork`);
  const seen = { messages, rows: [...rows], tables };
  opened.set(facts.id, Object.assign(new Conversation(), seen));
  preferences.setName(facts.id, say("copy_of", { title }));
  await refreshList();
  await open(facts.id);
  notice(() => say("forked"));
}

async function save() {
  const { id, facts, tokens } = current;
  const blob = await api.file(id);
  saveFile(blob, titleOf(facts));
  notice(() => say("saved", { bytes: bytes(blob.size), tokens: count(tokens) }));
}

async function upload(files) {
  for (const file of files) {
    const facts = await api.upload(file);
    const name = titleIn(file);
    if (name) preferences.setName(facts.id, name);
    await refreshList();
    await open(facts.id);
    const values = { title: titleOf(facts), tokens: count(facts.tokens_read) };
    notice(() => say("opened", values));
  }
}

function remove() {
  const { id, facts } = current;
  const title = titleOf(facts);
  begin(); // the notice of an earlier deletion goes, which carries it out
  deletion.begin(id, title, async () => {
    await open(id);
    showAround();
  });
  showAround();
}

function rename() {
  const { id, facts } = current;
  askName(titleOf(facts), (name) => {
    preferences.setName(id, name);
    showAround();
  });
}

// Events

const on = (id, event, listener) => find(id).addEventListener(event, listener);

on("composer", "submit", (event) => {
  event.preventDefault();
  send();
});
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
on("rename", "click", rename);

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || find("settings").open) return;
  if (!closeSomething()) current.stop();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && model && !connection.away) attempt(refreshList);
});
addEventListener("hashchange", () => {
  const id = addressed();
  if (id && id !== current.id) attempt(() => open(id));
});

receiveFiles((files) => attempt(() => upload(files)));
beginToggles(showAll);
showAll();
const connected = attempt(connect);
