"use strict";
// The page: which models answer, what they are asked, and their answers side by side.
const state = { models: [], chosen: new Set(), turns: [], stopping: null, needsKey: false };
const FIELDS = [ // of a request, with their first values
  { name: "temperature", title: "temperature", value: "0.7", step: "0.1" },
  { name: "max_tokens", title: "maxTokens", value: "512", step: "1" },
  { name: "top_p", title: "topP", value: "", step: "0.05" },
  { name: "seed", title: "seed", value: "", step: "1" },
];
const controls = {};

// ---- settings

const labelled = (title, control, className = "") => make("label", { className }, word(title), control);
const buildSettings = () => {
  const old = Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, control.type === "checkbox" ? control.checked : control.value]));
  const fields = FIELDS.map(({ name, title, value, step }) => {
    controls[name] = make("input", { type: "number", step, value: old[name] ?? value, placeholder: word("blank"), id: `set-${name}` });
    return labelled(title, controls[name]);
  });
  controls.thinking = make("select", { id: "set-thinking" }, ...[["", "thinkingAuto"], ["high", "thinkingOn"], ["none", "thinkingOff"]].map(([value, title]) => make("option", { value }, word(title))));
  controls.thinking.value = old.thinking ?? "";
  controls.system = make("textarea", { rows: 2, value: old.system ?? "", id: "set-system" });
  controls.stop = make("textarea", { rows: 2, value: old.stop ?? "", placeholder: word("stopsHint"), spellcheck: false, id: "set-stop" });
  controls.logprobs = make("input", { type: "checkbox", checked: old.logprobs ?? true, id: "set-logprobs" });
  controls.logprobs.addEventListener("change", showLegend);
  byId("settings").replaceChildren(
    ...fields, labelled("thinking", controls.thinking), labelled("system", controls.system, "half"), labelled("stops", controls.stop, "half"),
    make("label", { className: "check broad" }, controls.logprobs, word("probabilities")),
  );
};
const showLegend = () => {
  tokens.legend(byId("legend"));
  byId("legend").hidden = !state.turns.some((turn) => turn.answers.some((answer) => answer.aligned.scored));
};

// The fields of a request that the settings give. Ranges are the server's to judge.
const settingsOf = () => {
  const body = {};
  for (const { name, title } of FIELDS) {
    const control = controls[name];
    if (control.validity.badInput) throw new Error(word("notNumber")(word(title)));
    if (control.value.trim() !== "") body[name] = Number(control.value);
  }
  const stops = controls.stop.value.split("\n").filter((line) => line).map((line) => line.replaceAll("\\n", "\n"));
  if (stops.length) body.stop = stops;
  if (controls.thinking.value) body.reasoning_effort = controls.thinking.value;
  if (controls.logprobs.checked) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return body;
};

// ---- models

const modelOf = (id) => state.models.find((model) => model.id === id);
const takesInput = (model) => Boolean(model && model.template && model.template.has_input);
const nameParts = (model) => [model.id, make("small", {}, word(model.kind === "base" ? "base" : "tuned"))];
const buildModels = () => {
  byId("models").setAttribute("aria-label", word("models"));
  byId("models").replaceChildren(...state.models.map((model) => {
    const button = make("button", { type: "button", title: model.template ? `${model.id}\n${word("template")}: ${model.template.name}` : model.id }, ...nameParts(model));
    button.setAttribute("aria-pressed", state.chosen.has(model.id));
    button.addEventListener("click", () => {
      if (!state.chosen.delete(model.id)) state.chosen.add(model.id);
      button.setAttribute("aria-pressed", state.chosen.has(model.id));
      showInput();
    });
    return button;
  }));
  showInput();
};
const showInput = () => { byId("input").hidden = !state.models.some((model) => state.chosen.has(model.id) && takesInput(model)); };
const loadModels = async () => {
  byId("trouble").hidden = true;
  try {
    state.models = await api.models();
  } catch (error) {
    state.needsKey = state.needsKey || error.status === 401;
    byId("key-form").hidden = !state.needsKey;
    if (error.status === 401 && !byId("key").value) return byId("key").focus();
    return trouble(error.message);
  }
  byId("key-form").hidden = true;
  if (!state.models.length) trouble(word("noModels"));
  const first = (kind) => state.models.find((model) => model.kind === kind);
  for (const model of [first("tuned"), first("base")]) if (model && !state.chosen.size || model && model.kind === "base") state.chosen.add(model.id);
  if (!state.chosen.size && state.models.length) state.chosen.add(state.models[0].id);
  buildModels();
  byId("prompt").focus();
};
const trouble = (sentence) => {
  byId("trouble").textContent = shown(sentence);
  byId("trouble").hidden = !sentence;
};

