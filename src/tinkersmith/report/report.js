"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chinese = data.language === "zh";
  const say = (english, translated) => (chinese ? translated : english);
  const { make, metricName, number, table, themeButton } = elements;
  const count = (value, noun, plural = `${noun}s`) => `${number(value)} ${value === 1 ? noun : plural}`;
  const percent = (value, digits = 1) => (Number.isFinite(value) ? `${(100 * value).toFixed(digits)} %` : "–");
  const time = (seconds) => {
    if (!Number.isFinite(seconds)) return "–";
    if (seconds < 90) return say(`${seconds.toFixed(0)} s`, `${seconds.toFixed(0)} 秒`);
    const minutes = Math.round(seconds / 60);
    if (minutes < 90) return say(`${minutes} min`, `${minutes} 分钟`);
    return say(`${(minutes / 60).toFixed(1)} h`, `${(minutes / 60).toFixed(1)} 小时`);
  };
  const amount = (metric, value) => {
    const found = data.evaluation && data.evaluation.metrics[metric];
    const share = !found || found.shares !== false;
    return share && value !== null && Math.abs(value) <= 1 ? percent(value) : charts.short(value);
  };
  const points = (metric, value) => amount(metric, value).replace(" %", say(" points", " 个百分点"));
  const STATES = {
    finished: say("finished", "已完成"), "stopped early": say("stopped early (PATIENCE)", "提前停止（PATIENCE）"), diverged: say("diverged and was stopped", "发散，已停止"),
    interrupted: say("interrupted", "已中断"), running: say("still running", "仍在运行"),
  };

  const BEGINNING = 140; // characters of a prompt in its line
  const begin = (text) => {
    const line = text.replace(/\s+/g, " ").trim();
    return line.length > BEGINNING ? `${line.slice(0, BEGINNING).trimEnd()}…` : line;
  };
  // 2026-01-31T12:30:00+08:00 in the writer's own time, to the minute.
  const moment = (text) => make("span", "moment", String(text || "").replace(/^(\S+)T(\d\d:\d\d).*$/, "$1 $2"));
  const FEW = 8; // rows of a list that are shown at once

  const main = document.getElementById("main"), head = document.getElementById("head");
  document.documentElement.lang = chinese ? "zh-CN" : "en";
  const card = (title, note) => {
    const section = make("section", "card");
    section.append(make("h2", "", title));
    if (note) section.append(make("p", "soft", note));
    main.append(section);
    return section;
  };
  const tile = (list, ...words) => list.append(elements.tile(...words));

  // ---- the headline

  const { run, training, evaluation } = data;
  document.title = say(`Report: ${run.name}`, `报告：${run.name}`);
  const title = make("div", "title", make("h1", "", run.name), themeButton());
  head.append(title);
  const files = run.files.join(say(", ", "、"));
  const shape = say(
    `A LoRA of rank ${run.rank} on ${run.base_model}, trained on ${count(training.samples, "sample")} of ${files}: ${STATES[run.state]} at step ${number(training.steps)} of ${number(training.total_steps)}.`,
    `在 ${run.base_model} 上训练秩为 ${run.rank} 的 LoRA，数据 ${files}，共 ${number(training.samples)} 条样本；${STATES[run.state]}，第 ${number(training.steps)} 步 / 共 ${number(training.total_steps)} 步。`,
  );
  head.append(make("p", "lead", shape));
  const mainVerdict = evaluation && evaluation.answers && evaluation.verdicts[evaluation.answers.metric];
  if (mainVerdict) {
    const metric = evaluation.answers.metric, gap = mainVerdict.difference, [low, high] = gap.interval_95;
    const shown = mainVerdict.p_value !== null && mainVerdict.p_value < 0.05;
    const better = shown ? (gap.mean > 0 ? say("better than the base model", "优于基座模型") : say("worse than the base model", "不如基座模型")) : say("no difference from the base model is shown", "与基座模型没有显示出差异");
    const line = make("p", `verdict ${shown ? (gap.mean > 0 ? "good" : "bad") : ""}`,
      make("b", "", `${amount(metric, mainVerdict.first.mean)}`),
      say(` ${metricName(metric)} on ${count(mainVerdict.n, "question")}; the base model has ${amount(metric, mainVerdict.second.mean)}: `, ` ${metricName(metric)}（${number(mainVerdict.n)} 道题）；基座模型为 ${amount(metric, mainVerdict.second.mean)}：`),
      make("b", "", better),
      say(` (difference ${points(metric, gap.mean)}, 95 % interval ${amount(metric, low).replace(" %", "")} to ${points(metric, high)}).`, `（差异 ${points(metric, gap.mean)}，95 % 区间 ${amount(metric, low).replace(" %", "")} 至 ${points(metric, high)}）。`));
    head.append(line);
  } else if (evaluation) {
    const metric = evaluation.metrics.final_answer ? "final_answer" : Object.keys(evaluation.metrics)[0];
    const found = evaluation.metrics[metric];
    if (found) head.append(make("p", "verdict", `${amount(metric, found.mean)} ${metricName(metric)} (${amount(metric, found.interval_95[0])} – ${amount(metric, found.interval_95[1])}, n = ${number(found.n)})`));
  }
  const tiles = make("dl", "tiles");
  head.append(tiles);
  tile(tiles, say("Loss", "损失"), charts.short(training.last_loss), say(`mean of the last 10 steps; first step ${charts.short(training.first_loss)}`, `最后 10 步的平均；第一步 ${charts.short(training.first_loss)}`));
  if (data.best) tile(tiles, say("Best checkpoint", "最佳检查点"), data.best.name, `${metricName(data.best.by)} ${charts.short(data.best.value)}`);
  tile(tiles, say("Epochs", "轮数"), number(training.epochs), say(count(training.steps, "step"), `${number(training.steps)} 步`));
  tile(tiles, say("Tokens", "token 数"), number(training.tokens), say(`${number(training.completion_tokens)} trained`, `其中训练 ${number(training.completion_tokens)}`));
  tile(tiles, say("Time of the steps", "各步用时"), time(training.seconds), training.tokens_per_second ? say(`${number(Math.round(training.tokens_per_second))} tokens/s`, `${number(Math.round(training.tokens_per_second))} token/s`) : null);
  for (const sentence of data.damaged) main.append(make("p", "notice", say("", "文件损坏："), sentence));
  for (const gap of data.missing) {
    const words = gap.what === "evaluation"
      ? say("This run has not been evaluated on a test set. This command does it, and writes this report anew: ", "此次运行尚未在测试集上评估。以下命令进行评估并重写本报告：")
      : say("The base model was not asked, so nothing says what training gained. This command asks it: ", "没有评估基座模型，无法得知训练带来的提升。以下命令会评估它：");
    main.append(make("p", "notice", words, make("code", "", gap.command)));
  }

  // ---- curves

  const curves = card(say("Curves", "曲线"));
  const grid = make("div", "charts");
  curves.append(grid);
  const plot = (kind, spec) => { const figure = make("figure"); grid.append(figure); charts[kind](figure, { ...spec, span }); };
  const marks = data.best ? [{ x: data.best.step, label: say("best", "最佳") }] : [];
  const step = say("step", "步"), steps = data.curves.loss.map((point) => point[0]);
  const span = steps.length ? [steps[0], steps[steps.length - 1]] : []; // so that all curves have one scale
  const losses = [
    { name: say("each step", "每一步"), key: say("each step", "每一步"), kind: "faint", points: data.curves.loss, color: 0 },
    { name: say("training, smoothed", "训练（平滑）"), points: data.curves.smoothed, color: 0 },
  ];
  if (data.curves.validation.length) losses.push({ name: say("validation", "验证"), points: data.curves.validation, color: 1 });
  const positive = losses.every((series) => series.points.every((point) => point[1] === null || point[1] > 0));
  const wide = training.first_loss > 30 * training.last_loss;
  plot("lines", { label: say("Loss per trained token", "每个训练 token 的损失") + (positive && wide ? say(" (log scale)", "（对数坐标）") : ""), x: step, log: positive && wide, series: losses, marks });
  for (const [name, points] of Object.entries(data.scores_while_training)) {
    if (Object.keys(data.scores_while_training).length > 3 && !["final_answer", data.best && data.best.by].includes(name)) continue;
    plot("lines", {
      label: `${metricName(name)} (EVAL_FILES, n = ${points[0].n})`, x: step, marks, percent: data.in_percent.includes(name),
      series: [
        { name: metricName(name), points: points.map((one) => [one.step, one.value]), color: 2 },
        { name: "", key: say("95 % interval", "95 % 区间"), kind: "faint", color: 2, points: points.map((one) => [one.step, one.low]) },
        { name: "", kind: "faint", color: 2, points: points.map((one) => [one.step, one.high]) },
      ],
    });
  }
  plot("lines", { label: say("Learning rate", "学习率"), x: step, series: [{ name: "LEARNING_RATE", points: data.curves.learning_rate, color: 3 }] });
  if (data.curves.grad_norm.length) plot("lines", { label: say("Gradient norm before clipping", "裁剪前的梯度范数"), x: step, series: [{ name: say("norm", "范数"), points: data.curves.grad_norm, color: 4 }] });
  plot("lines", { label: say("Tokens per second, mean so far", "每秒 token 数（至今平均）"), x: step, series: [{ name: say("tokens/s", "token/s"), points: data.curves.tokens_per_second, color: 6 }] });

  // ---- scores

  if (evaluation) {
    const scores = card(say("Scores", "评分"), say(
      `${evaluation.file}, ${count(evaluation.counts.distinct_questions ?? evaluation.counts.evaluated, "distinct question")}. Bars are 95 % intervals.`,
      `${evaluation.file}，${number(evaluation.counts.distinct_questions ?? evaluation.counts.evaluated)} 道不同的题。横线为 95 % 区间。`));
    const rows = [];
    for (const [name, found] of Object.entries(evaluation.metrics)) {
      const text = (one) => `${amount(name, one.mean)}`;
      if (!found.n) continue;
      rows.push({ name: say(`${metricName(name)}, trained`, `${metricName(name)}，训练后`), value: found.mean, low: found.interval_95[0], high: found.interval_95[1], text: text(found), color: 0 });
      const base = evaluation.base_metrics && evaluation.base_metrics[name];
      if (base && base.n) rows.push({ name: say(`${metricName(name)}, base`, `${metricName(name)}，基座`), value: base.mean, low: base.interval_95[0], high: base.interval_95[1], text: text(base), color: 1 });
    }
    const shares = rows.every((row) => row.high <= 1);
    const figure = make("figure");
    scores.append(figure);
    charts.intervals(figure, { label: "", rows, ...(shares ? { range: [0, 1], percent: true } : {}) });
    const said = [];
    if (mainVerdict && mainVerdict.counts) {
      const counts = mainVerdict.counts;
      said.push(say(
        `Question by question (${metricName(evaluation.answers.metric)}): ${number(counts.won)} won, ${number(counts.lost)} lost, ${number(counts.both_right)} right by both, ${number(counts.both_wrong)} wrong by both. ${mainVerdict.test}, p = ${charts.short(mainVerdict.p_value)}.`,
        `逐题比较（${metricName(evaluation.answers.metric)}）：变对 ${number(counts.won)}，变错 ${number(counts.lost)}，都对 ${number(counts.both_right)}，都错 ${number(counts.both_wrong)}。${mainVerdict.test}，p = ${charts.short(mainVerdict.p_value)}。`));
    }
    if (evaluation.cut) said.push(say(`${count(evaluation.cut, "answer was", "answers were")} cut at the token limit.`, `${number(evaluation.cut)} 个答案在 token 上限处被截断。`));
    if (evaluation.unfinished_thoughts) said.push(say(`${count(evaluation.unfinished_thoughts, "answer ends", "answers end")} within the thought.`, `${number(evaluation.unfinished_thoughts)} 个答案停在思考过程中。`));
    if (evaluation.near_duplicates) said.push(say(`${count(evaluation.near_duplicates, "test question is", "test questions are")} nearly equal to one that was trained on.`, `${number(evaluation.near_duplicates)} 道测试题与训练过的题几乎相同。`));
    for (const line of said) scores.append(make("p", "soft", line));
    if (evaluation.groups.length) {
      const details = make("details"), metric = evaluation.answers.metric;
      details.append(make("summary", "", say(count(evaluation.groups.length, "group"), `${number(evaluation.groups.length)} 个分组`)));
      details.append(table(
        [say("by", "依据"), say("group", "分组"), "n", say("trained", "训练后"), say("base", "基座"), say("difference", "差异"), say("p (Holm)", "p（Holm）")],
        evaluation.groups.map((group) => [
          group.by, group.group + (group.small ? say(" (few)", "（少）") : ""), number(group.n), group.first ? amount(metric, group.first.mean) : "–",
          group.second ? amount(metric, group.second.mean) : "–", group.difference ? amount(metric, group.difference.mean) : "–", charts.short(group.p_value_holm),
        ]), [2, 3, 4, 5, 6]));
      scores.append(details);
    }
  }

  // ---- answers side by side

  if (evaluation && evaluation.answers && evaluation.answers.rows.length) {
    const OUTCOMES = { won: say("won", "变对"), lost: say("lost", "变错"), both_wrong: say("wrong by both", "都错"), both_right: say("right by both", "都对"), equal: say("equal", "相同") };
    const answers = card(say("Answers before and after", "训练前后的答案"));
    const bar = make("div", "filters"), list = make("div", "answers");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", say("Filter", "筛选"));
    const order = Object.keys(OUTCOMES).filter((name) => evaluation.answers.totals[name]);
    let chosen = order.includes("won") ? "won" : order[0];
    const box = (name, text, className) => make("div", `answer ${className || ""}`, make("h4", "", name), make("pre", "", text === "" ? say("(empty)", "（空）") : text));
    let open = FEW;
    const draw = () => {
      for (const button of bar.children) button.setAttribute("aria-pressed", String(button.dataset.name === chosen));
      list.replaceChildren();
      const rows = evaluation.answers.rows.filter((row) => !row.outcome || row.outcome === chosen);
      const total = evaluation.answers.totals[chosen];
      if (total > rows.length) list.append(make("p", "soft", say(`The first ${rows.length} of ${number(total)}; the file of results has all.`, `共 ${number(total)} 条，此处为前 ${rows.length} 条；评估结果文件中有全部。`)));
      for (const row of rows.slice(0, open)) {
        const right = (scores) => scores && (scores[evaluation.answers.metric] ?? 0) >= 0.5;
        const pair = make("div", "pair",
          box(say("expected", "参考答案"), row.expected),
          row.base === null ? null : box(say("base model", "基座模型"), row.base, right(row.base_scores) ? "good" : "bad"),
          box(say("trained model", "训练后的模型"), row.trained, right(row.scores) ? "good" : "bad"));
        const unfolded = list.querySelectorAll("details").length < 3;
        list.append(make("details", { className: "question", open: unfolded }, make("summary", "", make("span", "soft", row.source), ` ${begin(row.prompt)}`), make("pre", "prompt", row.prompt), pair));
      }
      if (rows.length > open) {
        const more = make("button", "", say(`Show ${number(rows.length - open)} more`, `再显示 ${number(rows.length - open)} 条`));
        more.type = "button";
        more.addEventListener("click", () => { open = rows.length; draw(); });
        list.append(more);
      }
    };
    for (const name of order) {
      const button = make("button", { type: "button" }, OUTCOMES[name], make("b", "", ` ${number(evaluation.answers.totals[name])}`));
      button.dataset.name = name;
      button.addEventListener("click", () => { chosen = name; open = FEW; draw(); });
      bar.append(button);
    }
    answers.append(bar, list);
    draw();
  }

  // ---- data

  const about = card(say("Data", "数据"));
  if (data.lengths) {
    const found = data.lengths, figure = make("figure");
    about.append(figure);
    charts.histogram(figure, {
      label: say("Length of the samples before any cut", "样本长度（截断之前）"), x: say("tokens", "token 数"), bins: found.bins,
      marks: [{ x: found.limit, label: `MAX_SEQUENCE_LENGTH ${number(found.limit)}` }, ...(found.model_holds && found.model_holds < found.limit ? [{ x: found.model_holds, label: say(`the model holds ${number(found.model_holds)}`, `模型上限 ${number(found.model_holds)}`) }] : [])],
    });
    about.append(make("p", "soft", say(
      `${count(found.count, "sample")}; mean ${number(Math.round(found.mean))}, median ${number(Math.round(found.median))}, 95 % up to ${number(Math.round(found.p95))}, longest ${number(found.max)}.`,
      `${number(found.count)} 条样本；平均 ${number(Math.round(found.mean))}，中位数 ${number(Math.round(found.median))}，95 % 不超过 ${number(Math.round(found.p95))}，最长 ${number(found.max)}。`)));
  }
  const KINDS = { "bad record": say("records that could not be read", "无法读取的记录"), "too long": say("too long: left out", "过长：未训练"), truncated: say("cut at the end", "末尾被截断"), "nothing to train on": say("nothing to train on", "没有可训练的内容") };
  const left = Object.entries(data.left_out.kinds);
  if (!left.length && !data.left_out.duplicates) about.append(make("p", "", say("Nothing was skipped, cut or duplicated.", "没有样本被跳过、截断或重复。")));
  else {
    about.append(make("ul", "", ...left.map(([kind, count]) => make("li", "", `${KINDS[kind] || kind}: ${number(count)}`)),
      data.left_out.duplicates ? make("li", "", say(`exact duplicates, which are trained on: ${number(data.left_out.duplicates)}`, `完全重复的样本（仍参与训练）：${number(data.left_out.duplicates)}`)) : null));
    if (data.left_out.shown.length) {
      const details = make("details", "", make("summary", "", say("Which ones", "具体是哪些")));
      details.append(table([say("file", "文件"), say("record", "记录"), say("what", "情况"), say("tokens", "token 数"), say("reason", "原因")],
        data.left_out.shown.map((line) => [line.file ?? "", number(line.record), KINDS[line.kind] || line.kind, line.tokens_before ? `${number(line.tokens_before)} → ${number(line.tokens_after)}` : "", line.reason ?? ""]), [1, 3]));
      about.append(details);
    }
  }
  if (data.hard_samples.length) {
    const hard = card(say("Hard samples", "困难样本"), say(
      "The samples that surprised the model most, compared with those trained beside them. Wrong answers are often among them.",
      "与同批训练的样本相比，最出乎模型意料的样本。其中往往有错误答案。"));
    const hardTable = (lines) => table(["#", say("where", "位置"), say("times the others' loss", "相当于其他样本损失的倍数"), say("question", "问题"), say("answer", "答案")],
      lines.map((line) => [number(line.rank), `${line.file}: ${line.record}`, charts.short(line.score), line.question, line.answer]), [0, 2]);
    hard.append(hardTable(data.hard_samples.slice(0, FEW)));
    if (data.hard_samples.length > FEW) hard.append(make("details", "", make("summary", "", say("More", "更多")), hardTable(data.hard_samples.slice(FEW))));
  }

  // ---- how it was made

  const made = card(say("How it was made", "训练方式"));
  if (data.settings.length) {
    made.append(make("h3", "", say("Settings that differ from the defaults", "与默认值不同的设置")));
    made.append(table([say("setting", "设置"), say("value", "值"), say("default", "默认值")],
      data.settings.map((one) => [elements.settingName(one.name), JSON.stringify(one.value), JSON.stringify(one.default)])));
  } else made.append(make("p", "", say("All settings have their defaults.", "所有设置均为默认值。")));
  if (data.checkpoints.length) {
    const details = make("details", "", make("summary", "", say(count(data.checkpoints.length, "checkpoint"), `${number(data.checkpoints.length)} 个检查点`)));
    details.append(table([say("name", "名称"), say("step", "步"), say("epoch", "轮"), say("path", "路径")],
      data.checkpoints.map((one) => [data.best && one.name === data.best.name ? `${one.name} ★` : one.name, number(one.step), number(one.epoch), make("code", "", one.path)]), [1, 2]));
    made.append(details);
  }
  made.append(make("h3", "", say("Where, and with what", "环境与版本")));
  made.append(table([say("started", "开始于"), say("first step", "起始步"), say("computed by", "计算设备"), say("versions", "版本")],
    run.sessions.map((one) => [moment(one.started), number((one.first_step || 0) + 1), [one.computes && one.computes.device, one.computes && one.computes.processor, one.computes && one.computes.dtype, one.system].filter(Boolean).join(", ") || run.backend,
      Object.entries(one.versions || {}).map(([name, version]) => `${name} ${version}`).join(", ")]), [1]));
  made.append(make("h3", "", say("Cost", "花费")));
  made.append(make("p", "", say(
    `${count(training.tokens, "token was", "tokens were")} sent in the steps of this run${training.repeated_tokens ? `, and ${number(training.repeated_tokens)} more in steps that a resume did again` : ""}. `,
    `此次运行的各步共发送 ${number(training.tokens)} 个 token${training.repeated_tokens ? `，续训重做的步骤另有 ${number(training.repeated_tokens)} 个` : ""}。`) +
    (run.backend === "cloud" ? say("The cloud's bill says what they cost.", "费用以云端账单为准。") : say("They were computed on your own server.", "在您自己的服务器上计算。"))));
  if (Object.keys(data.digests).length) {
    made.append(make("h3", "", say("Digests", "摘要")));
    made.append(table([say("of", "对象"), say("value", "值")], Object.entries(data.digests).map(([name, value]) => [name, make("code", "digest", value)])));
  }
  if (data.shown.length && !evaluation) {
    const shown = card(say("An answer of the trained model", "训练后模型的一个答案"), data.shown[0].source);
    shown.append(make("pre", "prompt", data.shown[0].prompt), make("pre", "", (data.shown[0].answers || []).join("\n\n")));
  }
  document.getElementById("foot").textContent = say(`Written ${run.written} by tinkersmith report. This file loads nothing from elsewhere.`, `由 tinkersmith report 于 ${run.written} 生成。本文件不加载任何外部内容。`);
})();
