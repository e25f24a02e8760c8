/* Draws the page from the JSON in #data. Every text is set as text. A block has a "kind", and blocks[kind] draws it.
   What is chosen and what is filtered away are sets of runs' numbers; each view has said what to do when they change. */
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const LIGHT = ["#2563eb", "#e2590a", "#07976b", "#d6297f", "#7c3aed", "#b98900", "#0c8fb3", "#d92d2d"];
  const DARK = ["#6ea8ff", "#ff9b57", "#3ddba0", "#ff82bd", "#b69cff", "#f2cc3d", "#3fd0ee", "#ff8080"];
  const darkQuery = matchMedia("(prefers-color-scheme: dark)");
  const state = { chosen: new Set(), hidden: new Set(), paper: false };
  const views = []; // {redraw, restyle}: after another theme or size; after another choice

  /* ------------------------------------------------------------------------------------------------ small things */

  function el(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return made;
  }

  function svg(tag, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const isDark = () => darkQuery.matches && !state.paper;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const grey = (alpha) => `rgba(${css("--muted")}, ${alpha})`;

  function color(number, alpha = 1) {
    if (number === null || number === undefined) return grey(0.55 * alpha);
    const hex = (isDark() ? DARK : LIGHT)[number % 8];
    if (alpha === 1) return hex;
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r}, ${g}, ${b}, ${alpha})`;
  }

  function number(value) {
    if (value === null || value === undefined) return "not finite";
    if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value);
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(3) : String(+value.toPrecision(5));
  }

  const short = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(0) : String(+value.toPrecision(6)));
  const lines = (texts) => (texts && texts.length ? el("ul", "lines", ...texts.map((text) => el("li", "", text))) : null);
  const swatch = (number, className = "swatch") => painted(el("i", className), () => color(number));

  /** An element whose background follows the theme. */
  function painted(element, pick) {
    const paint = () => { element.style.background = pick(); };
    views.push({ redraw: paint });
    paint();
    return element;
  }

  /* -------------------------------------------------------------------------------------- what is chosen or hidden */

  const isChosen = (runs) => runs && runs.length > 0 && runs.every((run) => state.chosen.has(run));
  const isHidden = (runs) => runs && runs.length > 0 && runs.every((run) => state.hidden.has(run));

  function toggle(runs) {
    const all = isChosen(runs);
    for (const run of runs) all ? state.chosen.delete(run) : state.chosen.add(run);
    restyle();
  }

  function restyle() {
    for (const view of views) if (view.restyle) view.restyle();
    const count = state.chosen.size;
    pill.classList.toggle("hidden", count === 0);
    pill.firstChild.textContent = count === 1 ? data.runs[[...state.chosen][0]] : `${count} runs are chosen`;
  }

  const clear = el("button", "plain", "clear");
  const pill = el("div", "hidden", el("span", ""), clear);
  pill.id = "chosen";
  clear.onclick = () => { state.chosen.clear(); restyle(); };
  addEventListener("keydown", (event) => { if (event.key === "Escape") clear.onclick(); });

  /* ------------------------------------------------------------------------------------------------------ tooltips */

  function tooltip(host) {
    const tip = el("div", "tip hidden");
    host.append(tip);
    return {
      show(x, y, head, rows) {
        tip.replaceChildren(el("div", "head", head), ...rows.map(([colorOf, name, value]) => el("div", "", spot(colorOf), el("span", "name", name), el("b", "", value))));
        tip.classList.remove("hidden");
        const room = host.clientWidth - tip.offsetWidth - 4;
        tip.style.left = `${Math.max(2, x + 16 + tip.offsetWidth > host.clientWidth ? Math.min(room, x - tip.offsetWidth - 12) : x + 14)}px`;
        tip.style.top = `${Math.max(2, y - tip.offsetHeight - 8)}px`;
      },
      hide() { tip.classList.add("hidden"); },
    };
  }

  function spot(colorOf) {
    const made = el("i", "swatch");
    made.style.background = colorOf;
    return made;
  }

  /* -------------------------------------------------------------------------------------------------------- curves */

  const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
  const INTEGERS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];
  const measure = document.createElement("canvas").getContext("2d");

  /** On paper the page is narrower than the screen that it is drawn on. */
  function widthOfPlace(card, place, least) {
    return state.paper ? (card.classList.contains("wide") ? 670 : 325) : Math.max(least, place.clientWidth);
  }

  function widest(texts) {
    measure.font = FONT;
    return Math.max(0, ...(texts || []).map((text) => measure.measureText(text || "").width));
  }

  /** A chart of curves by uPlot: hover names the nearest, dragging zooms, a double click goes back. */
  function linesChart(chart) {
    const card = el("div", chart.wide ? "card chart wide" : "card chart"), place = el("div", "plot");
    const log = el("button", "", "log");
    log.title = "logarithmic axis";
    const known = chart.series.flatMap((one) => one.y).filter((value) => value !== null);
    const canLog = known.length > 0 && known.some((value) => value > 0) && known.every((value) => value >= 0);
    let isLog = Boolean(chart.logY) && canLog, plot = null;
    log.setAttribute("aria-pressed", isLog);
    log.onclick = () => { isLog = !isLog; log.setAttribute("aria-pressed", isLog); draw(); };
    card.append(el("div", "top", el("h3", "", chart.title), canLog ? log : null), place, legendOf(chart) || "");
    const tip = tooltip(card);

    const curves = []; // what each of uPlot's series is
    for (const one of chart.series) {
      if (one.band) curves.push({ ...one, y: one.band[0], edge: true }, { ...one, y: one.band[1], edge: true });
      curves.push(one);
    }
    const isVisible = (one) => !isHidden(one.runs);

    function strokeOf(one) {
      if (one.edge) return "transparent";
      const some = state.chosen.size > 0 && one.runs;
      if (some && isChosen(one.runs)) return one.color === null ? css("--accent") : color(one.color);
      if (some) return one.faint || one.color === null ? grey(0.1) : color(one.color, 0.15);
      return one.color === null ? grey(0.4) : color(one.color, one.faint ? 0.3 : 1);
    }
    function widthOf(one) {
      if (one.edge) return 0;
      const some = state.chosen.size > 0 && one.runs && isChosen(one.runs);
      return (some ? 2.6 : one.faint || one.color === null ? 1 : one.isMean || !one.runs ? 2.2 : 1.5) * devicePixelRatio;
    }

    function options(width) {
      const clean = (y) => y.map((value) => (isLog && value !== null && value <= 0 ? null : value));
      const length = chart.x.length;
      const filled = (y) => (y.length < length ? clean(y).concat(Array(length - y.length).fill(null)) : clean(y));
      const axis = (more) => ({ stroke: css("--soft"), font: FONT, labelFont: FONT, grid: { stroke: css("--grid"), width: 1 }, ticks: { stroke: css("--line"), width: 1, size: 4 }, gap: 5, ...more });
      const shown = isLog ? filled(known) : known;
      const [low, high] = shown.reduce(([a, b], v) => (v === null ? [a, b] : [Math.min(a, v), Math.max(b, v)]), [Infinity, -Infinity]);
      const yScale = isLog ? { distr: 3 } : { range: (u, min, max) => rangeOf(min, chart.most === undefined ? max : Math.min(max, chart.most), chart.zero) };
      return {
        values: [chart.x, ...curves.map((one) => filled(one.y))],
        opts: {
          width, height: 240, legend: { show: false }, padding: [12, 14, 0, 4],
          scales: { x: chart.logX ? { time: false, distr: 3, range: (u, min, max) => [min, max] } : { time: false, range: (u, min, max) => (min === max ? [min - 1, max + 1] : [min, max]) }, y: yScale },
          axes: [
            axis({ label: chart.xLabel, labelSize: 18, labelGap: 0, size: 24, incrs: chart.logX ? undefined : INTEGERS, space: 46, values: (u, ticks) => ticks.map((t) => (t === null || (chart.logX && !isPowerOf10(t)) ? "" : short(t))) }),
            axis({ size: (u, texts) => Math.ceil(widest(texts)) + 14, space: 34,
              values: (u, ticks) => ticks.map((t) => (t === null || (isLog && high / low > 30 && !isPowerOf10(t)) ? "" : short(t))) }),
          ],
          series: [{}, ...curves.map((one) => ({
            stroke: () => strokeOf(one), width: widthOf(one) / devicePixelRatio, show: isVisible(one), spanGaps: false,
            paths: one.points ? () => null : one.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
            points: { show: !one.edge, filter: one.points ? undefined : lonely, size: one.points ? 7 : 5, fill: () => strokeOf(one), stroke: () => strokeOf(one) },
          }))],
          bands: curves.flatMap((one, at) => (one.band && !one.edge ? [{ series: [at, at - 1], fill: () => bandFill(one) }] : [])),
          cursor: { y: false, drag: { x: true, y: false }, points: { size: 7, width: 1 }, sync: { key: chart.xLabel } },
          hooks: { draw: [(u) => marks(u)], setCursor: [(u) => hover(u)] },
        },
      };
    }
    /** Values between two gaps, which no line shows. */
    function lonely(u, at) {
      const y = u.data[at], isGap = (i) => y[i] === null || y[i] === undefined;
      return y.map((_, i) => i).filter((i) => !isGap(i) && isGap(i - 1) && isGap(i + 1));
    }
    const isPowerOf10 = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9;

    function bandFill(one) {
      const faded = state.chosen.size > 0 && !isChosen(one.runs);
      return one.color === null ? grey(faded ? 0.02 : 0.12) : color(one.color, faded ? 0.03 : 0.14);
    }

    /** The best epoch, and trials without a value. */
    function marks(u) {
      const { ctx, bbox } = u, ratio = devicePixelRatio;
      ctx.save();
      ctx.font = `${11 * ratio}px system-ui, sans-serif`;
      for (const mark of chart.marks || []) {
        if (mark.x < u.scales.x.min || mark.x > u.scales.x.max) continue;
        const x = Math.round(u.valToPos(mark.x, "x", true)), isRight = x > bbox.left + bbox.width * 0.8;
        ctx.strokeStyle = ctx.fillStyle = css("--soft");
        ctx.setLineDash([4 * ratio, 3 * ratio]);
        ctx.lineWidth = ratio;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        ctx.textAlign = isRight ? "right" : "left";
        ctx.textBaseline = "bottom";
        ctx.fillText(mark.label, x + (isRight ? -4 : 4) * ratio, bbox.top - 1);
      }
      ctx.setLineDash([]);
      ctx.strokeStyle = css("--bad");
      ctx.lineWidth = 1.5 * ratio;
      for (const place of chart.lost || []) {
        const x = u.valToPos(place, "x", true), y = bbox.top + bbox.height - 6 * ratio, r = 3.5 * ratio;
        ctx.beginPath();
        ctx.moveTo(x - r, y - r); ctx.lineTo(x + r, y + r); ctx.moveTo(x - r, y + r); ctx.lineTo(x + r, y - r);
        ctx.stroke();
      }
      ctx.restore();
    }

    /** The values under the cursor: all of a few curves, of many the nearest. */
    function hover(u) {
      const { idx, left, top } = u.cursor;
      if (idx === null || idx === undefined || left < 0 || top < 0 || !card.matches(":hover")) { tip.hide(); return; }
      let at = curves.map((one, i) => [one, i + 1]).filter(([one, i]) => !one.edge && u.series[i].show && u.data[i][idx] !== null && u.data[i][idx] !== undefined);
      if (at.length > 6) {
        const distance = ([one, i]) => Math.abs(u.valToPos(u.data[i][idx], "y") - top) - (state.chosen.size && isChosen(one.runs) ? 12 : 0) - (one.isMean ? 3 : 0);
        at = [at.reduce((a, b) => (distance(b) < distance(a) ? b : a))];
      }
      if (at.length === 0) { tip.hide(); return; }
      const name = (one) => { const run = one.runsAt ? one.runsAt[idx] : null; return (one.label || data.runs[one.run]) + (run === null || run === undefined ? "" : `: ${data.runs[run]}`); };
      at.sort(([, a], [, b]) => u.data[b][idx] - u.data[a][idx]);
      const rows = at.map(([one, i]) => [one.color === null ? grey(0.8) : color(one.color), name(one), number(u.data[i][idx])]);
      tip.show(place.offsetLeft + u.bbox.left / devicePixelRatio + left, place.offsetTop + u.bbox.top / devicePixelRatio + top, `${chart.xLabel} ${number(u.data[0][idx])}`, rows);
    }

    function draw() {
      if (plot) plot.destroy();
      const { opts, values } = options(widthOfPlace(card, place, 200));
      plot = new uPlot(opts, values, place);
      card.plot = plot;
    }

    function style() {
      let changed = false;
      plot.batch(() => {
        curves.forEach((one, i) => {
          const series = plot.series[i + 1];
          series.width = widthOf(one) / devicePixelRatio;
          if (series.show !== isVisible(one)) { plot.setSeries(i + 1, { show: isVisible(one) }, false); changed = true; }
        });
      });
      plot.redraw(changed);
    }
    place.addEventListener("mouseleave", () => tip.hide());
    place.addEventListener("click", () => choose());
    let down = null;
    place.addEventListener("mousedown", (event) => { down = event.clientX; });

    /** A click at a run's curve chooses it; one that ended a drag has zoomed. */
    function choose() {
      const { idx, top } = plot.cursor;
      if (idx === null || idx === undefined || (down !== null && Math.abs(plot.cursor.left - (down - plot.over.getBoundingClientRect().left)) > 3)) return;
      let nearest = null, least = 14;
      curves.forEach((one, i) => {
        const value = plot.data[i + 1][idx], runs = one.runsAt ? (one.runsAt[idx] === null ? null : [one.runsAt[idx]]) : one.runs;
        if (one.edge || !runs || !plot.series[i + 1].show || value === null || value === undefined) return;
        const distance = Math.abs(plot.valToPos(value, "y") - top);
        if (distance < least) { least = distance; nearest = runs; }
      });
      if (nearest) toggle(nearest);
    }
    views.push({ redraw: draw, restyle: style });
    return card;
  }

  function rangeOf(min, max, fromZero) {
    if (min === null || max === null) return [0, 1];
    if (min === max) return [min - (Math.abs(min) * 0.1 || 1), max + (Math.abs(max) * 0.1 || 1)];
    const pad = (max - min) * 0.06;
    return [fromZero && min >= 0 ? 0 : min >= 0 && min - pad < 0 ? 0 : min - pad, max + pad];
  }

  function legendOf(chart) {
    const named = (chart.legend || chart.series).filter((one) => one.label !== undefined);
    if (named.length < 2 || (!chart.legend && named[0].runs)) return null;
    return el("div", "legend", ...named.map((one) => {
      const made = el("span", one.runs ? "pick" : "", swatch(one.color), one.label);
      if (one.runs) made.onclick = () => toggle(one.runs);
      return made;
    }));
  }

  /* -------------------------------------------------------------------------------------------- dots, of one key */

  function scaleOf(values, from, to, isLog) {
    const map = isLog ? Math.log10 : (value) => value;
    let low = Math.min(...values), high = Math.max(...values);
    if (low === high) { const by = isLog ? 2 : 1; low = isLog ? low / by : low - by * 0.5; high = isLog ? high * by : high + by * 0.5; }
    const a = map(low), b = map(high), place = (value) => from + ((map(value) - a) / (b - a)) * (to - from);
    return { place, low, high };
  }

  function ticksOf(low, high, isLog, count) {
    if (isLog) {
      const all = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) for (const by of [1, 2, 5]) all.push(by * 10 ** power);
      const inside = all.filter((t) => t >= low * 0.999 && t <= high * 1.001);
      const powers = inside.filter((t) => Math.abs(Math.log10(t) - Math.round(Math.log10(t))) < 1e-9);
      const found = powers.length >= 3 ? powers : inside;
      const every = Math.ceil(found.length / count);
      return found.filter((_, at) => at % every === 0);
    }
    const step = [1, 2, 2.5, 5, 10].map((by) => by * 10 ** Math.floor(Math.log10((high - low) / count))).find((by) => (high - low) / by <= count);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(+(at * step).toPrecision(12));
    return found;
  }

  function cut(text, pixels) {
    if (widest([text]) <= pixels) return text;
    let length = text.length;
    while (length > 1 && widest([text.slice(0, length) + "\u2026"]) > pixels) length--;
    return text.slice(0, length) + "\u2026";
  }

  function dotsChart(chart) {
    const card = el("div", "card chart"), place = el("div", "plot");
    card.append(el("div", "top", el("h3", "", `${chart.yLabel} by ${chart.title}`), null), place);
    const tip = tooltip(card), valued = chart.points.filter((point) => point[1] !== null);
    let dots = [];

    function draw() {
      const width = widthOfPlace(card, place, 220), height = 240, words = chart.x.words;
      const ys = valued.map((point) => point[1]), pad = (Math.max(...ys) - Math.min(...ys)) * 0.05;
      const y = scaleOf(ys.length ? [Math.min(...ys) - pad, Math.max(...ys) + pad] : [0, 1], height - 46, 14, false);
      const yTicks = ticksOf(y.low, y.high, false, 5), left = Math.ceil(widest(yTicks.map(short))) + 16, right = width - 16;
      const xs = words ? [-0.5, words.length - 0.5] : chart.points.map((point) => point[0]);
      const x = scaleOf(xs, left + (words ? 0 : 26), right - (words ? 0 : 26), Boolean(chart.x.log));
      const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
      for (const tick of yTicks) {
        root.append(svg("line", { x1: left, x2: right, y1: y.place(tick), y2: y.place(tick), class: "grid" }));
        root.append(svg("text", { x: left - 7, y: y.place(tick) + 4, "text-anchor": "end" }, short(tick)));
      }
      root.append(svg("line", { x1: left, x2: right, y1: height - 40, y2: height - 40, class: "axis" }));
      const xTicks = words ? words.map((_, at) => at) : axisTicks(x, chart, Math.max(3, Math.floor((right - left) / 70)));
      const room = (right - left) / Math.max(1, xTicks.length) - 6;
      xTicks.forEach((tick) => {
        root.append(svg("line", { x1: x.place(tick), x2: x.place(tick), y1: height - 40, y2: height - 36, class: "axis" }));
        const text = svg("text", { x: x.place(tick), y: height - 23, "text-anchor": "middle" }, words ? cut(words[tick], room) : short(tick));
        if (words) text.append(svg("title", {}, words[tick]));
        root.append(text);
      });
      root.append(svg("text", { x: (left + right) / 2, y: height - 5, "text-anchor": "middle" }, chart.title + (chart.x.log ? " (logarithmic)" : "")));
      const apart = words || chart.means.length ? 1 : 0; // seeds at one place stand side by side
      const at = {};
      dots = chart.points.map(([px, py, run, number]) => {
        const count = (at[px] = (at[px] || 0) + 1) - 1, shift = apart ? (((count * 7) % 5) - 2) * 4 : 0;
        const cx = x.place(px) + shift, cy = py === null ? height - 46 : y.place(py);
        const dot = py === null
          ? svg("path", { d: `M${cx - 3.5} ${cy - 3.5}l7 7m0 -7l-7 7`, stroke: css("--bad"), "stroke-width": 1.6, fill: "none", class: "dot" })
          : svg("circle", { cx, cy, r: 4.5, fill: color(number, number === undefined || number === null ? 1.5 : 0.85), class: "dot" });
        dot.onmouseenter = () => tip.show(place.offsetLeft + (cx / width) * place.clientWidth, place.offsetTop + cy, data.runs[run],
          [[color(number), chart.title, words ? words[px] : number_(px)], ["transparent", chart.yLabel, py === null ? "no value" : number_(py)]]);
        dot.onmouseleave = () => tip.hide();
        dot.onclick = () => toggle([run]);
        return { dot, run };
      });
      for (const [px, mean, count] of chart.means) {
        const bar = svg("line", { x1: x.place(px) - 15, x2: x.place(px) + 15, y1: y.place(mean), y2: y.place(mean), stroke: css("--ink"), "stroke-width": 2, "stroke-linecap": "round" });
        bar.append(svg("title", {}, `mean of ${count}: ${number(mean)}`));
        root.append(bar);
      }
      root.append(...dots.map(({ dot }) => dot));
      place.replaceChildren(root);
      style();
    }
    const number_ = (value) => number(value);

    function style() {
      for (const { dot, run } of dots) {
        dot.classList.toggle("hidden", state.hidden.has(run));
        dot.classList.toggle("faded", state.chosen.size > 0 && !state.chosen.has(run));
      }
    }
    views.push({ redraw: draw, restyle: style });
    return card;
  }

  /** The values themselves where they are few, else round numbers. */
  function axisTicks(scale, chart, count) {
    const places = [...new Set(chart.points.map((point) => point[0]))].sort((a, b) => a - b);
    const gaps = places.slice(1).map((value, at) => scale.place(value) - scale.place(places[at]));
    if (places.length <= count && gaps.every((gap) => gap > 30)) return places;
    return ticksOf(scale.low, scale.high, Boolean(chart.x.log), count);
  }

  function barsChart(chart) {
    const most = chart.most || Math.max(...chart.bars.map((bar) => bar[1] || 0)) || 1;
    const grid = el("div", "bars");
    for (const [name, value, text] of chart.bars) {
      const bar = el("div", "bar");
      bar.style.width = `${(100 * Math.max(0, value || 0)) / most}%`;
      grid.append(el("div", "name", name), el("div", "", bar), el("div", "number", text));
    }
    return el("div", "card chart", el("h3", "", chart.title), grid);
  }

  /* ------------------------------------------------------------------------------------------ parallel coordinates */

  function parallel(block) {
    const card = el("div", "card chart"), place = el("div", "plot"), tip = tooltip(card);
    card.prepend(place);
    let drawn = [];
    const results = block.lines.map((line) => line.at[line.at.length - 1]), sorted = [...results].sort((a, b) => (block.mode === "max" ? a - b : b - a));
    const rankOf = (value) => (sorted.length > 1 ? sorted.lastIndexOf(value) / (sorted.length - 1) : 1);

    function draw() {
      const axes = block.axes, width = Math.max(axes.length * 96, place.clientWidth || 800), height = 300, top = 40, bottom = height - 14;
      const x = (at) => 60 + (at * (width - 130)) / (axes.length - 1);
      const scales = axes.map((axis, at) => {
        const values = block.lines.map((line) => line.at[at]).filter((value) => value !== null);
        return scaleOf(axis.words ? [-0.3, axis.words.length - 0.7] : values.length ? values : [0, 1], bottom, top, Boolean(axis.log));
      });
      const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
      root.style.minWidth = `${width}px`;
      const order = block.lines.map((line, at) => [line, at]).sort((a, b) => rankOf(results[a[1]]) - rankOf(results[b[1]]));
      drawn = order.map(([line, number_]) => {
        const points = line.at.map((value, at) => (value === null ? null : `${x(at).toFixed(1)} ${scales[at].place(value).toFixed(1)}`)).filter(Boolean);
        const share = rankOf(results[number_]), shade = isDark() ? `hsl(${215 - 30 * share}, ${30 + 60 * share}%, ${32 + 42 * share}%)` : `hsl(${200 + 25 * share}, ${25 + 60 * share}%, ${82 - 45 * share}%)`;
        const path = svg("path", { d: `M${points.join("L")}`, class: "line", stroke: shade });
        path.onmousemove = (event) => {
          const box = place.getBoundingClientRect();
          tip.show(event.clientX - box.left, event.clientY - box.top + 8, data.runs[line.run], axes.map((axis, at) => ["transparent", axis.label, line.at[at] === null ? "-" : axis.words ? axis.words[line.at[at]] : number(line.at[at])]));
        };
        path.onmouseleave = () => tip.hide();
        path.onclick = () => toggle([line.run]);
        root.append(path);
        return { path, run: line.run };
      });
      axes.forEach((axis, at) => {
        root.append(svg("line", { x1: x(at), x2: x(at), y1: top, y2: bottom, stroke: css("--soft") }));
        const label = svg("text", { x: x(at), y: 16, "text-anchor": at === axes.length - 1 ? "end" : "middle", "font-weight": 600 }, cut(axis.label, (width - 130) / (axes.length - 1) - 10));
        if (at === axes.length - 1) label.setAttribute("x", Math.min(width - 4, x(at) + 62));
        label.append(svg("title", {}, axis.label));
        root.append(label);
        const places = [...new Set(block.lines.map((line) => line.at[at]).filter((value) => value !== null))];
        const ticks = axis.words ? axis.words.map((_, one) => one) : places.length < 6 && at < axes.length - 1 ? places : ticksOf(scales[at].low, scales[at].high, Boolean(axis.log), 6);
        for (const tick of ticks) {
          const text = axis.words ? cut(axis.words[tick], 84) : short(tick);
          root.append(svg("line", { x1: x(at) - 3, x2: x(at) + 3, y1: scales[at].place(tick), y2: scales[at].place(tick), stroke: css("--soft") }));
          const shown = svg("text", { x: x(at) + 7, y: scales[at].place(tick) + 4, stroke: css("--card"), "stroke-width": 4, "paint-order": "stroke", "stroke-linejoin": "round" }, text);
          shown.style.pointerEvents = "none";
          root.append(shown);
        }
      });
      const scroll = el("div", "", root);
      scroll.style.overflowX = "auto";
      place.replaceChildren(scroll);
      style();
    }
    function style() {
      for (const { path, run } of drawn) {
        path.classList.toggle("hidden", state.hidden.has(run));
        path.classList.toggle("faded", state.chosen.size > 0 && !state.chosen.has(run));
        path.classList.toggle("chosen", state.chosen.has(run));
      }
    }
    views.push({ redraw: draw, restyle: style });
    return [el("p", "", block.note), card];
  }

  /* -------------------------------------------------------------------------------------------------------- tables */

  function table(block) {
    const body = el("tbody"), head = el("tr"), count = el("span");
    const rows = block.rows.map((row) => {
      const made = el("tr", row.runs.length ? "pick" : "");
      row.cells.forEach((cell, at) => {
        const column = block.columns[at];
        const td = el("td", column.numeric ? "numeric" : "");
        if (at === 0 && row.color !== undefined) td.append(swatch(row.color));
        if (cell.title || cell.t.length > 48) td.title = cell.title || cell.t;
        td.append(column.label === "state" ? el("span", `state ${cell.t.replace(/[^a-z]/g, "")}`, cell.t) : cut(cell.t, at === 0 && block.columns.length > 8 ? 170 : 420));
        made.append(td);
      });
      if (row.runs.length) {
        made.tabIndex = 0;
        made.onclick = () => { if (!String(getSelection())) toggle(row.runs); };
        made.onkeydown = (event) => { if (event.key === "Enter") toggle(row.runs); };
      }
      body.append(made);
      return { ...row, made };
    });
    const value = (row, at) => { const cell = row.cells[at]; return cell.v === undefined ? cell.t : cell.v; };

    function sortBy(at, th) {
      const before = th.getAttribute("aria-sort"), numeric = block.columns[at].numeric;
      const isDown = before ? before === "ascending" : Boolean(numeric);
      for (const other of head.children) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      const known = rows.filter((row) => value(row, at) !== null), rest = rows.filter((row) => value(row, at) === null);
      const compare = (a, b) => { const [x, y] = [value(a, at), value(b, at)]; return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true }); };
      known.sort((a, b) => (isDown ? -compare(a, b) : compare(a, b)));
      body.append(...[...known, ...rest].map((row) => row.made));
    }
    block.columns.forEach((column, at) => {
      const button = el("button", "", column.label), th = el("th", column.numeric ? "numeric" : "", button);
      th.scope = "col";
      button.onclick = () => sortBy(at, th);
      head.append(th);
    });

    const conditions = []; // functions of a row
    function filter() {
      let shown = 0;
      for (const row of rows) {
        const fits = conditions.every((condition) => condition(row));
        row.made.classList.toggle("hidden", !fits);
        shown += fits;
        for (const run of row.runs) fits ? state.hidden.delete(run) : state.hidden.add(run);
      }
      count.textContent = shown === rows.length ? `${rows.length} runs` : `${shown} of ${rows.length} runs`;
      restyle();
    }
    function filters() {
      const bar = el("div", "filters"), input = el("input");
      input.type = "search";
      input.placeholder = "filter by text";
      input.setAttribute("aria-label", "filter by text");
      conditions.push((row) => row.cells.some((cell) => cell.t.toLowerCase().includes(input.value.toLowerCase())));
      input.oninput = filter;
      bar.append(input);
      block.columns.forEach((column, at) => {
        const values = [...new Set(block.rows.map((row) => row.cells[at].t))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
        if (!column.filter || values.length < 2 || values.length > 12) return;
        const select = el("select", "", new Option(`${column.label}: all`, "*"), ...values.map((text, i) => new Option(text || "(none)", String(i))));
        select.setAttribute("aria-label", column.label);
        conditions.push((row) => select.value === "*" || row.cells[at].t === values[Number(select.value)]);
        select.onchange = filter;
        bar.append(select);
      });
      bar.append(count);
      count.textContent = `${rows.length} runs`;
      return bar;
    }
    views.push({ restyle() { for (const row of rows) row.made.classList.toggle("chosen", Boolean(isChosen(row.runs))); } });
    const frame = el("div", rows.length > 20 ? "scroll tall" : "scroll", el("table", "", el("thead", "", head), body));
    return [block.note ? el("p", "", block.note) : null, block.search && rows.length > 1 ? filters() : null, frame, lines(block.lines)];
  }

  /* --------------------------------------------------------------------------------------------- single examples */

  function matrix(block) {
    const most = block.counts.map((row) => row.reduce((a, b) => a + b, 0));
    const isSmall = block.names.length > 20;
    const made = el("table", isSmall ? "matrix small" : "matrix");
    const corner = el("th", "", isSmall ? "" : "target \\ predicted");
    if (!isSmall) made.append(el("thead", "", el("tr", "", corner, ...block.names.map((name) => el("th", "", cut(name, 60))))));
    const body = el("tbody");
    block.counts.forEach((row, target) => {
      const cells = row.map((count, guess) => {
        const td = el("td", "", count === 0 ? "" : String(count));
        const share = most[target] ? count / most[target] : 0, isRight = target === guess;
        td.title = `${block.names[target]}, predicted ${block.names[guess]}: ${count} of ${most[target]}`;
        const strength = count === 0 ? 0 : isRight ? 0.12 + 0.7 * share : 0.18 + 0.72 * Math.min(1, share * 4);
        painted(td, () => (count === 0 ? grey(0.09) : color(isRight ? 0 : 7, strength)));
        const ink = () => { td.style.color = strength > 0.55 ? (isDark() ? "#0f1216" : "#ffffff") : css("--ink"); };
        views.push({ redraw: ink });
        ink();
        return td;
      });
      body.append(el("tr", "", el("th", "", isSmall ? "" : cut(block.names[target], 110)), ...cells));
    });
    made.append(body);
    const frame = el("div", "card", el("h3", "", isSmall ? "confusion matrix (rows: target, columns: predicted; hover names a cell)" : "confusion matrix"), made);
    frame.style.overflowX = "auto";
    return frame;
  }

  function image(item) {
    const figure = el("figure", "card");
    if (item.src && item.src.startsWith("data:image/png;base64,")) {
      const img = el("img");
      img.src = item.src;
      img.alt = item.example;
      figure.append(img);
    }
    figure.append(el("figcaption", "", el("div", "right", `is ${item.target} \u00b7 ${item.pTarget}`), el("div", "wrong", `taken for ${item.guess} \u00b7 ${item.pGuess}`), el("div", "soft", item.example)));
    return figure;
  }

  /* -------------------------------------------------------------------------------------------------------- blocks */

  const charts = { lines: linesChart, dots: dotsChart, bars: barsChart };

  const blocks = {
    headline(block) {
      const figures = block.items.map((item) => el("div", "card", el("div", "label", item.label), el("div", item.value.length > 9 ? "value long" : "value", item.value),
        item.interval ? el("div", "interval", `95 %: ${item.interval}`) : null, item.note ? el("div", "note", item.note) : null));
      return [block.error ? el("div", "error", block.error) : null, el("div", "figures", ...figures), lines(block.lines)];
    },
    lines: (block) => [lines(block.lines)],
    charts(block) {
      const cards = block.charts.map((chart) => charts[chart.kind](chart));
      if (block.charts[0].kind === "lines" && cards.length % 2 && cards.length > 1) cards[0].classList.add("wide");
      return [lines(block.lines), block.legend ? legendOf(block) : null, el("div", "charts", ...cards)];
    },
    table, parallel,
    examples: (block) => [lines(block.lines), el("div", "pair", ...(block.matrix ? [matrix(block.matrix)] : []), ...(block.pairs ? [barsChart(block.pairs)] : []), ...(block.classes ? [barsChart(block.classes)] : []))],
    images: (block) => [lines(block.lines), el("div", "images", ...block.items.map(image))],
    command(block) {
      if (!block.text) return [];
      const code = el("code", "", block.text), button = el("button", "plain", "copy");
      button.onclick = () => { copy(code); button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1500); };
      return [el("div", "card command", code, button)];
    },
    timeline(block) {
      const track = el("div", "track"), rows = block.events.map((event) => el("tr", "", el("td", "numeric least", event.at), el("td", "numeric least", event.after), el("td", "least", event.what), el("td", "wrap", event.text)));
      for (const event of block.events) {
        if (event.place === null) continue;
        const mark = el("i", event.what.replace(/[^a-z]/g, ""));
        mark.style.left = `${100 * event.place}%`;
        mark.title = `${event.what} ${event.at}`;
        track.append(mark);
      }
      return [track, el("div", "scroll", el("table", "", el("tbody", "", ...rows)))];
    },
    config(block) {
      const other = block.rows.filter((row) => row.isOther), body = el("tbody"), button = el("button", "plain");
      let isWhole = false;
      function fill() {
        body.replaceChildren(...(isWhole ? block.rows : other).map((row) => el("tr", row.isOther ? "other" : "", el("td", "key mono", row.key),
          el("td", "value mono", row.value, row.default === null ? null : el("span", "default", `   (default: ${row.default})`)))));
        button.textContent = !isWhole ? `all ${block.rows.length} keys` : other.length ? "only what differs from the defaults" : "fewer";
      }
      button.onclick = () => { isWhole = !isWhole; fill(); frame.classList.toggle("hidden", !isWhole && other.length === 0); };
      fill();
      const none = other.length || block.lines.length ? "" : "Nothing differs from the defaults.";
      const frame = el("div", "scroll", el("table", "", body));
      if (other.length === 0) { body.replaceChildren(); frame.classList.add("hidden"); }
      return [lines(block.lines), el("p", "", other.length ? "What differs from the defaults:" : none), frame, el("p", "", button)];
    },
    pairs: (block) => [el("dl", "card pairs", ...block.rows.map(([key, value]) => el("div", "", el("dt", "", key), el("dd", "mono", value))))],
  };

  /** Pages from file:// have no clipboard of their own in every browser; a selection can be copied in all. */
  function copy(element) {
    const range = document.createRange(), selection = getSelection();
    range.selectNodeContents(element);
    selection.removeAllRanges();
    selection.addRange(range);
    document.execCommand("copy");
    selection.removeAllRanges();
  }

  function start() {
    const page = document.getElementById("page"), first = data.blocks[0];
    const chip = first && first.state ? el("span", `state ${first.state.replace(/[^a-z]/g, "")}`, first.state) : null;
    const again = data.refresh ? `, read again every ${data.refresh} s while it runs` : "";
    page.replaceChildren(el("header", "", el("h1", "", data.title), el("p", "subtitle", chip, chip ? "  " : "", data.subtitle || "")));
    for (const block of data.blocks) {
      const made = blocks[block.kind](block).flat().filter(Boolean);
      if (made.length === 0) continue;
      page.append(el("section", "", ...(block.heading ? [el("h2", "", block.heading)] : []), ...made));
    }
    const hasCurves = data.blocks.some((block) => block.kind === "charts" && block.charts.some((chart) => chart.kind === "lines"));
    const hint = el("span", "hint", "In a chart of curves: drag to zoom, double click to go back. ");
    page.append(el("footer", "", hasCurves ? hint : "", `Written ${data.written.slice(0, 19).replace("T", " ")} by torch-runner${again}.`));
    document.body.append(pill);
    redraw();
  }

  function redraw() {
    for (const view of views) if (view.redraw) view.redraw();
  }

  let width = 0, waiting = null;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width || state.paper) return;
    const isFirst = width === 0;
    width = document.body.clientWidth;
    clearTimeout(waiting);
    if (!isFirst) waiting = setTimeout(redraw, 80);
  }).observe(document.body);
  darkQuery.addEventListener("change", redraw);
  function paper(isPaper) {
    if (state.paper === isPaper) return;
    state.paper = isPaper;
    document.documentElement.classList.toggle("paper", isPaper);
    redraw();
  }
  matchMedia("print").addEventListener("change", (event) => paper(event.matches));
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));

  start();
  window.report = { data, state, toggle, redraw };
})();