// ---- asking

// A model sees its own earlier answers; a turn that it did not answer is not part of its past.
const messagesOf = (model, turn) => {
  const messages = turn.system ? [{ role: "system", content: turn.system }] : [];
  for (const past of state.turns) {
    const own = past.answers.find((answer) => answer.model.id === model.id);
    if (!own || (past !== turn && (own.error || !own.ended))) continue;
    const question = { role: "user", content: past.prompt };
    if (past.input && takesInput(model)) question.input = past.input;
    else if (past.input) question.content += `\n\n${past.input}`; // as templates without a place for it are trained
    messages.push(question);
    if (past === turn) break;
    messages.push({ role: "assistant", content: own.aligned.text("text") });
  }
  return messages;
};
const newAnswer = (model) => ({ model, aligned: new tokens.Aligned(), error: null, ended: "", body: null, facts: {} });

const askModel = async (turn, answer, settings, signal) => {
  const { model, aligned } = answer;
  answer.body = { model: model.id, messages: messagesOf(model, turn), ...settings, stream: true, stream_options: { include_usage: true } };
  const begun = performance.now();
  let first = 0;
  try {
    for await (const chunk of api.chat(answer.body, signal)) {
      if (chunk.usage) answer.facts.tokens = chunk.usage.completion_tokens;
      const choice = chunk.choices && chunk.choices[0];
      if (!choice) continue;
      const delta = choice.delta || {}, scores = (choice.logprobs && choice.logprobs.content) || [];
      if (!first && (delta.content || delta.reasoning_content)) first = performance.now();
      aligned.add(delta.reasoning_content || "", delta.content || "", scores);
      if (choice.finish_reason) answer.ended = choice.finish_reason;
      soon(answer);
    }
  } catch (error) {
    if (error.name === "AbortError") answer.ended = "stopped";
    else {
      answer.error = error;
      if (error.status === 401) { state.needsKey = true; byId("key-form").hidden = false; }
    }
  }
  const seconds = (performance.now() - (first || begun)) / 1000;
  if (first) answer.facts.first = ((first - begun) / 1000).toFixed(2);
  if (answer.facts.tokens > 1 && seconds > 0) answer.facts.speed = ((answer.facts.tokens - 1) / seconds).toFixed(0);
  answer.done = true;
  aligned.finish();
  draw(answer);
};
const ask = async (turn, answers, settings) => {
  const stopping = new AbortController();
  state.stopping = stopping;
  for (const answer of answers) Object.assign(answer, newAnswer(answer.model), { done: false });
  buildTurn(turn);
  setBusy(true);
  const atEnd = followEnd();
  await Promise.all(answers.map((answer) => askModel(turn, answer, settings, stopping.signal)));
  state.stopping = null;
  buildTurn(turn);
  atEnd();
  showLegend();
  setBusy(false);
};
const setBusy = (busy) => {
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("new").disabled = busy;
  byId("status").textContent = word(busy ? "asking" : "done");
  for (const button of document.querySelectorAll(".actions .again")) button.disabled = busy;
};
const send = () => {
  if (state.stopping) return;
  const prompt = byId("prompt").value, input = byId("input").hidden ? "" : byId("input").value;
  if (!prompt.trim() && !input.trim()) return;
  if (!state.chosen.size) return trouble(state.models.length ? word("noModel") : word("noModels"));
  let settings;
  try { settings = settingsOf(); } catch (error) { return trouble(error.message); }
  trouble("");
  const answers = state.models.filter((model) => state.chosen.has(model.id)).map(newAnswer);
  const turn = { prompt, input, system: controls.system.value, answers, node: make("section", { className: "turn" }) };
  state.turns.push(turn);
  for (const past of state.turns.slice(0, -1)) buildTurn(past); // only the last can be answered again
  byId("turns").querySelector(".empty")?.remove();
  byId("turns").append(turn.node);
  byId("prompt").value = "";
  byId("input").value = "";
  ask(turn, answers, settings);
};

