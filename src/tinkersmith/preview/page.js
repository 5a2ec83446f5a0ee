"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const wanted = data.language === "auto" ? navigator.language || "en" : data.language;
  const chinese = wanted.toLowerCase().startsWith("zh");
  document.documentElement.lang = chinese ? "zh-CN" : "en";
  const percent = (part, whole) => (whole ? ((100 * part) / whole).toFixed(1) : "0") + "\u00a0%";
  const words = chinese
    ? {
        title: "训练数据预览", samples: "样本", sequences: "序列", tokens: "token", trained: "参与训练", cut: "被截断的序列",
        tooLong: "被舍弃的序列", lost: "丢失的 token", multi: "多轮样本", epoch: "一轮所取的样本", epochTokens: "一轮的 token",
        epochTrained: "一轮参与训练的 token", check: "请检查", all: "全部", longest: "最长", cutFilter: "被截断",
        multiFilter: "多轮", suspicious: "可疑", search: "搜索文字或记录号（按 /）", filters: "筛选",
        legend: ["参与训练", "只读入", "被截断", "控制 token", "思考"], signs: "↵ 换行 · 空格 token ⟨E4⟩ 不成字符的字节",
        record: (n) => `第 ${n} 条记录`, sequence: (a, b) => `序列 ${a} / ${b}`, of: (n) => `${number(n)} 个 token`,
        gap: (n) => `…… 此处略去 ${number(n)} 个 token ……`,
        ofAll: (n, total) => `数据中有 ${total} 条，页面收录 ${n} 条`,
        shown: (n, page, total) => `显示 ${number(n)} 条样本；页面收录 ${number(page)} 条，共 ${number(total)} 条。` +
          (page < total ? "收录最前、最长、可疑和多轮的样本，其余按 SEED 随机抽取。" : ""),
        roles: { system: "系统", user: "用户", assistant: "助手", tool: "工具", text: "文本", "": "模板" },
        token: "token", id: "编号", position: "位置", weight: "损失权重", turn: "轮次", more: "再显示一些", none: "没有符合的样本。",
        state: { trained: "参与训练", read: "只读入，不计损失", cut: "被截断，不会发送" }, kinds: data.kinds, left: "已舍弃",
      }
    : {
        title: "Training data preview", samples: "Samples", sequences: "Sequences", tokens: "Tokens", trained: "Trained", cut: "Sequences cut",
        tooLong: "Sequences left out", lost: "Tokens lost", multi: "Multi-turn samples", epoch: "Samples an epoch takes", epochTokens: "Tokens of an epoch",
        epochTrained: "Trained in an epoch", check: "Please check", all: "All", longest: "Longest", cutFilter: "Cut",
        multiFilter: "Multi-turn", suspicious: "Suspicious", search: "Search text or record number (press /)", filters: "Filter",
        legend: ["trained", "only read", "cut", "control token", "thought"], signs: "↵ new line · space token ⟨E4⟩ byte of no character",
        record: (n) => `Record ${n}`, sequence: (a, b) => `Sequence ${a} of ${b}`, of: (n) => `${number(n)} token${n === 1 ? "" : "s"}`,
        gap: (n) => `… ${number(n)} token${n === 1 ? "" : "s"} not shown here …`,
        ofAll: (n, total) => `${n} of the ${total} in the data are on this page`,
        shown: (n, page, total) => `Showing ${number(n)} of the ${number(page)} samples on this page; the data has ${number(total)}. ` +
          (page < total ? "Chosen: the first, the longest, suspicious and multi-turn ones, the others at random by SEED." : ""),
        roles: { system: "system", user: "user", assistant: "assistant", tool: "tool", text: "text", "": "template" },
        token: "Token", id: "id", position: "position", weight: "loss weight", turn: "turn", more: "Show more", none: "No sample matches.",
        state: { trained: "trained", read: "only read: no loss", cut: "cut: not sent" }, kinds: {}, left: "left out",
      };

  const { make, number } = elements;
  const at = (id) => document.getElementById(id);

  // ---- the head of the page
  document.title = `${words.title}: ${data.model}`;
  at("title").textContent = words.title;
  for (const [name, value] of [["BASE_MODEL", data.model], ...Object.entries(data.settings)]) {
    const entry = make("span", "", `${name} `);
    entry.append(make("b", "", String(value)));
    at("settings").append(entry, " ");
  }
  const counts = data.counts;
  const tile = (name, value, note) => {
    at("counts").append(elements.tile(name, number(value), note));
  };
  tile(words.samples, counts.samples);
  tile(words.sequences, counts.sequences);
  tile(words.tokens, counts.tokens);
  tile(words.trained, counts.trained, percent(counts.trained, counts.tokens));
  if (counts.multi_turn) tile(words.multi, counts.multi_turn);
  tile(words.cut, counts.cut);
  if (counts.too_long) tile(words.tooLong, counts.too_long);
  if (counts.lost) tile(words.lost, counts.lost);
  if (data.epoch) { // where DATA_FILES has weights
    tile(words.epoch, data.epoch.samples);
    tile(words.epochTokens, data.epoch.tokens);
    tile(words.epochTrained, data.epoch.trained, percent(data.epoch.trained, data.epoch.tokens));
  }
  if (data.findings.length) {
    const list = make("ul");
    for (const finding of data.findings) list.append(make("li", "", chinese ? finding.zh : finding.en));
    at("findings").append(make("h2", "", words.check), list);
    at("findings").hidden = false;
  }
  ["trained", "", "cut", "control", "thought"].forEach((name, index) => {
    const entry = make("span");
    entry.append(make("span", `t ${name}`, words.legend[index]));
    at("legend").append(entry);
  });
  at("legend").append(make("span", "", words.signs));

  // ---- which samples are shown
  const plain = (text) => text.replaceAll("↵\n", "\n");
  for (const sample of data.samples) {
    sample.text = sample.sequences
      .map((sequence) => sequence.blocks.map((block) => plain(block.texts.join(""))).join(""))
      .join("\n")
      .toLowerCase();
  }
  const filters = [
    ["all", words.all, () => true], ["longest", words.longest, () => true],
    ["cut", words.cutFilter, (sample) => sample.tags.includes("cut")],
    ["multi-turn", words.multiFilter, (sample) => sample.tags.includes("multi-turn")],
    ["suspicious", words.suspicious, (sample) => sample.tags.includes("suspicious")],
  ];
  let filter = "all", limit = 0;
  at("filters").setAttribute("aria-label", words.filters);
  for (const [name, label, passes] of filters) {
    const button = make("button", "", label);
    const count = data.samples.filter(passes).length;
    if (name !== "longest") button.append(make("b", "", number(count)));
    if (name in data.totals && data.totals[name] > count) button.title = words.ofAll(number(count), number(data.totals[name]));
    button.disabled = !count;
    button.addEventListener("click", () => { filter = name; show(); });
    button.dataset.filter = name;
    at("filters").append(button);
  }
  const search = at("search");
  search.placeholder = words.search;
  search.setAttribute("aria-label", words.search);
  search.addEventListener("input", () => show());

  const matches = (sample, query) =>
    !query || (/^#?\d+$/.test(query) && sample.record === Number(query.replace("#", ""))) ||
    sample.text.includes(query) || sample.file.toLowerCase().includes(query);

  const AT_ONCE = 25;
  const many = new Set(data.samples.map((sample) => sample.file)).size > 1;
  function show() {
    for (const button of at("filters").children) button.setAttribute("aria-pressed", String(button.dataset.filter === filter));
    const passes = filters.find(([name]) => name === filter)[2], query = search.value.trim().toLowerCase();
    const list = data.samples.filter((sample) => passes(sample) && matches(sample, query));
    if (filter === "longest") list.sort((a, b) => b.tokens - a.tokens);
    at("shown").textContent = list.length ? words.shown(list.length, data.samples.length, counts.samples) : words.none;
    at("samples").replaceChildren();
    hideInfo();
    limit = 0;
    const more = () => {
      const old = at("more");
      if (old) old.remove();
      list.slice(limit, limit + AT_ONCE).forEach((sample, index) => at("samples").append(card(sample, limit + index < 3)));
      limit += AT_ONCE;
      if (limit < list.length) {
        const button = make("button", "", words.more);
        button.id = "more";
        button.addEventListener("click", more);
        at("samples").append(button);
      }
    };
    more();
  }

  // ---- a sample
  function card(sample, open) {
    const article = make("article"), title = make("h2"), head = make("button", "head"), body = make("div", "body");
    const bar = make("span", "share"), filled = make("i");
    filled.style.width = `${(100 * sample.trained) / Math.max(sample.sent, 1)}%`;
    bar.append(filled);
    const who = make("span", "who");
    who.append(make("span", "arrow"), words.record(number(sample.record)), " ");
    who.append(make("small", "", many ? sample.file : sample.file.split(/[\\/]/).pop()));
    who.title = sample.file;
    head.append(who, make("span", "much", sample.much[chinese ? "zh" : "en"]), bar);
    if (sample.tags.includes("multi-turn")) head.append(make("span", "tag", words.multiFilter));
    if (sample.tags.includes("cut")) head.append(make("span", "tag cut", sample.sent ? words.cutFilter : words.left));
    for (const [kind, detail] of sample.problems) {
      if (!data.ofLength.includes(kind)) head.append(make("span", "tag warn", (words.kinds[kind] || kind).split(/[:：。]/)[0].replace("{}", detail) + (!chinese && detail ? `: ${detail}` : "")));
    }
    const toggle = (now) => {
      head.setAttribute("aria-expanded", String(now));
      body.hidden = !now;
      if (now && !body.firstChild) fill(body, sample);
    };
    head.addEventListener("click", () => toggle(body.hidden));
    title.append(head);
    article.append(title, body);
    toggle(open);
    return article;
  }

  function fill(body, sample) {
    sample.sequences.forEach((sequence, index) => {
      if (sample.sequences.length > 1) {
        body.append(make("h3", "", `${words.sequence(index + 1, sample.sequences.length)} · ${words.of(sequence.tokens)}`));
      }
      let shade = 0;
      for (const block of sequence.blocks) {
        const turn = make("div", "turn"), tokens = make("div", "tokens");
        turn.append(make("div", `role ${block.role}`, words.roles[block.role]), tokens);
        tokens.tabIndex = 0;
        tokens.setAttribute("role", "group");
        tokens.setAttribute("aria-label", `${words.roles[block.role]}: ${words.of(block.ids.flat().length)}`);
        let position = block.start;
        block.texts.forEach((text, place) => {
          const ids = [block.ids[place]].flat(), flags = parseInt(block.flags[place], 16);
          const token = make("span", "t");
          if (flags & 1) token.classList.add("trained");
          if (flags & 2) token.classList.add("cut");
          if (flags & 4) token.classList.add("control");
          if (flags & 8) token.classList.add("thought");
          if (shade++ % 2) token.classList.add("b");
          if (/^[ ↵\n⇥]+$/.test(text)) text = text.replaceAll(" ", "·");
          text.split("↵\n").forEach((line, number) => {
            if (number) token.append(make("i", "", "↵"), "\n");
            if (line) token.append(line);
          });
          token.about = { text, ids, flags, position, role: block.role };
          position += ids.length;
          tokens.append(token);
        });
        body.append(turn);
        if (block.gap) body.append(make("div", "gap", words.gap(block.gap)));
      }
    });
  }

  // ---- a token
  let current = null;
  function hideInfo() {
    if (current) current.classList.remove("on");
    current = null;
    at("info").hidden = true;
  }
  function showInfo(token) {
    if (current) current.classList.remove("on");
    current = token;
    token.classList.add("on");
    const { text, ids, flags, position, role } = token.about;
    const state = flags & 2 ? words.state.cut : flags & 1 ? words.state.trained : words.state.read;
    at("info").replaceChildren();
    for (const [name, value] of [
      [words.token, text.replaceAll("\n", "")], [words.id, ids.join(" ")],
      [words.position, ids.length > 1 ? `${position}–${position + ids.length - 1}` : position],
      [words.weight, flags & 2 ? "–" : flags & 1 ? "1" : "0"], [words.turn, words.roles[role]],
    ]) {
      const entry = make("span", "", `${name} `);
      entry.append(make("b", "", String(value)));
      at("info").append(entry);
    }
    at("info").append(make("span", "", state));
    at("info").hidden = false;
  }
  const tokenOf = (event) => (event.target.closest ? event.target.closest("#samples .t") : null);
  at("samples").addEventListener("pointerover", (event) => { const token = tokenOf(event); if (token) showInfo(token); });
  at("samples").addEventListener("click", (event) => { const token = tokenOf(event); if (token) showInfo(token); });
  at("samples").addEventListener("focusin", (event) => {
    if (event.target.classList.contains("tokens") && event.target.matches(":focus-visible") && event.target.firstChild) showInfo(event.target.firstChild);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== search) { event.preventDefault(); search.focus(); return; }
    if (event.key === "Escape") { hideInfo(); return; }
    const box = event.target.classList && event.target.classList.contains("tokens") ? event.target : null;
    if (!box) return;
    const here = current && current.parentNode === box ? current : null;
    const next = {
      ArrowRight: here ? here.nextElementSibling : box.firstElementChild, ArrowLeft: here && here.previousElementSibling,
      Home: box.firstElementChild, End: box.lastElementChild,
    }[event.key];
    if (next) { event.preventDefault(); showInfo(next); next.scrollIntoView({ block: "nearest" }); }
  });
  show();
})();
