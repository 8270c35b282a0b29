/** What is shown before anything was said: what the model is, and what to expect of it. */

import { bytes, rounded, say } from "./words.js";

const find = (id) => document.getElementById(id);

/** Questions of the kind that its rows hold. */
const SUGGESTIONS = {
  dolly: ["What is the capital of France?", "What is a pen for?", "Name three fruits."],
  hh_rlhf: ["Can you help me plan a birthday party?", "How do I learn to cook?"],
  ultrachat: ["What makes a good story?", "Tell me about the history of trains."],
  code_alpaca: ["Write a function that adds two numbers.", "What is a list in Python?"],
  math: ["What is 3 + 4?", "Solve x + 5 = 12."],
};

/** model: as /v1/models tells it, or null; ask: called with a suggestion that was chosen. */
export function showWelcome(model, ask) {
  for (const name of ["can", "cannot"]) {
    find(name).replaceChildren(...say(name).map((words) => element("li", words)));
  }
  if (!model) return;
  const facts = model.newllm;
  find("welcome-words").textContent = say("welcome_words", {
    parameters: rounded(facts.parameters),
    data: say(`data_${facts.dataset}`) ?? facts.dataset,
    state: bytes(facts.state_bytes),
    counts: facts.counts_bytes ? say("welcome_counts", { size: bytes(facts.counts_bytes) }) : "",
  });
  const chips = (SUGGESTIONS[facts.dataset] ?? []).map((words) => {
    const button = element("button", words);
    button.type = "button";
    button.lang = "en";
    button.addEventListener("click", () => ask(words));
    return button;
  });
  find("suggestions").replaceChildren(...chips);
}

function element(kind, words) {
  const made = document.createElement(kind);
  made.textContent = words;
  return made;
}

/** The choice among several models; chosen: called with another one. */
export function showModels(models, model, chosen) {
  find("choose-model").hidden = models.length < 2;
  find("models").replaceChildren(...models.map((one) => {
    const option = element("option", one.id);
    option.selected = one.id === model.id;
    return option;
  }));
  find("models").onchange = () => chosen(models[find("models").selectedIndex]);
}
