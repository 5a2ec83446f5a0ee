"use strict";
// Texts and token scores of a stream -> pieces of text with their scores, coloured and explained.
const tokens = (() => {
  const LEVELS = [0.9, 0.5, 0.2, 0.05]; // at least: a token's colour; below the last is the strongest
  const level = (logprob) => {
    const share = Math.exp(logprob), found = LEVELS.findIndex((least) => share >= least);
    return found < 0 ? LEVELS.length : found;
  };
  const percent = (logprob) => {
    const share = 100 * Math.exp(logprob);
    return share >= 99.95 && share < 100 ? ">99.9 %" : share > 0 && share < 0.05 ? "<0.1 %" : `${share.toFixed(1)} %`;
  };
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const textOf = (bytes) => {
    try { return decoder.decode(new Uint8Array(bytes)); } catch { return null; }
  };

  // Puts scores to the texts that they belong to. A token may come a moment before the end of its
  // text, a character may need several tokens, and some tokens (those around thoughts) have no text.
  class Aligned {
    constructor() {
      this.areas = { thought: { pieces: [], rest: "" }, text: { pieces: [], rest: "" } };
      this.order = []; // areas with a rest, in the order in which their texts came
      this.waiting = []; // groups of tokens that make whole characters, and are not placed yet
      this.bytes = [];
      this.group = [];
      this.scored = false;
    }
    add(thought, text, scores) {
      for (const [name, more] of [["thought", thought], ["text", text]]) {
        if (!more) continue;
        this.areas[name].rest += more;
        if (this.order.at(-1) !== name) this.order.push(name);
      }
      for (const score of scores) {
        this.scored = true;
        this.bytes.push(...(score.bytes || new TextEncoder().encode(score.token)));
        this.group.push(score);
        const whole = textOf(this.bytes);
        if (whole === null && this.bytes.length < 12) continue;
        this.waiting.push({ text: whole ?? "", scores: this.group });
        this.bytes = [];
        this.group = [];
      }
      this.place(false);
    }
    // Whether the group's text stands at the beginning of a rest: 1 yes, 0 perhaps later, -1 no.
    fits(group, rest, ended) {
      if (rest.startsWith(group.text)) return group.text;
      if (group.text.startsWith(rest)) return ended ? rest : null; // a stop string cut it
      for (let start = 1; start < group.text.length; start++) { // its white space went with a tag
        if (group.text.slice(0, start).trim() === "" && rest.startsWith(group.text.slice(start))) return group.text.slice(start);
      }
      return "";
    }
    place(ended) {
      while (this.waiting.length && this.order.length) {
        const area = this.areas[this.order[0]];
        if (!area.rest) { this.order.shift(); continue; }
        const group = this.waiting[0];
        const text = group.text ? this.fits(group, area.rest, ended || this.order.length > 1) : "";
        if (text === null) return;
        if (text === "") {
          // Its text is not here: it is hidden, or some text has no token.
          const later = this.waiting.findIndex((other) => other.text.trim() && area.rest.startsWith(other.text));
          if (later < 0 && !ended && this.order.length < 2) return;
          if (later > 0) this.waiting.splice(0, later);
          else if (this.order.length > 1) this.flush(this.order.shift());
          else this.waiting.shift();
          continue;
        }
        area.pieces.push({ text, scores: group.scores });
        area.rest = area.rest.slice(text.length);
        this.waiting.shift();
      }
    }
    flush(name) {
      const area = this.areas[name];
      if (area.rest) area.pieces.push({ text: area.rest, scores: null });
      area.rest = "";
    }
    finish() {
      this.place(true);
      this.flush("thought");
      this.flush("text");
      this.order = [];
    }
    text(name) {
      const area = this.areas[name];
      return area.pieces.map((piece) => piece.text).join("") + area.rest;
    }
  }

  // ---- shown

  const element = (piece) => {
    const text = shown(piece.text);
    if (!piece.scores) return document.createTextNode(text);
    const lowest = Math.min(...piece.scores.map((score) => score.logprob));
    const node = make("span", { className: `token level-${level(lowest)}`, tabIndex: -1 }, text);
    node.setAttribute("aria-label", `${JSON.stringify(text)}: ${percent(lowest)}`);
    node.scores = piece.scores;
    return node;
  };
  // Shows an area in a node; only what is new is added, so that long answers stay smooth.
  class View {
    constructor(node) {
      this.node = node;
      this.count = 0;
      this.tail = document.createTextNode("");
      node.replaceChildren(this.tail);
    }
    update(area) {
      for (; this.count < area.pieces.length; this.count++) {
        const node = element(area.pieces[this.count]);
        if (node.tabIndex === -1 && !this.node.querySelector(".token")) node.tabIndex = 0; // one stop of Tab for each answer
        this.tail.before(node);
      }
      this.tail.data = shown(area.rest);
    }
  }

  const readout = byId("readout");
  const rows = (score) => {
    const list = (score.top_logprobs || []).slice();
    if (list.length && !list.some((other) => other.token === score.token)) list.push(score);
    return list.map((other) => {
      const bar = make("span", { className: "bar-of" });
      bar.style.width = `${Math.max(100 * Math.exp(other.logprob), 0.5)}%`;
      const name = make("code", {}, shown(other.token).replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length)) || "∅");
      return make("li", { className: other.token === score.token ? "is-chosen" : "" }, name, make("span", { className: "bar-space" }, bar), make("span", { className: "share" }, percent(other.logprob)));
    });
  };
  const explain = (node) => {
    readout.replaceChildren();
    for (const score of node.scores) {
      const title = make("p", {}, make("code", {}, shown(score.token).replaceAll("\n", "↵")), ` ${word("probability")} `, make("b", {}, percent(score.logprob)), ` · ${word("logprob")} ${(score.logprob > -0.0005 ? 0 : score.logprob).toFixed(3)}`);
      readout.append(title);
      const others = rows(score);
      if (others.length) readout.append(make("p", { className: "soft" }, word("others")), make("ol", {}, ...others));
    }
    readout.hidden = false;
    const at = node.getBoundingClientRect(), size = readout.getBoundingClientRect();
    const below = at.bottom + 6 + size.height <= innerHeight;
    readout.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - size.width - 8))}px`;
    readout.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
  };
  const hide = () => { readout.hidden = true; };
  const tokenOf = (event) => {
    const node = event.target.closest ? event.target.closest(".token") : null;
    return node && node.scores ? node : null; // those of the legend have none
  };
  document.addEventListener("pointerover", (event) => {
    const node = tokenOf(event);
    if (node) explain(node);
    else if (!document.activeElement || !document.activeElement.classList.contains("token")) hide();
  });
  document.addEventListener("focusin", (event) => { const node = tokenOf(event); if (node) explain(node); else hide(); });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => {
    const node = tokenOf(event);
    if (!node) return;
    const all = [...node.parentNode.querySelectorAll(".token")], here = all.indexOf(node);
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (next === undefined || !all[next]) return;
    event.preventDefault();
    node.tabIndex = -1;
    all[next].tabIndex = 0;
    all[next].focus({ preventScroll: false });
    explain(all[next]); // after the scrolling that the focus may bring
  });

  const legend = (node) => {
    const names = ["≥ 90 %", "50–90 %", "20–50 %", "5–20 %", "< 5 %"];
    node.replaceChildren(word("legend"), ...names.map((name, number) => make("span", { className: `token level-${number}` }, name)), make("span", {}, word("legendHint")));
  };
  return { Aligned, View, legend };
})();
