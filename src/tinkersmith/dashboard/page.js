"use strict";
(() => {
  const start = JSON.parse(document.getElementById("data").textContent);
  const WORDS = {
    en: {
      runs: "Runs", curves: "Curves", settings: "Settings", differ: "Settings that differ", answers: "Answers",
      log: "Log", engine: "Engine", filter: "Filter by name or model", all: "all states",
      name: "Run", state: "State", step: "Step", loss: "Loss", best: "Best", rate: "Tokens/s", left: "Left", seen: "Last change", model: "Base model",
      running: "running", finished: "finished", interrupted: "interrupted", diverged: "diverged", "stopped early": "stopped early", damaged: "damaged",
      live: "live", gone: "not connected", connecting: "connecting",
      goneText: "The dashboard does not answer. If it has ended, start it again and open the address that it prints.",
      hint: (most) => `Choose a name to see one run. Tick more, up to ${most}, to lay their curves over each other.`,
      none: "There are no runs yet. They appear here as soon as training starts.", noMatch: "No run matches.",
      logScale: "log scale", smooth: "smooth", smoothing: ["off", "some", "strong"],
      train: "training", validation: "validation", epochMean: "mean of the epoch", bestMark: "best",
      charts: { loss: "Loss per completion token", learning_rate: "Learning rate", grad_norm: "Gradient norm", tokens_per_second: "Tokens per second" },
      meanTokens: "Tokens of an answer",
      noRun: "Choose a run above.", same: "These runs have the same settings.", setting: "Setting", report: "Report",
      allSettings: (count) => `All ${count} settings`,
      noAnswers: "No answers yet. The answers of each measurement appear here if the run has EVAL_FILES; the answer to a training sample comes at the end.",
      prompt: "Prompt", expected: "Expected", final: "At the end", atStep: (step, epoch) => `Step ${step}${epoch ? `, epoch ${epoch}` : ""}`,
      allAnswers: (count) => `All ${count} answers`,
      noLog: "No lines yet.", damagedLines: (count) => `${count} damaged ${count === 1 ? "line" : "lines"} of metrics.jsonl left out.`,
      noEngine: "No engine runs in this folder. Runs in the cloud have none here.",
      ready: "ready", loading: "loading", waiting: "Waiting jobs", runningJobs: "Running jobs", sequences: "Sequences sampled now",
      memory: "Memory", trained: "Tokens trained", sampled: "Tokens sampled", clients: "Clients", perSecond: "/s", training: "training", sampling: "sampling",
      bases: "base models", adapters: "adapters", rest: "the rest of the process", gpu: "GPU", of: "of", used: "used", spilled: "on disk",
      client: "Client", job: "Jobs", failed: "failed", process: "process", remove: "Remove",
      ago: (text) => `${text} ago`, now: "now",
    },
    zh: {
      runs: "训练", curves: "曲线", settings: "设置", differ: "不同的设置", answers: "回答",
      log: "日志", engine: "引擎", filter: "按名称或模型筛选", all: "所有状态",
      name: "训练", state: "状态", step: "步", loss: "损失", best: "最佳", rate: "token/秒", left: "剩余", seen: "最近变化", model: "基座模型",
      running: "进行中", finished: "已完成", interrupted: "已中断", diverged: "已发散", "stopped early": "提前停止", damaged: "已损坏",
      live: "实时", gone: "未连接", connecting: "正在连接",
      goneText: "面板没有响应。如果它已结束，请重新启动，并打开它打印的地址。",
      hint: (most) => `点击名称查看一次训练；勾选多个（最多 ${most} 个）可叠加比较曲线。`,
      none: "还没有训练。训练一开始就会出现在这里。", noMatch: "没有匹配的训练。",
      logScale: "对数坐标", smooth: "平滑", smoothing: ["关", "弱", "强"],
      train: "训练", validation: "验证", epochMean: "epoch 平均", bestMark: "最佳",
      charts: { loss: "每个输出 token 的损失", learning_rate: "学习率", grad_norm: "梯度范数", tokens_per_second: "每秒 token 数" },
      meanTokens: "每个回答的 token 数",
      noRun: "请在上面选择训练。", same: "这些训练的设置相同。", setting: "设置", report: "报告",
      allSettings: (count) => `全部 ${count} 项设置`,
      noAnswers: "还没有回答。设置了 EVAL_FILES 时，每次评测的回答会显示在这里；对训练样本的回答在结束时出现。",
      prompt: "提示", expected: "期望", final: "结束时", atStep: (step, epoch) => `第 ${step} 步${epoch ? `，第 ${epoch} 个 epoch` : ""}`,
      allAnswers: (count) => `全部 ${count} 个回答`,
      noLog: "还没有日志。", damagedLines: (count) => `metrics.jsonl 有 ${count} 行损坏，已略过。`,
      noEngine: "这个文件夹里没有正在运行的引擎。云端训练在这里没有引擎。",
      ready: "就绪", loading: "加载中", waiting: "等待的任务", runningJobs: "运行的任务", sequences: "正在采样的序列",
      memory: "内存", trained: "已训练 token", sampled: "已采样 token", clients: "客户端", perSecond: "/秒", training: "训练", sampling: "采样",
      bases: "基座模型", adapters: "adapter", rest: "进程其余部分", gpu: "GPU", of: "/", used: "已用", spilled: "在磁盘上",
      client: "客户端", job: "任务", failed: "失败", process: "进程", remove: "移除",
      ago: (text) => `${text}前`, now: "刚刚",
    },
  };
  const chinese = start.language === "zh", words = WORDS[chinese ? "zh" : "en"];
  const by = (id) => document.getElementById(id);
  const { make, metricName, swatch, table, tile, themeButton } = elements;

  // ---- numbers as people read them

  const whole = (value) => Math.round(value).toLocaleString("en");
  const size = (bytes) => {
    const units = ["B", "KB", "MB", "GB", "TB"];
    let value = bytes, unit = 0;
    while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit++; }
    return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
  };
  const duration = (seconds) => {
    if (seconds === null || seconds === undefined) return "";
    const parts = chinese ? [[86400, "天"], [3600, "小时"], [60, "分钟"], [1, "秒"]] : [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    for (const [length, unit] of parts) if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
    return `0 ${parts[3][1]}`;
  };
  let clock = 0; // of the server, minus ours, in seconds
  const ago = (time) => {
    const seconds = Date.now() / 1000 + clock - time;
    return seconds < 5 ? words.now : words.ago(duration(seconds));
  };

  // ---- what is known, and what is shown

  const rows = new Map(), shown = new Map(); // by name of the run
  let engines = [], earlier = [], chosen = [], focus = null, picked = false, source = null, retry = 0;
  const colours = new Map(); // of the chosen runs
  const colour = (name) => {
    if (!colours.has(name)) {
      const taken = new Set(colours.values());
      colours.set(name, [0, 1, 2, 3, 4, 5, 6, 7].find((index) => !taken.has(index)) ?? 0);
    }
    return colours.get(name);
  };
  const fromAddress = () => location.hash.slice(1).split(",").filter(Boolean).map((name) => {
    try { return decodeURIComponent(name); } catch { return name; }
  });
  const choose = (names, byHand = true) => {
    picked = picked || byHand;
    chosen = names.slice(0, start.mostShown);
    for (const name of [...colours.keys()]) if (!chosen.includes(name)) colours.delete(name);
    for (const name of [...shown.keys()]) if (!chosen.includes(name)) shown.delete(name);
    chosen.forEach(colour);
    if (!chosen.includes(focus)) focus = chosen[0] ?? null;
    history.replaceState(null, "", `${location.pathname}${picked && chosen.length ? `#${chosen.map(encodeURIComponent).join(",")}` : ""}`);
    connect();
    drawRows();
    drawShown();
  };

  // ---- the stream

  const connect = () => {
    if (source) source.close();
    clearTimeout(retry);
    const stream = new EventSource(`events?${chosen.map((name) => `run=${encodeURIComponent(name)}`).join("&")}`);
    source = stream;
    let begun = false;
    stream.onopen = () => {
      begun = true;
      rows.clear();
      shown.clear();
      by("notice").hidden = true;
      say("live");
    };
    stream.onmessage = (event) => take(JSON.parse(event.data));
    stream.onerror = () => {
      if (stream !== source) return;
      say("gone");
      by("notice").textContent = words.goneText;
      by("notice").hidden = false;
      if (stream.readyState === EventSource.CLOSED || !begun) { // the browser does not try again by itself
        stream.close();
        retry = setTimeout(connect, 3000);
      }
    };
  };
  const say = (state) => {
    by("connection").className = state;
    by("connection").textContent = words[state];
  };

  const take = (news) => {
    clock = news.now - Date.now() / 1000;
    const dirty = new Set();
    if (news.rows) {
      for (const row of news.rows) rows.set(row.name, row);
      for (const name of news.gone) rows.delete(name);
      const newest = [...rows.values()].sort((a, b) => b.started - a.started)[0];
      // Until the user chooses, the newest run is shown.
      if (newest && !picked && chosen[0] !== newest.name) { choose([newest.name], false); return; }
      drawRows();
      dirty.add("focus");
    }
    for (const [name, what] of Object.entries(news.shown || {})) {
      const view = shown.get(name) || { curves: {}, lines: [], details: null };
      shown.set(name, view);
      for (const [curve, change] of Object.entries(what.curves || {})) {
        const old = view.curves[curve] || { points: [], means: [] };
        const kept = (points) => (change.from === null ? [] : points.filter((point) => point[0] < change.from));
        const points = kept(old.points).concat(change.points);
        view.curves[curve] = { points, means: change.means ? kept(old.means).concat(change.means) : points };
        if (!points.length) delete view.curves[curve];
        dirty.add("curves");
      }
      if (what.log) {
        if (what.log.restarted) view.lines = [];
        view.lines = view.lines.concat(what.log.lines).slice(-400);
        if (name === focus) dirty.add("log");
      }
      if (what.details) {
        view.details = what.details;
        dirty.add("curves").add("settings");
        if (name === focus) dirty.add("answers").add("log"); // the log begins with what is damaged
      }
    }
    if (news.engines) {
      earlier = engines;
      engines = news.engines;
      drawEngines();
    }
    if (dirty.has("curves")) drawCharts();
    if (dirty.has("settings")) drawSettings();
    if (dirty.has("answers")) drawAnswers();
    if (dirty.has("log")) drawLog();
    if (dirty.has("focus")) drawFocus();
  };

  // ---- the list of runs

  const COLUMNS = [
    { key: "name", sort: (row) => row.name }, { key: "state", sort: (row) => row.state },
    { key: "step", number: true, sort: (row) => row.step }, { key: "loss", number: true, sort: (row) => row.loss ?? Infinity },
    { key: "best", number: true, sort: (row) => row.best?.value ?? -Infinity },
    { key: "rate", number: true, wider: true, sort: (row) => row.rate ?? -1 }, { key: "left", number: true, wider: true, sort: (row) => row.left ?? -1 },
    { key: "seen", number: true, wider: true, sort: (row) => row.seen }, { key: "model", wider: true, sort: (row) => row.model },
  ];
  let order = "started", ascending = false;
  const drawHeads = () => {
    by("heads").replaceChildren(make("th", {}), ...COLUMNS.map((column) => make(
      "th",
      { class: [column.number && "number", column.wider && "wider"].filter(Boolean).join(" ") || null, "aria-sort": order === column.key ? (ascending ? "ascending" : "descending") : null },
      make("button", { type: "button", onclick: () => {
        if (order !== column.key) { order = column.key; ascending = ["name", "state", "loss", "model"].includes(order); } else ascending = !ascending;
        drawHeads();
        drawRows();
      } }, words[column.key]),
    )));
  };
  const drawn = new Map(); // name -> the row's object and element
  const badge = (state) => make("span", { class: `state ${state.split(" ")[0]}` }, words[state] || state);
  const rowElement = (row) => {
    const tick = make("input", { type: "checkbox", "aria-label": row.name, onchange: () => {
      const others = chosen.filter((name) => name !== row.name);
      choose(tick.checked ? [...others, row.name] : others);
    } });
    const share = row.total ? Math.min(row.step / row.total, 1) : 0;
    const bar = make("span", {});
    bar.style.width = `${100 * share}%`;
    const best = row.best ? [start.inPercent.includes(row.best.by) ? `${charts.short(100 * row.best.value)} %` : charts.short(row.best.value), make("small", {}, metricName(row.best.by))] : [];
    const cells = row.problem
      ? [make("td", { class: "problem", colspan: 7 }, row.problem)]
      : [
          make("td", { class: "number" }, `${whole(row.step)} `, make("span", { class: "total" }, `/ ${whole(row.total)}`), make("span", { class: "progress", "aria-hidden": "true" }, bar)),
          make("td", { class: "number" }, row.loss === null ? "–" : charts.short(row.loss)),
          make("td", { class: "number best" }, ...best),
          make("td", { class: "number wider" }, row.rate === null ? "" : whole(row.rate)),
          make("td", { class: "number wider" }, duration(row.left)),
          make("td", { class: "number wider", "data-time": row.seen }, ago(row.seen)),
          make("td", { class: "wider" }, row.model.split("/").pop()),
        ];
    return make("tr", {}, make("td", {}, tick), make("td", { class: "name" }, make("button", { type: "button", onclick: () => choose([row.name]) }, row.name)), make("td", {}, badge(row.state)), ...cells);
  };
  const drawRows = () => {
    const filter = by("filter").value.trim().toLowerCase(), state = by("state").value;
    const key = COLUMNS.find((column) => column.key === order)?.sort || ((row) => row.started);
    const visible = [...rows.values()]
      .filter((row) => (!state || row.state === state) && (!filter || `${row.name} ${row.model}`.toLowerCase().includes(filter)))
      .sort((a, b) => { const [x, y] = [key(a), key(b)]; return (x < y ? -1 : x > y ? 1 : a.name < b.name ? -1 : 1) * (ascending ? 1 : -1); });
    const body = by("rows"), elements = visible.map((row) => {
      let known = drawn.get(row.name);
      if (!known || known.row !== row) drawn.set(row.name, (known = { row, element: rowElement(row) }));
      known.element.classList.toggle("shown", chosen.includes(row.name));
      known.element.querySelector("input").checked = chosen.includes(row.name);
      return known.element;
    });
    // Only what moved is touched: a button keeps its focus while others change.
    elements.forEach((element, index) => { if (body.children[index] !== element) body.insertBefore(element, body.children[index] || null); });
    while (body.children.length > elements.length) body.lastChild.remove();
    for (const name of [...drawn.keys()]) if (!rows.has(name)) drawn.delete(name);
    by("runs-title").textContent = `${words.runs} (${visible.length === rows.size ? whole(rows.size) : `${whole(visible.length)} / ${whole(rows.size)}`})`;
    by("hint").textContent = !rows.size ? words.none : visible.length ? words.hint(start.mostShown) : words.noMatch;
  };
  setInterval(() => {
    for (const cell of document.querySelectorAll("[data-time]")) cell.textContent = ago(Number(cell.dataset.time));
  }, 5000);

  // ---- curves

  const drawnCharts = new Map(); // title -> { element, chart }
  const smoothed = (points) => {
    const strength = Number(by("smooth").value);
    if (!strength || points.length < 3) return points;
    const half = ((points[points.length - 1][0] - points[0][0]) / 100) * strength * strength; // in steps
    let value = null, before = 0;
    return points.map(([x, y]) => {
      if (y === null) return [x, null];
      const weight = value === null ? 0 : 0.5 ** ((x - before) / Math.max(half, 1e-9));
      value = value === null ? y : weight * value + (1 - weight) * y;
      before = x;
      return [x, Number(value.toPrecision(6))];
    });
  };
  const drawCharts = () => {
    const specs = [], several = chosen.length > 1, log = by("log").checked;
    const named = (name, what) => (several ? (what ? `${name} · ${what}` : name) : what || name);
    const best = chosen.length === 1 ? shown.get(chosen[0])?.details?.best : null;
    const marks = best ? [{ x: best.step, label: words.bestMark }] : [];
    // With one run, a curve is named for what it is; with several, for its run.
    const line = (name, curve, what) => {
      const data = shown.get(name)?.curves[curve];
      if (!data) return [];
      // What is noisy by nature is smoothed; a learning rate is what it is.
      const smooth = ["loss", "grad_norm"].includes(curve) ? smoothed(data.means) : data.means;
      if (smooth === data.means) return [{ name: named(name, what), points: data.points, color: colour(name) }];
      return [{ name, points: data.points, kind: "faint", color: colour(name) }, { name: named(name, what), points: smooth, color: colour(name) }];
    };
    const dots = (name, curve, what) => {
      const data = shown.get(name)?.curves[curve];
      return data ? [{ name: named(name, what), points: data.points, kind: "dots", color: several ? colour(name) : 1 }] : [];
    };
    specs.push({ key: "loss", label: words.charts.loss, log, marks, series: chosen.flatMap((name) => [...line(name, "loss", words.train), ...dots(name, "validation_loss", words.validation)]) });
    // The score that decides which checkpoint is the best comes first.
    const deciding = new Set(chosen.map((name) => `eval/${shown.get(name)?.details?.best?.by}`));
    const rank = (score) => (deciding.has(score) ? 0 : score === "eval/final_answer" ? 1 : score === "eval/mean_tokens" ? 3 : 2);
    const scores = [...new Set(chosen.flatMap((name) => Object.keys(shown.get(name)?.curves || {}).filter((key) => key.startsWith("eval/"))))].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
    for (const score of scores) {
      const label = metricName(score.slice(5));
      specs.push({ key: score, label: score === "eval/mean_tokens" ? words.meanTokens : label, marks, percent: start.inPercent.includes(score.slice(5)), series: chosen.flatMap((name) => dots(name, score, several ? "" : label).map((one) => ({ ...one, color: colour(name) }))) });
    }
    for (const key of ["learning_rate", "grad_norm", "tokens_per_second"]) specs.push({ key, label: words.charts[key], series: chosen.flatMap((name) => line(name, key, several ? "" : words.charts[key])) });
    const wanted = specs.filter((spec) => spec.key === "loss" || spec.series.length);
    const steps = chosen.flatMap((name) => shown.get(name)?.curves.loss?.points.map((point) => point[0]) || []);
    const span = steps.length ? [Math.min(...steps), Math.max(...steps)] : []; // so that all curves have one scale
    const box = by("charts");
    for (const [key, known] of [...drawnCharts]) if (!wanted.some((spec) => spec.key === key)) { known.element.remove(); drawnCharts.delete(key); }
    wanted.forEach((spec, index) => {
      const full = { ...spec, span, x: words.step, height: 230 };
      const known = drawnCharts.get(spec.key);
      if (known) { known.chart.update(full); if (box.children[index] !== known.element) box.insertBefore(known.element, box.children[index] || null); return; }
      const element = make("div", { "data-chart": spec.key });
      box.insertBefore(element, box.children[index] || null);
      drawnCharts.set(spec.key, { element, chart: charts.lines(element, full) });
    });
  };
  const swatchOf = (name) => swatch(colour(name), chosen.length > 1); // as charts.lines draws it
  const drawChosen = () => {
    by("chosen").replaceChildren(...(chosen.length ? chosen.map((name) => make("span", { class: "chip" }, swatchOf(name), name, make("button", { type: "button", "aria-label": `${words.remove} ${name}`, onclick: () => choose(chosen.filter((one) => one !== name)) }, "✕"))) : [make("span", { class: "soft" }, words.noRun)]));
  };

  // ---- settings

  const drawSettings = () => {
    // A damaged run has no settings that could differ: its problem is said elsewhere.
    const known = chosen.filter((name) => Object.keys(shown.get(name)?.details?.settings || {}).length);
    by("settings-card").hidden = !known.length;
    if (!known.length) return;
    const all = known.map((name) => shown.get(name).details.settings);
    const names = [...new Set(all.flatMap((settings) => Object.keys(settings)))];
    const several = known.length > 1;
    const differing = names.filter((name) => new Set(all.map((settings) => settings[name])).size > 1);
    const listed = (list) => make("table", { class: "differs" },
      make("thead", {}, make("tr", {}, make("th", {}, words.setting), ...known.map((name) => make("th", {}, swatchOf(name), " ", name)))),
      make("tbody", {}, ...list.map((name) => make("tr", {}, make("th", { scope: "row" }, elements.settingName(name)), ...all.map((settings) => make("td", {}, settings[name] ?? "–"))))));
    by("settings-title").textContent = several ? words.differ : words.settings;
    const open = by("settings").querySelector("details")?.open;
    const rest = make("details", { open }, make("summary", {}, words.allSettings(names.length)), listed(names));
    by("settings").replaceChildren(...(several ? [differing.length ? listed(differing) : make("p", { class: "soft" }, words.same)] : []), rest);
  };

  // ---- answers and log of one run

  const drawFocus = () => {
    by("focus-card").hidden = focus === null;
    if (focus === null) return;
    const row = rows.get(focus);
    by("focus-title").textContent = focus;
    const buttons = chosen.length > 1 ? chosen.map((name) => make("button", { type: "button", "aria-pressed": String(name === focus), onclick: () => { focus = name; drawFocus(); drawAnswers(); drawLog(); } }, name)) : [];
    const link = row?.report ? make("a", { href: `report/${encodeURIComponent(focus)}`, target: "_blank", rel: "noopener" }, words.report) : null;
    const held = document.activeElement?.closest?.("#focus") ? document.activeElement.textContent : null;
    by("focus").replaceChildren(...buttons, ...(row ? [badge(row.state)] : []), ...(link ? [link] : []));
    if (held) [...by("focus").querySelectorAll("button, a")].find((one) => one.textContent === held)?.focus();
  };
  const inFull = new Set(); // questions of which all answers are shown
  const drawAnswers = () => {
    const details = shown.get(focus)?.details, answers = details?.answers || [];
    const groups = new Map();
    for (const answer of answers) {
      const key = JSON.stringify([answer.source, answer.prompt]);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(answer);
    }
    const open = new Map([...by("answers").querySelectorAll("details")].map((one) => [one.dataset.key, one.open]));
    const parts = [...groups].map(([key, list], index) => {
      // A prompt often ends with a label such as "Response:", which tells nothing.
      const first = list[0], told = first.prompt.trim().split("\n").filter((text) => text.trim() && !/[:：]\s*$/.test(text)).pop();
      const title = told || first.prompt.trim() || first.source;
      // Of each epoch the last measurement, unless all are asked for.
      const ofEpochs = list.filter((answer, index) => answer.final || !list.slice(index + 1).some((later) => !later.final && later.epoch === answer.epoch));
      const isWhole = inFull.has(`${focus} ${key}`) || list.length <= 6;
      const entries = (isWhole ? list : ofEpochs).map((answer) => [
        make("dt", {}, answer.final ? words.final : words.atStep(whole(answer.step ?? 0), answer.epoch)),
        make("dd", {}, answer.answers.join("\n\n"), ...Object.entries(answer.scores).map(([name, value]) => make("span", { class: "soft" }, `  ${metricName(name)} ${charts.short(value)}`))),
      ]);
      return make("details", { class: "asked", "data-key": key, open: open.get(key) ?? index < 1 },
        make("summary", {}, title.length > 110 ? `…${title.slice(-110)}` : title, make("span", { class: "soft" }, `  ${first.source}`)),
        make("dl", {}, make("dt", {}, words.prompt), make("dd", { class: "expected" }, first.prompt), make("dt", {}, words.expected), make("dd", { class: "expected" }, first.expected), ...entries.flat()),
        isWhole ? null : make("button", { type: "button", onclick: () => { inFull.add(`${focus} ${key}`); drawAnswers(); } }, words.allAnswers(list.length)));
    });
    by("answers").replaceChildren(...(parts.length ? parts : [make("p", { class: "soft" }, words.noAnswers)]));
  };
  const drawLog = () => {
    const box = by("lines"), view = shown.get(focus);
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const damaged = view?.details?.damaged_lines;
    const problems = (view?.details?.problems ?? []).map((sentence) => `⚠ ${sentence}`);
    box.textContent = [...problems, ...(damaged ? [words.damagedLines(damaged)] : []), ...(view?.lines.length ? view.lines : [words.noLog])].join("\n");
    if (atEnd) box.scrollTop = box.scrollHeight;
  };
  const drawShown = () => { drawChosen(); drawCharts(); drawSettings(); drawFocus(); drawAnswers(); drawLog(); };

  // ---- engines

  const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);
  const pace = (engine, kind) => {
    const before = earlier.find((one) => one.pid === engine.pid && one.host === engine.host && one.started === engine.started);
    const seconds = before ? engine.updated - before.updated : 0;
    const count = before ? (engine.tokens[kind] || 0) - (before.tokens[kind] || 0) : 0;
    return seconds > 0 && count > 0 ? `${whole(count / seconds)}${words.perSecond}` : "";
  };
  const memoryBar = (engine) => {
    const memory = engine.memory, bases = total(memory.base_models);
    // On a GPU, weights and adapters are in its memory; what it uses is what is drawn.
    const used = memory.gpu ? memory.gpu.reserved : memory.process;
    const parts = [[words.bases, bases], [words.adapters, memory.adapters], [words.rest, Math.max(used - bases - memory.adapters, 0)]];
    const bar = make("div", { class: "memory", role: "img", "aria-label": parts.map(([name, bytes]) => `${name} ${size(bytes)}`).join(", ") });
    parts.forEach(([, bytes], index) => {
      const part = make("span", { class: `fill-box-${index}` });
      part.style.width = `${(100 * bytes) / Math.max(used, 1)}%`;
      bar.append(part);
    });
    return [bar, make("div", { class: "legend" }, ...parts.map(([name, bytes], index) => make("span", {}, make("i", { class: `fill-box-${index}` }), `${name} ${size(bytes)}`)))];
  };
  const counts = (jobs) => Object.entries(jobs).map(([name, count]) => `${name}${count > 1 ? ` × ${whole(count)}` : ""}`).join(", ");
  const drawEngines = () => {
    by("engines").replaceChildren(...(engines.length ? engines.map((engine) => {
      const waiting = engine.queue.reduce((sum, one) => sum + total(one.waiting), 0);
      const running = engine.queue.reduce((sum, one) => sum + total(one.running), 0);
      const sequences = engine.queue.reduce((sum, one) => sum + one.sequences, 0);
      const failed = Object.values(engine.requests).reduce((sum, one) => sum + one.failed, 0);
      const gpu = engine.memory.gpu;
      const tiles = make("dl", { class: "tiles" },
        tile(words.runningJobs, whole(running), sequences ? `${words.sequences}: ${whole(sequences)}` : ""), tile(words.waiting, whole(waiting), failed ? `${whole(failed)} ${words.failed}` : ""),
        tile(words.memory, size(engine.memory.process), words.process),
        ...(gpu ? [tile(words.gpu, size(gpu.total - gpu.free), `${words.of} ${size(gpu.total)}, ${gpu.name}`)] : []),
        tile(words.trained, whole(engine.tokens.trained || 0), pace(engine, "trained")), tile(words.sampled, whole(engine.tokens.sampled || 0), pace(engine, "sampled")),
        tile(words.clients, whole(engine.clients.training + engine.clients.sampling), `${words.training} ${engine.clients.training}, ${words.sampling} ${engine.clients.sampling}${engine.memory.spilled_clients ? `, ${words.spilled} ${engine.memory.spilled_clients}` : ""}`));
      const jobs = engine.queue.slice(0, 50).map((one) => [make("code", {}, one.client), counts(one.running), counts(one.waiting)]);
      const queue = jobs.length ? table([words.client, words.runningJobs, words.waiting], jobs) : null;
      const loaded = Object.entries(engine.memory.base_models).map(([name, bytes]) => `${name.split("/").pop()} ${size(bytes)}`).join(", ");
      return make("div", { class: "engine" }, make("p", { class: "soft" }, `${engine.host}, ${words.process} ${engine.pid}, ${engine.ready ? words.ready : words.loading}${loaded ? `, ${loaded}` : ""}`), tiles, ...memoryBar(engine), queue);
    }) : [make("p", { class: "soft" }, words.noEngine)]));
  };

  // ---- begin

  document.title = `Tinkersmith: ${words.runs}`;
  for (const [id, text] of Object.entries({ "curves-title": words.curves, "settings-title": words.settings, "answers-title": words.answers, "log-title": words.log, "engine-title": words.engine })) by(id).textContent = text;
  by("filter").placeholder = words.filter;
  by("filter").setAttribute("aria-label", words.filter);
  by("state").setAttribute("aria-label", words.state);
  by("state").append(make("option", { value: "" }, words.all), ...["running", "finished", "stopped early", "interrupted", "diverged", "damaged"].map((state) => make("option", { value: state }, words[state])));
  by("log").nextElementSibling.textContent = words.logScale;
  by("smooth").previousElementSibling.textContent = words.smooth;
  by("smooth").append(...words.smoothing.map((text, index) => make("option", { value: index, selected: index === 1 }, text)));
  by("buttons").append(themeButton());
  by("filter").addEventListener("input", drawRows);
  by("state").addEventListener("change", drawRows);
  by("log").addEventListener("change", drawCharts);
  by("smooth").addEventListener("change", drawCharts);
  addEventListener("hashchange", () => { if (fromAddress().join() !== chosen.join()) choose(fromAddress()); });
  say("connecting");
  drawHeads();
  drawEngines();
  const asked = fromAddress();
  choose(asked, asked.length > 0); // the key goes out of the address with this
})();
