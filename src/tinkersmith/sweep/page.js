"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const spaced = (text) => (/^[\x20-\x7e]+$/.test(text) ? ` ${text} ` : text); // Latin words within Chinese
  const WORDS = {
    en: {
      about: (d) => `${d.created} · ${d.combinations} combinations of ${d.grid} · compared by ${d.by_title}`,
      runs: "Runs", runsNote: (d) => `${d.finished} to the end, ${d.stopped} stopped early, ${d.lost} failed or diverged`,
      best: "Best", value: "Its value", steps: "Steps trained", stepsNote: (d) => `of ${d.all_steps.toLocaleString("en")} that all need`,
      optimism: "Too good by", optimismNote: "because it is the best of several",
      scores: (by, title) => `${title} of each combination, with 95 % intervals`, lower: "lower is better", higher: "higher is better",
      table: "All combinations", sortHint: "Sort by a click on a heading. The boxes choose the curves below. p allows for all pairs of combinations (Holm), intervals do not.",
      place: "Place", show: "Curve", against: "Against the best", verdict: "Verdict", seedSpread: "Spread of seeds", status: "Status",
      stepsColumn: "Steps", seconds: "Seconds", run: "Run", worse: "worse", noise: "may be noise", seeds: "may be noise (seeds)",
      isBest: "best", unknown: "not compared",
      finished: "finished", stopped: "stopped by halving", diverged: "diverged", failed: "failed", waiting: "waiting", paused: "paused", interrupted: "interrupted",
      curves: "Curves", training: "Training loss", faint: "Curves that are not chosen are faint.",
      effects: "Which setting matters", effectsHint: (rung) => `Mean over the combinations with each value${rung}. The bar is the share of all differences that the setting explains alone; with few combinations it is a hint, not a proof.`,
      rung: " at the first rung, which all reached", explains: (share) => `explains ${share} %`, of: (n) => `n = ${n}`,
      next: "Go on", measure: "Measure the best run on questions that no run was compared by", export: "Export it", copy: "Copy", copied: "Copied", notCopied: "Not copied", step: "step", soFar: (d) => `So far: ${d.runs.length - d.left} of ${d.runs.length} runs have ended, and this page is written again after each.`,
    },
    zh: {
      about: (d) => `${d.created} · ${d.grid} 的 ${d.combinations} 种组合 · 按${spaced(d.by_title)}比较`,
      runs: "运行", runsNote: (d) => `${d.finished} 个训练到底，${d.stopped} 个提前停止，${d.lost} 个失败或发散`,
      best: "最佳", value: "它的值", steps: "训练步数", stepsNote: (d) => `全部训练需要 ${d.all_steps.toLocaleString("en")} 步`,
      optimism: "乐观偏差", optimismNote: "因为它是从多个中挑出的最佳",
      scores: (by) => `各组合的${spaced(by)}及 95 % 区间`, lower: "越低越好", higher: "越高越好",
      table: "所有组合", sortHint: "点击表头排序。勾选框决定下面显示哪些曲线。p 值已针对所有组合对校正（Holm），区间没有。",
      place: "名次", show: "曲线", against: "与最佳相比", verdict: "结论", seedSpread: "种子间的标准差", status: "状态",
      stepsColumn: "步数", seconds: "秒", run: "运行", worse: "更差", noise: "可能是噪声", seeds: "可能是噪声（种子）",
      isBest: "最佳", unknown: "未比较",
      finished: "完成", stopped: "被逐次减半停止", diverged: "发散", failed: "失败", waiting: "等待", paused: "暂停", interrupted: "中断",
      curves: "曲线", training: "训练损失", faint: "未勾选的曲线显示为浅色。",
      effects: "哪个设置重要", effectsHint: (rung) => `每个取值下各组合的平均值${rung}。横条是该设置单独解释的差异份额；组合很少时只是提示，不是证明。`,
      rung: "（在所有组合都到达的第一级）", explains: (share) => `解释 ${share} %`, of: (n) => `n = ${n}`,
      next: "接下来", measure: "在没有参与比较的问题上测量最佳运行", export: "导出它", copy: "复制", copied: "已复制", notCopied: "未能复制", step: "步", soFar: (d) => `目前：${d.runs.length} 个运行中已有 ${d.runs.length - d.left} 个结束，每结束一个就重写本页。`,
    },
  };
  const words = WORDS[document.documentElement.lang.startsWith("zh") ? "zh" : "en"];
  const at = (id) => document.getElementById(id);
  const { make, svg, swatch, themeButton } = elements;
  const heading = (id, text) => { at(id).querySelector("h2").textContent = text; };
  const byTitle = data.by_title[0].toUpperCase() + data.by_title.slice(1);
  const byUnit = data.percent ? `${byTitle} (%)` : byTitle;

  // ---- the headline

  const best = data.rows.find((row) => row.place === 1);
  document.querySelector("h1").textContent = data.name;
  document.querySelector(".theme-place").append(themeButton());
  at("about").textContent = words.about(data);
  at("verdict").textContent = data.left ? `${words.soFar(data)} ${best ? data.verdict : ""}` : data.verdict;
  const tile = (...content) => at("tiles").append(elements.tile(...content));
  tile(words.runs, String(data.runs.length), words.runsNote(data));
  if (best) {
    tile(words.best, "");
    const content = at("tiles").lastChild.lastChild;
    for (const setting of data.settings) content.append(make("small", "", setting, make("b", "", best.values[setting])));
    tile(words.value, best.amount, best.ends);
  }
  tile(words.steps, data.steps.toLocaleString("en"), data.steps < data.all_steps ? words.stepsNote(data) : "");
  if (data.optimism) tile(words.optimism, data.optimism, words.optimismNote);

  // ---- values with their intervals

  const ranked = data.rows.filter((row) => row.place);
  // A loss that shot up would squeeze all others into a line: it is named, and drawn on request.
  const ordered = ranked.map((row) => row.mean).sort((a, b) => a - b);
  const [lowest, middle] = [ordered[0], ordered[Math.floor((ordered.length - 1) / 2)]];
  const isFar = (row) => data.lower && ordered.length > 2 && row.mean > 5 * lowest && row.mean - lowest > 10 * (middle - lowest);
  const settings = data.settings.join(" · "); // the charts name combinations by their values
  heading("scores-card", words.scores(data.by_title, byTitle));
  charts.intervals(at("scores"), {
    label: `${settings} (${data.lower ? words.lower : words.higher})`,
    rows: ranked.map((row) => ({ name: row.short, value: row.mean, low: row.low, high: row.high, n: row.n, text: row.amount, color: row.whole ? 0 : 7, far: isFar(row) })),
    percent: data.percent,
    ...(best ? { reference: best.mean } : {}),
  });
  for (const sentence of data.limits) at("limits").append(make("li", "", sentence));

  // ---- the curves; the table's boxes choose them

  const chosen = new Set(ranked.filter((row) => !isFar(row)).slice(0, 5).map((row) => row.combination));
  const colours = new Map(data.rows.map((row, index) => [row.combination, index % 8]));
  const series = (curve) => {
    const picked = [], faint = [];
    for (const row of data.rows) {
      for (const run of data.runs.filter((one) => one.combination === row.combination)) {
        if (!run[curve].length) continue;
        const name = data.seeds > 1 ? `${row.short} (${run.seed})` : row.short;
        const points = data.percent && curve === "measured" ? run[curve].map(([x, y]) => [x, y === null ? y : 100 * y]) : run[curve];
        const one = { name, points, color: colours.get(row.combination) };
        if (chosen.has(row.combination)) picked.push(one);
        else if (row.place && !isFar(row)) faint.push({ ...one, kind: "faint" }); // neither has a diverged one a place
      }
    }
    return [...faint, ...picked];
  };
  const spec = (curve, label) => ({ label, x: words.step, height: 260, series: series(curve) });
  heading("curves-card", words.curves);
  const measured = charts.lines(at("measured"), spec("measured", byUnit));
  const losses = charts.lines(at("losses"), spec("losses", words.training));
  for (const sentence of data.damaged) at("curves-card").append(make("p", "notice", sentence));
  at("curves-card").append(make("p", "soft", `${settings}${data.seeds > 1 ? " (SEED)" : ""}${elements.chinese() ? "。" : ". "}${words.faint}`));
  const redraw = () => { measured.update(spec("measured", byUnit)); losses.update(spec("losses", words.training)); };

  // ---- the table

  const verdict = (row) => {
    if (!row.whole) return words[row.status];
    if (row.place === 1) return words.isBest;
    if (!row.difference) return row.place ? words.unknown : words[row.status];
    if (row.difference.shown) return words.worse;
    return row.difference.seeds_alone ? words.seeds : words.noise;
  };
  const number = (value) => (value === null || value === undefined ? Infinity : value);
  const columns = [
    { title: words.place, key: (row) => number(row.place), text: (row) => (row.place ? String(row.place) : "–") },
    ...data.settings.map((setting) => ({ title: setting, key: (row) => row.sort[setting], text: (row) => row.values[setting] })),
    { title: byTitle, key: (row) => number(row.mean), text: (row) => row.amount || "–", more: (row) => row.ends, number: true },
    { title: words.verdict, key: verdict, text: verdict },
    { title: words.against, key: (row) => (row.place === 1 ? 0 : number(row.difference && row.difference.mean)), text: (row) => (row.difference ? row.difference.amount : ""), more: (row) => (row.difference ? row.difference.ends : ""), number: true },
    ...(data.seeds > 1 ? [{ title: words.seedSpread, key: (row) => number(row.spread), text: (row) => row.spread_text || "–", number: true }] : []),
    { title: words.stepsColumn, key: (row) => row.steps, text: (row) => row.steps_text, number: true },
    { title: words.seconds, key: (row) => row.seconds, text: (row) => row.seconds.toFixed(1), number: true },
    { title: words.run, key: (row) => row.folders.join(" "), text: (row) => row.folders.join(", ") },
  ];
  let sorted = 0, falling = false;
  const table = at("table");
  const body = make("tbody");
  const fill = () => {
    const { key } = columns[sorted];
    const order = [...data.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      if (x === Infinity || y === Infinity) return x === y ? 0 : less; // what has no value stays last
      return falling ? -less : less;
    });
    body.replaceChildren(...order.map((row) => {
      const line = make("tr", row.place === 1 ? "best" : row.whole ? "" : "out");
      const box = make("input", { type: "checkbox", checked: chosen.has(row.combination), "aria-label": `${words.show}: ${row.label}` });
      box.addEventListener("change", () => {
        if (box.checked) chosen.add(row.combination); else chosen.delete(row.combination);
        redraw();
      });
      line.append(make("td", { "data-title": words.show }, make("label", "", box, swatch(colours.get(row.combination)))));
      for (const column of columns) {
        const more = column.more && column.more(row);
        line.append(make("td", { className: column.number ? "number" : "", "data-title": column.title }, column.text(row), more ? make("small", "", more) : null));
      }
      return line;
    }));
    [...table.querySelectorAll("th[data-column]")].forEach((head, index) => {
      if (index === sorted) head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };
  const heads = make("tr", "", make("th", "", words.show));
  columns.forEach((column, index) => {
    const button = make("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      falling = sorted === index ? !falling : false;
      sorted = index;
      fill();
    });
    heads.append(make("th", { className: column.number ? "number" : "", scope: "col", "data-column": index }, button));
  });
  table.append(make("thead", "", heads), body);
  heading("table-card", words.table);
  at("table-card").querySelector("p").textContent = words.sortHint;
  at("table-card").querySelector(".scroll").setAttribute("aria-label", words.table);
  fill();

  for (const row of data.rows.filter((one) => one.reason)) at("reasons").append(make("li", "", `${row.label}: ${verdict(row)}. ${row.reason}`));

  // ---- which setting matters

  if (data.effects.length) {
    heading("effects-card", words.effects);
    at("effects-card").querySelector("p").textContent = words.effectsHint(data.halved ? words.rung : "");
    const scale = data.percent ? 100 : 1;
    for (const effect of data.effects) {
      const share = Math.round(100 * effect.share);
      const bar = svg("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { x: 0, y: 0, width: share, height: 1 }));
      const figure = make("figure");
      at("effects").append(make("div", "effect", make("h3", "", `${effect.setting} · ${words.explains(share)}`), make("div", "share", bar), figure));
      charts.intervals(figure, {
        label: "",
        rows: effect.levels.map((level) => ({ name: `${level.value} (${words.of(level.n)})`, value: scale * level.mean, text: level.text })),
        range: data.effect_range.map((end) => scale * end),
      });
    }
  } else at("effects-card").remove();

  // ---- the commands to go on with

  if (data.commands.length) {
    heading("next-card", words.next);
    for (const [kind, command] of data.commands) {
      const button = make("button", { type: "button" }, words.copy);
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(command);
          button.textContent = words.copied;
        } catch { // a browser may refuse it to a page that comes from a file
          button.textContent = words.notCopied;
        }
      });
      at("next").append(make("p", "soft", words[kind]), make("div", "command", make("code", "", command), button));
    }
  } else at("next-card").remove();
})();
