"use strict";
// Charts as SVG: charts.lines, charts.histogram, charts.intervals. Each takes an element and a
// specification, draws, redraws when the element's width changes, and returns { update(spec) }.
const charts = (() => {
  const { make, svg, chinese, DASHES } = elements;

  // CSS pixels that a text of 11 px needs, at most: an ideograph is as wide as it is high.
  const room = (text) => [...text].reduce((sum, character) => sum + (character > "\u2e80" ? 11.5 : 6.6), 0);
  const fitted = (text, space) => {
    if (room(text) <= space) return text;
    let short = text;
    while (short.length > 3 && room(`${short}…`) > space) short = short.slice(0, -1);
    return `${short}…`;
  };

  // ---- numbers

  const short = (value) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return String(Number(value.toPrecision(4)));
  };

  const ticks = (low, high, count) => {
    if (!(high > low)) return [low];
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
      found.push(Math.abs(value) < step * 1e-9 ? 0 : Number(value.toPrecision(12)));
    }
    return found.length < 2 && count < 16 ? ticks(low, high, 2 * Math.max(count, 1)) : found; // one tick tells no scale
  };
  const powers = (low, high) => {
    const found = [];
    for (let exponent = Math.ceil(Math.log10(low)); exponent <= Math.log10(high); exponent++) found.push(10 ** exponent);
    return found.length > 1 ? found : [low, high];
  };

  const scale = (low, high, from, to, log) => {
    const turn = log ? Math.log10 : (value) => value;
    const start = turn(low), span = turn(high) - start || 1;
    return (value) => from + ((turn(value) - start) / span) * (to - from);
  };

  // ---- what all charts have

  const chart = (element, first, draw) => {
    let spec = first, width = 0, waiting = false;
    element.classList.add("chart");
    const redraw = () => {
      waiting = false;
      width = Math.max(Math.floor(element.clientWidth), 240);
      draw(spec, width);
    };
    const soon = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(redraw);
    };
    redraw();
    new ResizeObserver(() => { if (Math.floor(element.clientWidth) !== width && element.clientWidth) soon(); }).observe(element);
    return { update(next) { spec = next; soon(); } };
  };
  const titled = (element, spec) => {
    element.replaceChildren();
    if (spec.label) element.append(make(element.tagName === "FIGURE" ? "figcaption" : "div", "chart-title", spec.label));
  };
  // Numbers of the y axis as they are read: shares as percent where the specification says so.
  const amounts = (spec) => (spec.percent ? (value) => `${short(100 * value)} %` : short);
  const axes = (picture, area, xs, ys, names, amount = short) => {
    for (const [value, y] of ys) {
      picture.append(svg("line", { class: "axis", x1: area.left, x2: area.right, y1: y, y2: y }));
      picture.append(svg("text", { x: area.left - 6, y: y + 4, "text-anchor": "end" }, amount(value)));
    }
    let free = -Infinity;
    for (const [value, x] of xs) {
      const text = short(value), half = text.length * 3.4;
      if (x - half < free) continue;
      free = x + half + 6;
      picture.append(svg("text", { x, y: area.bottom + 15, "text-anchor": "middle" }, text));
    }
    picture.append(svg("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }));
    if (names.x) picture.append(svg("text", { x: area.right, y: area.bottom + 30, "text-anchor": "end" }, names.x));
  };
  const marks = (picture, area, list, x) => {
    for (const mark of list || []) {
      const place = x(mark.x);
      if (!(place >= area.left - 1 && place <= area.right + 1)) continue;
      picture.append(svg("line", { class: "mark", x1: place, x2: place, y1: area.top, y2: area.bottom }));
      const left = place > (area.left + area.right) / 2;
      picture.append(svg("text", { x: place + (left ? -4 : 4), y: area.top - 4, "text-anchor": left ? "end" : "start" }, mark.label));
    }
  };

  // ---- lines

  const finite = (series) => series.points.filter((point) => point[1] !== null && Number.isFinite(point[1]));
  const range = (values, log, percent) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (log && value <= 0) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) return [log ? 0.1 : 0, 1];
    if (log) return low === high ? [low / 2, high * 2] : [low, high];
    if (low === 0 && high === 0) return [0, 1];
    const pad = low === high ? Math.abs(low) * 0.1 : (high - low) * 0.05;
    return [low >= 0 ? Math.max(0, low - pad) : low - pad, percent && high <= 1 ? Math.min(1, high + pad) : high + pad];
  };
  const path = (points, x, y, log) => {
    let text = "", pen = "M";
    for (const [px, py] of points) {
      if (py === null || !Number.isFinite(py) || (log && py <= 0)) { pen = "M"; continue; }
      text += `${pen}${x(px).toFixed(1)} ${y(py).toFixed(1)}`;
      pen = "L";
    }
    return text;
  };
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && Math.abs(points[low - 1][0] - x) <= Math.abs(points[low][0] - x) ? low - 1 : low;
  };
  const described = (spec) => spec.series.filter((series) => series.kind !== "faint").map((series) => {
    const points = finite(series), amount = amounts(spec);
    if (!points.length) return `${series.name}: –`;
    let best = points[0];
    for (const point of points) if (point[1] < best[1]) best = point;
    const [a, b] = [points[0], points[points.length - 1]];
    return chinese()
      ? `${series.name}：从 ${amount(a[1])}（${short(a[0])}）到 ${amount(b[1])}（${short(b[0])}），最低 ${amount(best[1])}（${short(best[0])}）`
      : `${series.name}: from ${amount(a[1])} at ${short(a[0])} to ${amount(b[1])} at ${short(b[0])}, lowest ${amount(best[1])} at ${short(best[0])}`;
  }).join("; ");

  const lines = (element, first) => {
    let chosen = null; // the x that is read out
    return chart(element, first, (spec, width) => {
      titled(element, spec);
      const height = spec.height || 230, log = Boolean(spec.log), amount = amounts(spec);
      const area = { left: 54, right: width - 10, top: 16, bottom: height - 34 };
      const shown = spec.series.filter((series) => finite(series).length);
      const all = shown.flatMap((series) => finite(series));
      const keys = make("div", "keys"), values = new Map();
      const several = spec.series.filter((series) => series.kind !== "faint").length > 1; // one needs no dash
      const colour = (series) => series.color ?? spec.series.filter((one) => one.kind !== "faint").indexOf(series);
      for (const series of spec.series) {
        if (series.kind === "faint") {
          // What the thin lines are, said once for all that belong together.
          if (series.key) keys.append(make("span", "", svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: `faint series-${(series.color ?? 0) % 8}` })), series.key));
          continue;
        }
        const index = colour(series) % 8, key = make("span"), value = make("b");
        const dot = () => svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, svg("circle", { cx: 13, cy: 5, r: 3.5, class: `fill-${index}` }));
        key.append(series.kind === "dots" ? dot() : elements.swatch(index, several), series.name, value);
        keys.append(key);
        values.set(series, value);
      }
      const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": `${spec.label || ""}. ${described(spec)}` });
      if (!all.length) {
        picture.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, chinese() ? "还没有数据" : "Nothing measured yet"));
        element.append(keys, picture);
        return;
      }
      let lowX = Infinity, highX = -Infinity;
      for (const px of [...all.map((point) => point[0]), ...(spec.span || [])]) { if (px < lowX) lowX = px; if (px > highX) highX = px; }
      if (lowX === highX) { lowX -= 0.5; highX += 0.5; }
      const [lowY, highY] = range(all.map((point) => point[1]), log, spec.percent);
      const x = scale(lowX, highX, area.left, area.right), y = scale(lowY, highY, area.bottom, area.top, log);
      const yTicks = log ? powers(lowY, highY) : ticks(lowY, highY, Math.max(2, Math.floor((area.bottom - area.top) / 45)));
      axes(picture, area, ticks(lowX, highX, Math.floor(width / 90)).map((v) => [v, x(v)]), yTicks.map((v) => [v, y(v)]), { x: spec.x }, amount);
      marks(picture, area, spec.marks, x);
      for (const series of shown) {
        const index = (series.kind === "faint" ? series.color ?? 0 : colour(series)) % 8;
        if (series.kind === "dots" || finite(series).length === 1) {
          for (const [px, py] of finite(series)) picture.append(svg("circle", { cx: x(px), cy: y(py), r: 3.2, class: `fill-${index}` }));
          if (series.kind === "dots") picture.append(svg("path", { d: path(series.points, x, y, log), class: `faint series-${index}` }));
        } else {
          picture.append(svg("path", {
            d: path(series.points, x, y, log), class: `${series.kind === "faint" ? "faint" : "line"} series-${index}`,
            ...(series.kind === "faint" || !several ? {} : { "stroke-dasharray": DASHES[index] }),
          }));
        }
      }
      const cursor = svg("line", { class: "cursor", y1: area.top, y2: area.bottom, visibility: "hidden" });
      picture.append(cursor);
      const places = [...new Set(shown.filter((series) => series.kind !== "faint").flatMap((series) => finite(series).map((point) => point[0])))].sort((a, b) => a - b);
      const read = (wanted) => {
        chosen = wanted;
        cursor.setAttribute("visibility", wanted === null ? "hidden" : "visible");
        for (const [series, value] of values) {
          const points = finite(series);
          if (!points.length) { value.textContent = ""; continue; }
          const point = wanted === null ? points[points.length - 1] : points[nearest(points, wanted)];
          value.textContent = wanted === null || Math.abs(x(point[0]) - x(wanted)) < 12 ? amount(point[1]) : "–";
        }
        if (wanted !== null) { cursor.setAttribute("x1", x(wanted)); cursor.setAttribute("x2", x(wanted)); }
        where.textContent = wanted === null ? "" : `${spec.x || "x"} ${short(wanted)}`;
      };
      const where = make("span");
      keys.append(where);
      const at = (event) => {
        const box = picture.getBoundingClientRect();
        const place = ((event.clientX - box.left) / box.width) * width;
        const value = lowX + ((place - area.left) / (area.right - area.left)) * (highX - lowX);
        read(places[nearest(places.map((one) => [one]), value)]);
      };
      picture.addEventListener("pointermove", at);
      picture.addEventListener("pointerdown", at);
      picture.addEventListener("pointerleave", () => read(null));
      picture.addEventListener("blur", () => read(null));
      picture.addEventListener("keydown", (event) => {
        const now = chosen === null ? (event.key === "ArrowLeft" ? places.length : -1) : nearest(places.map((one) => [one]), chosen);
        const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: places.length - 1 }[event.key];
        if (next === undefined) { if (event.key === "Escape") read(null); return; }
        event.preventDefault();
        keys.setAttribute("aria-live", "polite");
        read(places[Math.min(Math.max(next, 0), places.length - 1)]);
      });
      element.append(keys, picture);
      read(chosen !== null && chosen >= lowX && chosen <= highX ? chosen : null);
    });
  };

  // ---- histogram: bins are [from, to, count]

  const histogram = (element, first) => chart(element, first, (spec, width) => {
    titled(element, spec);
    const height = spec.height || 230, area = { left: 54, right: width - 10, top: 12, bottom: height - 34 };
    const bins = spec.bins.filter((bin) => bin[1] > bin[0]);
    const total = bins.reduce((sum, bin) => sum + bin[2], 0);
    const keys = make("div", "keys"), reading = make("span");
    keys.append(reading);
    const low = bins.length ? bins[0][0] : 0;
    let high = bins.length ? bins[bins.length - 1][1] : 1;
    // A limit far beyond the data is said, not drawn: it would squeeze the bars into the corner.
    const near = (spec.marks || []).filter((mark) => mark.x <= high + (high - low) * 1.5);
    for (const mark of near) high = Math.max(high, mark.x * 1.02);
    const beyond = (spec.marks || []).filter((mark) => !near.includes(mark)).map((mark) => `${mark.label} →`).join("  ");
    const most = Math.max(1, ...bins.map((bin) => bin[2]));
    const x = scale(low, high, area.left, area.right), y = scale(0, most, area.bottom, area.top);
    const words = (bin) => `${short(bin[0])}–${short(bin[1])}: ${short(bin[2])} (${total ? ((100 * bin[2]) / total).toFixed(1) : 0} %)`;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": `${spec.label || ""}. ${bins.map(words).join("; ")}` });
    axes(picture, area, ticks(low, high, Math.floor(width / 90)).map((v) => [v, x(v)]), ticks(0, most, 4).map((v) => [v, y(v)]), { x: spec.x });
    let at = -1;
    const read = (index) => { at = index; reading.textContent = index < 0 ? beyond : words(bins[index]); };
    bins.forEach((bin, index) => {
      const bar = svg("rect", { class: "bar", x: x(bin[0]) + 0.5, width: Math.max(x(bin[1]) - x(bin[0]) - 1, 0.5), y: y(bin[2]), height: Math.max(area.bottom - y(bin[2]), 0) });
      bar.addEventListener("pointerenter", () => read(index));
      picture.append(bar);
    });
    marks(picture, area, near, x);
    picture.addEventListener("pointerleave", () => read(-1));
    picture.addEventListener("blur", () => read(-1));
    picture.addEventListener("keydown", (event) => {
      const next = { ArrowRight: at + 1, ArrowLeft: at < 0 ? bins.length - 1 : at - 1, Home: 0, End: bins.length - 1 }[event.key];
      if (next === undefined || !bins.length) return;
      event.preventDefault();
      keys.setAttribute("aria-live", "polite");
      read(Math.min(Math.max(next, 0), bins.length - 1));
    });
    element.append(keys, picture);
    read(-1);
  });

  // ---- intervals: a dot and its interval in each row; an arrow in one that is `far` from all others

  const intervals = (element, first) => chart(element, first, (spec, width) => {
    titled(element, spec);
    const longest = Math.max(90, ...spec.rows.map((row) => room(row.name)));
    const above = longest > width * 0.4; // names over the bars: beside them they would be cut
    const names = above ? width - 92 : longest, row = above ? 40 : 26, height = spec.rows.length * row + 30;
    const area = { left: above ? 8 : names + 10, right: width - 92, top: 4, bottom: height - 24 };
    const ends = spec.rows.filter((one) => !one.far).flatMap((one) => [one.low ?? one.value, one.high ?? one.value, one.value]).filter(Number.isFinite);
    if (spec.reference !== undefined) ends.push(spec.reference);
    const [low, high] = spec.range || range(ends, false, spec.percent);
    const x = scale(low, high, area.left, area.right);
    const words = (one) => `${one.name}: ${one.text || short(one.value)}`;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.label || ""}. ${spec.rows.map(words).join("; ")}` });
    for (const value of ticks(low, high, Math.max(2, Math.floor((area.right - area.left) / 80)))) {
      picture.append(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: area.top, y2: area.bottom }));
      picture.append(svg("text", { x: x(value), y: height - 8, "text-anchor": "middle" }, spec.percent ? `${Math.round(100 * value)} %` : short(value)));
    }
    if (spec.reference !== undefined) picture.append(svg("line", { class: "mark", x1: x(spec.reference), x2: x(spec.reference), y1: area.top, y2: area.bottom }));
    spec.rows.forEach((one, index) => {
      const y = area.top + index * row + (above ? row - 10 : row / 2), colour = (one.color ?? 0) % 8;
      picture.append(svg("text", { x: 0, y: above ? y - 13 : y + 4 }, fitted(one.name, names)));
      if (one.far) {
        picture.append(svg("text", { x: area.right, y: y + 4, "text-anchor": "end" }, "→"));
      } else if (Number.isFinite(one.low) && Number.isFinite(one.high)) picture.append(svg("line", { class: `line series-${colour}`, x1: x(one.low), x2: x(one.high), y1: y, y2: y }));
      if (Number.isFinite(one.value) && !one.far) picture.append(svg("circle", { cx: x(one.value), cy: y, r: 4.5, class: `fill-${colour}` }));
      picture.append(svg("text", { x: width, y: y + 4, "text-anchor": "end" }, one.text || short(one.value)));
    });
    element.append(picture);
  });

  return { lines, histogram, intervals, short };
})();
