"use strict";

const byId = (id) => document.getElementById(id);
const state = { turns: [], key: "", asked: 0 };

function speaker(offset = 0) {
  return "AB"[(state.turns.length + offset) % 2];
}

async function call(method, path, content) {
  const headers = content ? { "Content-Type": "application/json" } : {};
  const key = byId("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  const body = content && JSON.stringify(content);
  const started = performance.now();
  const reply = await fetch(path, { method, headers, body });
  const told = await reply.json();
  if (reply.status === 401) byId("key-option").hidden = false;
  if (!reply.ok) throw new Error(told.error.message);
  return { told, milliseconds: performance.now() - started };
}

function request(turns) {
  const asked = {
    context: turns,
    n: Number(byId("n").value),
    temperature: Number(byId("temperature").value),
    diversity: Number(byId("diversity").value),
  };
  const seed = byId("seed").value.trim();
  if (seed) asked.seed = seed; // 64 bits: a string in JSON
  return asked;
}

function make(name, text, properties = {}) {
  const element = document.createElement(name);
  if (text) element.textContent = text; // never as HTML: models say what they like
  return Object.assign(element, properties);
}

function showTurns() {
  const items = state.turns.map((turn) => {
    const item = make("li");
    item.append(make("b", turn.speaker), make("span", turn.text));
    return item;
  });
  byId("turns").replaceChildren(...items);
  byId("speaker").textContent = speaker();
}

function say(text, isWrong = false) {
  byId("about").textContent = text;
  byId("about").classList.toggle("wrong", isWrong);
}

function showResponses(reply, milliseconds, title) {
  const items = reply.responses.map((response) => {
    const item = make("li");
    const words = make("p", response.text);
    const cut = response.finishReason === "FINISH_REASON_LENGTH" ? ", cut" : "";
    const facts = `log p ${response.logProb.toFixed(1)}, ${response.numTokens} tokens${cut}`;
    words.append(make("small", facts));
    const vary = make("button", "Vary", { type: "button" });
    vary.setAttribute("aria-label", `Vary: ${response.text}`);
    vary.addEventListener("click", () => varyResponse(response.text));
    const go = make("button", "Continue", { type: "button" });
    go.setAttribute("aria-label", `Continue with: ${response.text}`);
    go.addEventListener("click", () => continueWith(response.text));
    item.append(words, vary, go);
    return item;
  });
  byId("responses").replaceChildren(...items);
  byId("about").dataset.seed = reply.seed;
  say(
    `${title}: distinct-1 ${reply.distinct1.toFixed(2)}, distinct-2 ${reply.distinct2.toFixed(2)}, ` +
      `${milliseconds.toFixed(0)} ms, seed ${reply.seed}, ${reply.model}`,
  );
}

async function during(work) {
  const number = ++state.asked; // an answer that comes after a later question is dropped
  const buttons = document.querySelectorAll("button");
  buttons.forEach((button) => { button.disabled = true; });
  try {
    const show = await work();
    if (number === state.asked) show();
  } catch (error) {
    if (number === state.asked) say(error.message, true);
  } finally {
    document.querySelectorAll("button").forEach((button) => { button.disabled = false; });
  }
}

function respond() {
  return during(async () => {
    const { told, milliseconds } = await call("POST", "/v1/responses", request(state.turns));
    return () => {
      showResponses(told, milliseconds, `${told.responses.length} responses`);
      byId("responses").querySelector("button")?.focus();
    };
  });
}

function varyResponse(text) {
  return during(async () => {
    const asked = { generate: request(state.turns), response: text };
    const { told, milliseconds } = await call("POST", "/v1/variants", asked);
    return () => {
      showResponses(told.variants, milliseconds, `Variants of “${text}”`);
      byId("responses").querySelector("button")?.focus();
    };
  });
}

function continueWith(text) {
  state.turns.push({ speaker: speaker(), text });
  showTurns();
  byId("responses").replaceChildren();
  say("Go on: say something, and press Enter.");
  byId("text").focus();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (text) {
    state.turns.push({ speaker: speaker(), text });
    byId("text").value = "";
    showTurns();
  }
  if (state.turns.length) respond();
  else say("Say something first.", true);
});

byId("restart").addEventListener("click", () => {
  state.turns = [];
  state.asked += 1;
  showTurns();
  byId("responses").replaceChildren();
  say("Say something, and press Enter.");
  byId("text").focus();
});

for (const id of ["n", "temperature", "diversity"]) {
  const show = () => {
    const value = byId(id).value;
    byId(`${id}-value`).textContent = id === "diversity" && value === "0" ? "off" : value;
  };
  byId(id).addEventListener("input", show);
}

async function describe() {
  try {
    const { told } = await call("GET", "/v1/model");
    byId("model").textContent = `${told.name}@${told.version}, ${told.method} on ${told.device}`;
    byId("n").max = Math.min(20, told.limits.maxResponses);
    byId("temperature").value = told.defaults.temperature;
    byId("temperature").dispatchEvent(new Event("input"));
  } catch (error) {
    byId("model").textContent = error.message;
  }
}

byId("key").addEventListener("change", describe);
showTurns();
describe();