// Keeps the end in view while answers grow, unless the reader has scrolled away.
const followEnd = () => {
  const page = document.documentElement;
  const toEnd = () => scrollTo({ top: page.scrollHeight });
  let near = true;
  toEnd();
  const noted = () => { near = page.scrollHeight - innerHeight - scrollY < 120; };
  addEventListener("scroll", noted);
  const watcher = new ResizeObserver(() => { if (near) toEnd(); });
  watcher.observe(byId("turns"));
  return () => requestAnimationFrame(() => { removeEventListener("scroll", noted); watcher.disconnect(); if (near) toEnd(); });
};

// ---- shown

const soon = (answer) => {
  if (answer.waiting) return;
  answer.waiting = true;
  requestAnimationFrame(() => { answer.waiting = false; if (!answer.done) draw(answer); });
};
const draw = (answer) => {
  const { parts, aligned } = answer;
  if (!parts) return;
  const { thought, text } = aligned.areas;
  const thinks = thought.pieces.length > 0 || thought.rest !== "", writes = text.pieces.length > 0 || text.rest !== "";
  parts.folded.hidden = !thinks;
  parts.summary.textContent = word(thinks && !writes && !answer.done ? "thinkingNow" : "thoughts");
  parts.thought.update(thought);
  parts.text.update(text);
  parts.node.classList.toggle("is-writing", !answer.done);
  const facts = [], { tokens: count, speed, first } = answer.facts;
  if (!answer.done && !writes && !thinks) facts.push(word("waiting"));
  if (answer.done && !writes && !answer.error) facts.push(word("nothing"));
  if (answer.ended === "length") facts.push(word("cut"));
  if (answer.ended === "stopped") facts.push(word("stopped"));
  if (count !== undefined) facts.push(word("tokens")(count));
  if (speed) facts.push(word("speed")(speed));
  if (first) facts.push(word("first")(first));
  parts.facts.textContent = facts.join(" · ");
  parts.error.hidden = !answer.error;
  parts.error.textContent = answer.error ? shown(answer.error.message) : "";
};
const action = (title, act, className = "") => {
  const button = make("button", { type: "button", className }, word(title));
  button.addEventListener("click", () => act(button));
  return button;
};
const copying = (title, text) => action(title, async (button) => {
  try {
    await navigator.clipboard.writeText(text());
    button.textContent = word("copied");
  } catch {
    button.textContent = word("notCopied");
  }
  byId("status").textContent = button.textContent;
  setTimeout(() => { button.textContent = word(title); }, 1500);
});
const askAgain = (turn) => {
  if (state.stopping) return;
  let settings;
  try { settings = settingsOf(); } catch (error) { return trouble(error.message); }
  ask(turn, turn.answers, settings);
};
const buildAnswer = (turn, answer) => {
  const { model } = answer;
  const node = make("article", { className: `answer is-${model.kind === "base" ? "base" : "tuned"}` });
  const written = make("div", { className: "written", dir: "auto", lang: "" }), thoughts = make("div", { className: "written", dir: "auto", lang: "" });
  for (const place of [written, thoughts]) { place.setAttribute("role", "group"); place.setAttribute("aria-label", word("answerTokens")); }
  const summary = make("summary"), folded = make("details", { hidden: true, open: answer.open ?? false }, summary, thoughts);
  folded.addEventListener("toggle", () => { answer.open = folded.open; });
  const facts = make("p", { className: "facts" }), error = make("p", { className: "error", role: "alert", hidden: true });
  node.append(make("h3", {}, ...nameParts(model)), folded, written, error, facts);
  answer.parts = { node, folded, summary, facts, error, text: new tokens.View(written), thought: new tokens.View(thoughts) };
  if (answer.done) {
    const actions = make("div", { className: "actions" });
    if (turn === state.turns.at(-1) && answer.error && /logprobs/.test(answer.error.param)) {
      actions.append(action("withoutProbabilities", () => { controls.logprobs.checked = false; askAgain(turn); }, "again"));
    }
    if (answer.aligned.text("text")) actions.append(copying("copyText", () => answer.aligned.text("text")));
    actions.append(copying("copyCurl", () => api.curl(answer.body)), copying("copyPython", () => api.python(answer.body)));
    node.append(actions);
  }
  draw(answer);
  return node;
};
const buildTurn = (turn) => {
  const question = make("div", { className: "question", dir: "auto" }, make("p", {}, shown(turn.prompt)));
  question.setAttribute("aria-label", word("you"));
  if (turn.input) question.append(make("p", { className: "of-input" }, shown(turn.input)));
  turn.node.replaceChildren(question, make("div", { className: "answers" }, ...turn.answers.map((answer) => buildAnswer(turn, answer))));
  if (turn === state.turns.at(-1) && turn.answers.every((answer) => answer.done)) {
    turn.node.append(make("div", { className: "actions" }, action("again", () => askAgain(turn), "again")));
  }
};
const startAnew = () => {
  state.turns = [];
  byId("turns").replaceChildren(make("p", { className: "empty" }, word("empty")));
  showLegend();
  byId("prompt").focus();
};

