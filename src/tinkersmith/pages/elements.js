"use strict";
// Elements that all pages make: elements.make, svg, table, settingName, tile, swatch, metricName, themeButton, and numbers.
// Texts become text nodes, never markup.
const elements = (() => {
  const SPACE = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "2 2 6 2", "1 4"]; // of the colours series-0 to -7
  const chinese = () => document.documentElement.lang.startsWith("zh");
  const filled = (children) => children.filter((child) => child !== null && child !== undefined);

  // An element: `properties` is the name of its class, or an object. A property that the element
  // has not becomes an attribute; null and undefined are left out, as they are among the children.
  const make = (name, properties = {}, ...children) => {
    const element = document.createElement(name);
    const named = typeof properties === "string" ? (properties ? { className: properties } : {}) : properties;
    for (const [key, value] of Object.entries(named)) {
      if (value === null || value === undefined) continue;
      if (key in element) element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...filled(children));
    return element;
  };
  const svg = (name, attributes = {}, ...children) => {
    const element = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...filled(children));
    return element;
  };

  // A table that scrolls on its own. A cell is a text or a node; `numbers` are columns set to the right.
  // A long text keeps some width: on a phone it would else be a column of single words.
  const LONG = 40; // characters
  const table = (heads, rows, numbers = []) => {
    const align = (column) => (numbers.includes(column) ? "number" : "");
    const kind = (cell, column) => (typeof cell === "string" && cell.length > LONG ? "long" : align(column));
    // On a phone such a table becomes a list: each cell in its own line, after the title of its column.
    const stacked = rows.some((cells) => cells.length > 2 && cells.some((cell, column) => kind(cell, column) === "long"));
    const line = (cells) => make("tr", "", ...cells.map((cell, column) => make("td", { className: kind(cell, column), "data-title": heads[column] }, cell)));
    const head = make("tr", "", ...heads.map((title, column) => make("th", { className: align(column), scope: "col" }, title)));
    return make("div", { className: "scroll", tabIndex: 0 }, make("table", stacked ? "stacked" : "", make("thead", "", head), make("tbody", "", ...rows.map(line))));
  };
  // The name of a setting, which breaks at its underscores only.
  const settingName = (name) => {
    const words = name.split("_");
    return make("code", "setting", ...words.flatMap((word, place) => (place < words.length - 1 ? [`${word}_`, make("wbr")] : [word])));
  };
  // A figure with its name, for a list of class "tiles".
  const tile = (name, value, note) => make("div", "", make("dt", "", name), make("dd", "", value, note ? make("small", "", note) : null));
  // The line by which a curve is recognised, for a label or a table.
  const swatch = (index, dashed = true) => svg("svg", { class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: `line series-${index}`, "stroke-dasharray": dashed ? DASHES[index] : "" }));

  // A score's name for a reader; that of a metric of the user's own is as it is.
  const METRICS = {
    final_answer: ["final answer right", "最终答案正确率"], exact_match: ["exact match", "完全匹配"], contains_answer: ["contains the answer", "包含答案"],
    token_f1: ["token F1", "token F1"], rouge_l: ["ROUGE-L", "ROUGE-L"], bleu: ["BLEU", "BLEU"], perplexity: ["perplexity", "困惑度"],
    bits_per_byte: ["bits per byte", "每字节比特数"], judge: ["judge", "评审分"], validation_loss: ["validation loss", "验证损失"],
  };
  const metricName = (name) => (Object.hasOwn(METRICS, name) ? METRICS[name][chinese() ? 1 : 0] : name.replaceAll("_", " "));

  const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: 4 }));

  // ---- light and dark

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const switchTheme = () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; };
  const themeButton = () => {
    const button = make("button", { type: "button", className: "theme" });
    const say = () => { button.textContent = isDark() ? (chinese() ? "浅色" : "Light") : chinese() ? "深色" : "Dark"; };
    button.addEventListener("click", () => { switchTheme(); say(); });
    dark.addEventListener("change", say);
    say();
    return button;
  };

  return { make, svg, table, settingName, tile, swatch, metricName, number, switchTheme, themeButton, chinese, DASHES };
})();
