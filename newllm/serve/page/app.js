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
import { showModels, showWelcome } from "./welcome.js";
import { bytes, count, layers, rounded, say, sayError } from "./words.js";

const find = (id) => document.getElementById(id);

const api = new Api();
api.key = preferences.keptKey();
const chat = new ChatView({ again: () => attempt(again), edit: () => attempt(edit) });
const panel = new StatePanel();
const list = new SessionList({
  choose: (id) => attempt(() => open(id)),
  titleOf,
  more: () => attempt(moreSessions),
  search: (words) => attempt(() => search(words)),
});
const settings = new Settings((key) => {
  api.key = key;
  attempt(connect);
});
const connection = new Connection(api, lost, found);
const deletion = new Deletion(api, attempt, (id) => {
  known = known.filter((one) => one.id !== id);
  opened.delete(id);
});

/** What the server has, as /v1/models tells it. */
let models = [];
/** What a conversation is begun with. */
let model = null;
let current = new Conversation();
/** Conversations that were opened here, by id. */
const opened = new Map();
/** What the server told of those used last, or of those that are looked for. */
let known = [];
let hasMore = false;
let sought = "";
let opening = 0;
let drawing = 0;
/** Id of the conversation that has just got it, by its first turn. */
let newest = null;
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
  showState();
  const listed = known.filter((one) => one.id !== deletion.id);
  list.show(listed, id, hasMore, sought !== "");
  find("send").hidden = writing;
  find("stop").hidden = !writing;
  for (const name of ["rename", "fork", "save", "delete"]) find(name).disabled = !id || writing;
  find("undo").disabled = !facts?.undo_turns || writing;
  enter();
}

/** The state of what has begun: before that, there is nothing to see. */
function showState() {
  const begun = current.tokens > 0 || current.writing;
  find("state").hidden = !begun;
  document.body.classList.toggle("unbegun", !begun);
  const of = models.find((one) => one.id === current.facts?.model) ?? model;
  if (of) panel.setModel(of.newllm);
  panel.show(current);
}

/** Each conversation is a place in the browser's history; one that gets its id stays where it is. */
function enter() {
  const { id } = current;
  if (wanted || addressed() === id) return;
  const url = id ? `#${id}` : location.pathname;
  if (id !== null && id === newest) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
}