// ---- the page itself

const speak = () => { // all words that stand on the page
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const [id, name] of [["new", "newChat"], ["settings-button", "settings"], ["language", "language"], ["send", "send"], ["stop", "stop"], ["hint", "hint"], ["key-label", "keyLabel"], ["key-save", "keySave"]]) byId(id).textContent = word(name);
  byId("theme").textContent = "◐";
  byId("theme").title = word("theme");
  byId("theme").setAttribute("aria-label", word("theme"));
  byId("language").setAttribute("aria-label", word("languageName"));
  for (const [id, name, hint] of [["prompt", "prompt", "promptHint"], ["input", "input", "inputHint"]]) {
    byId(id).setAttribute("aria-label", word(name));
    byId(id).placeholder = word(hint);
  }
  buildSettings();
  buildModels();
  for (const turn of state.turns) buildTurn(turn);
  if (!state.turns.length) byId("turns").replaceChildren(make("p", { className: "empty" }, word("empty")));
  showLegend();
};
byId("language").addEventListener("click", () => { language = language === "zh" ? "en" : "zh"; speak(); });
byId("theme").addEventListener("click", switchTheme);
byId("settings-button").addEventListener("click", (event) => {
  const panel = byId("settings");
  panel.hidden = !panel.hidden;
  event.currentTarget.setAttribute("aria-expanded", !panel.hidden);
  if (!panel.hidden) { scrollTo({ top: 0 }); panel.querySelector("input").focus(); }
});
byId("new").addEventListener("click", startAnew);
byId("stop").addEventListener("click", () => state.stopping && state.stopping.abort());
byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setKey(byId("key").value.trim());
  loadModels();
});
for (const id of ["prompt", "input"]) {
  byId(id).addEventListener("keydown", (event) => {
    // While an input method composes, Enter takes a word of it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  });
}
addEventListener("keydown", (event) => { if (event.key === "Escape" && state.stopping) state.stopping.abort(); });
speak();
loadModels();