function showAll() {
  showToggles();
  const of = models.find((one) => one.id === current.facts?.model) ?? model;
  showWelcome(of, (words) => {
    find("question").value = words;
    send();
  });
  showModels(models, model, (chosen) => {
    model = chosen;
    showAll();
  });
  if (of) {
    const { num_layers, parameters, counts_bytes } = of.newllm;
    const size = [say("parameters", { count: rounded(parameters) })];
    if (counts_bytes) size.push(say("counts", { size: bytes(counts_bytes) }));
    find("model").textContent = [of.id, layers(num_layers), ...size].join(" · ");
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
  } else if (problem.code === "session_not_found" && current.copy) {
    const { id, copy } = current;
    notice(() => say("gone_but_here"), {
      error: true, action: () => say("put_back"), act: () => attempt(() => putBack(id, copy)),
    });
  } else if (problem.code === "session_changed") {
    attempt(async () => {
      await reload();
      notice(() => sayError(problem), { error: true });
    });
  } else if (problem.code === "too_many_sessions") {
    notice(() => sayError(problem), {
      error: true, action: () => say("delete_oldest"), act: () => attempt(deleteOldest),
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
  models = data;
  model = data.find((one) => one.id === model?.id) ?? data[0];
  settings.setLimit(model.newllm.max_answer_tokens);
  showAll();
  await refreshList();
  const id = wanted || current.id;
  if (!id) return;
  try {
    await open(id); // it may be far down the list
  } catch (problem) {
    if (problem.code !== "session_not_found") throw problem;
  }
  if (wanted && !current.id) history.replaceState(null, "", location.pathname);
  wanted = null;
}

function lost() {
  notice(() => say("away"), { error: true, action: () => say("retry"), act: () => connection.retry() });
}

async function found() {
  await attempt(async () => {
    const { id, copy } = current;
    await connect();
    notice(() => say("back"));
    if (!id || (await exists(id))) return;
    await putBack(id, copy);
  });
}

async function exists(id) {
  try {
    await api.json("GET", `/v1/sessions/${id}`);
    return true;
  } catch (problem) {
    if (problem.code === "session_not_found") return false;
    throw problem;
  }
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

/** A page of what is looked for, or of all: those used last, or those after an id. */
function sessions(after, search = sought) {
  const asked = new URLSearchParams({ ...(search && { search }), ...(after && { after }) });
  return api.json("GET", asked.size ? `/v1/sessions?${asked}` : "/v1/sessions");
}

async function refreshList() {
  const { data, has_more } = await sessions();
  const first = new Set(data.map((one) => one.id));
  const later = has_more ? known.filter((one) => !first.has(one.id)) : [];
  known = named([...data, ...later]);
  if (later.length === 0) hasMore = has_more;
  const facts = known.find((one) => one.id === current.id);
  if (facts && !facts.busy && !current.writing && facts.revision !== current.facts?.revision) {
    await reload(); // it went on elsewhere
  }
  showAround();
}

/** Those looked for by a name that only this browser knows are among what is found, too. */
function named(found) {
  if (!sought) return found;
  const has = (one) => titleOf(one).toLowerCase().includes(sought.toLowerCase());
  const more = [...opened.values()].map((one) => one.facts).filter((facts) => facts && has(facts));
  return [...found, ...more.filter((facts) => !found.some((one) => one.id === facts.id))];
}

async function moreSessions() {
  const { data, has_more } = await sessions(known.at(-1)?.id);
  known = [...known, ...data];
  hasMore = has_more;
  showAround();
}

async function search(words) {
  sought = words;
  known = [];
  await refreshList();
}

async function reload() {
  current.rows = [];
  await current.load(api);
  show();
}

/** Make room for one more conversation. */
async function deleteOldest() {
  let last = null;
  for (let more = true; more;) {
    const { data, has_more } = await sessions(last?.id, "");
    last = data.at(-1) ?? last;
    more = has_more;
  }
  if (!last) return;
  await api.json("DELETE", `/v1/sessions/${last.id}`);
  known = known.filter((one) => one.id !== last.id);
  notice(() => say("deleted", { title: titleOf(last) }));
  await refreshList();
}

// Conversations

function begin() {
  hideNotice();
  opening += 1;
  change(new Conversation());
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
  change(conversation);
  if (!phone.matches) find("question").focus();
}

/** Another conversation is shown, with what was written and not sent in it. */
function change(conversation) {
  const field = find("question");
  const before = wanted ?? current.id; // what is written while one is opened belongs to it
  wanted = null;
  preferences.keepDraft(before, field.value);
  current = conversation;
  if (current.id !== before) field.value = preferences.draftOf(current.id);
  fit();
  showAll();
}

/** What streams is drawn once a frame, however fast it comes. */
function drawTurn() {
  drawing = 0;
  if (!current.writing) return; // its end is shown by `send`
  chat.update(current);
  showState();
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
  preferences.keepDraft(conversation.id, "");
  fit();
  find("live").textContent = say("writing");
  const wasNew = conversation.id === null;
  const changed = () => {
    if (conversation.id) opened.set(conversation.id, conversation);
    if (wasNew && conversation.id) newest = conversation.id;
    if (!drawing) drawing = requestAnimationFrame(drawTurn);
  };
  let kept = false;
  try {
    const turn = conversation.say(api, text, settings.sampling, changed, model.id);
    show();
    kept = await turn;
    find("live").textContent = say("answered", { text: conversation.messages.at(-1)?.content ?? "" });
  } catch (problem) {
    kept = problem.kept ?? false;
    error(problem);
  }
  if (!kept && conversation === current && !field.value) {
    field.value = text;
    preferences.keepDraft(conversation.id, text);
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

/** The question that the last answer is to. */
function lastQuestion() {
  return current.messages.findLast((message) => message.role === "user")?.content ?? "";
}

async function takeBack() {
  await api.json("POST", `/v1/sessions/${current.id}/undo`);
  current.speed = null;
  await reload();
}

/** Another answer to the last question, in place of this one. */
async function again() {
  const question = lastQuestion();
  if (!question || current.writing) return;
  await takeBack();
  const draft = find("question").value;
  find("question").value = question;
  await send();
  if (!find("question").value) find("question").value = draft;
  fit();
}

/** Change the last question: in a fork, so that what was said stays. */
async function edit() {
  const question = lastQuestion();
  if (current.writing) return;
  await fork();
  await takeBack();
  find("question").value = question;
  fit();
  find("question").focus();
  notice(() => say("editing"));
}

async function undo() {
  const question = lastQuestion();
  await takeBack();
  if (!find("question").value) find("question").value = question;
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
  // Safari ends a composition before the Enter that ended it: only the code 229 tells.
  const composing = event.isComposing || event.keyCode === 229;
  const plain = event.key === "Enter" && !event.shiftKey && !composing;
  if (!plain) return;
  event.preventDefault();
  send();
});
on("question", "input", () => preferences.keepDraft(wanted ?? current.id, find("question").value));
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
// Back and Forward, and addresses typed by hand.
addEventListener("popstate", () => {
  const id = addressed();
  if (id === current.id) return;
  if (id) attempt(() => open(id));
  else begin();
});

receiveFiles((files) => attempt(() => upload(files)));
beginToggles(showAll);
showAll();
find("question").value = preferences.draftOf(wanted);
fit();
const connected = attempt(connect);
