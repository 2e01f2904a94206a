"use strict";

// Draws the page from its data, which page.py writes before this script as two pieces of JSON:
// "page" is the title, the facts, the sets of images and the sections of blocks; "pictures" are
// the images, each as WebP in base64, or null where it could not be read.

const page = JSON.parse(document.getElementById("page").textContent);
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const card = document.getElementById("card");
const ring = document.getElementById("ring");
const dark = matchMedia("(prefers-color-scheme: dark)");

// Okabe & Ito's colours, which every kind of sight tells apart; markers, dashes and patterns say
// the same once more. Seven of each, but for the dashes: a trace takes those of its number.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c7a00"];
const COLOURS_ON_DARK = [
  "#56b4e9",
  "#e69f00",
  "#2fcf9f",
  "#e59cc4",
  "#4f9be0",
  "#ff8a3d",
  "#c9b400",
];
const MARKERS = ["circle", "square", "diamond", "cross", "triangle-up", "x", "star"];
const PATTERNS = ["", "/", "x", "-", "|", "+", "."];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const GALLERY_STEP = 60; // images that a gallery puts on the page at a time

// ---- Nodes and texts ----

function make(tag, content = "", attributes = {}) {
  const node = document.createElement(tag);
  node.append(...[content].flat());
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, value);
  }
  return node;
}

function formatValue(value) {
  if (value === null || value === undefined) {
    return "–";
  }
  if (typeof value !== "number") {
    return value;
  }
  const digits = Math.abs(value) < 10 ? 4 : 2;
  return String(+value.toFixed(digits)).replace("-", "−");
}

// The image of a set, with a box around each crop that the model saw of it; nothing of a set whose
// pictures the page does not have.
function pictureOf(set, image) {
  if (set.pictures[image] < 0) {
    return "";
  }
  const code = pictures[set.pictures[image]];
  if (!code) {
    return make("div", "cannot be read now", { class: "gone" });
  }
  const source = "data:image/webp;base64," + code;
  const img = make("img", "", { src: source, alt: set.names[image] });
  const box = make("div", img, { class: "picture" });
  for (const [left, top, width, height] of set.crops?.[image] ?? []) {
    const style = `left:${left}%;top:${top}%;width:${width}%;height:${height}%`;
    box.append(make("i", "", { style, title: "what the model saw" }));
  }
  return box;
}

// Do the work once, when the node comes near to what is on the screen: a page of ten thousand
// images opens at once. With `printed` also before printing, where nobody scrolls.
function whenSeen(node, work, printed = false) {
  const workOnce = () => {
    observer.disconnect();
    removeEventListener("beforeprint", workOnce);
    work();
  };
  const whenNear = (entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      workOnce();
    }
  };
  const observer = new IntersectionObserver(whenNear, { rootMargin: "400px" });
  observer.observe(node);
  if (printed) {
    addEventListener("beforeprint", workOnce);
  }
}

// ---- The card beside a point ----

function showCard(position, ...lines) {
  card.replaceChildren(...lines);
  card.hidden = false;
  const box = card.getBoundingClientRect();
  const right = position.x + 16;
  // On the left of the point where the window leaves no room on its right.
  const left = right + box.width < innerWidth ? right : position.x - box.width - 16;
  const lowest = innerHeight - box.height - 4;
  card.style.left = Math.max(4, left) + "px";
  card.style.top = Math.max(4, Math.min(position.y + 12, lowest)) + "px";
}

function showImageCard(position, set, image, fields) {
  const lines = Object.keys(set.fields)
    .filter((name) => fields.includes(name))
    .map((name) => make("div", `${name}: ${formatValue(set.fields[name][image])}`));
  showCard(position, pictureOf(set, image), make("b", set.names[image]), ...lines);
}

function showPointCard(position, plot, trace, x, y) {
  showCard(
    position,
    make("b", trace.name ?? plot.title),
    make("div", `${plot.x || "x"}: ${formatValue(x)}`),
    make("div", `${plot.y || "y"}: ${formatValue(y)}`),
  );
}

function hideCard() {
  card.hidden = true;
}

// ---- Plots ----
// A plot is {title, note, set, x, y, traces} and what goes to Plotly's layout. A trace is one of
// Plotly's, with `style`, the number of its colour and marker, and `card`, the fields of the image
// to be shown beside a point. Its x and y are values, or the name of a field of the plot's set.

function textColour() {
  return dark.matches ? "#e7eaee" : "#1d2126";
}

function axisLayout(title, more) {
  return {
    gridcolor: dark.matches ? "#3a424c" : "#e3e7eb",
    zerolinecolor: dark.matches ? "#5d6773" : "#b4bcc6",
    automargin: true,
    title: { text: title },
    ...more,
  };
}

function plotlyLayout(plot) {
  return {
    // The tool bar stands in the right margin, where it covers no point.
    margin: { l: 54, r: 34, t: 8, b: 44 },
    modebar: { orientation: "v" },
    font: { size: 11, color: textColour() },
    uirevision: 1, // what the reader has zoomed in on stays when the colours change
    paper_bgcolor: "#0000",
    plot_bgcolor: "#0000",
    legend: { orientation: "h", itemsizing: "constant", y: 1.02, yanchor: "bottom", x: 0 },
    showlegend: plot.traces.filter((trace) => trace.name).length > 1,
    barmode: plot.barmode ?? "group",
    hovermode: "closest",
    xaxis: axisLayout(plot.x, plot.xaxis),
    yaxis: axisLayout(plot.y, plot.yaxis),
  };
}

function lookOf(trace) {
  const style = trace.style ?? 0;
  const colours = dark.matches ? COLOURS_ON_DARK : COLOURS;
  const color = colours[style % 7];
  if (trace.type === "bar" || trace.type === "histogram") {
    return { marker: { color, pattern: { shape: PATTERNS[style % 7] } } };
  }
  // From the eighth trace on, colours come again, but with another marker and another dash.
  const turn = Math.floor(style / 7);
  return {
    marker: {
      color,
      symbol: MARKERS[(style + turn) % 7],
      size: trace.size ?? 5,
    },
    line: { color, dash: DASHES[turn % 4], width: 1.8 },
  };
}

function plotlyTraces(plot) {
  const set = page.sets[plot.set];
  const valuesOf = (values) => (typeof values === "string" ? set.fields[values] : values);
  return plot.traces.map((trace) => {
    const drawn = { type: "scatter", ...lookOf(trace), ...trace };
    drawn.x = valuesOf(trace.x);
    drawn.y = valuesOf(trace.y);
    if (trace.card) {
      drawn.hoverinfo = "none"; // the card says it
    }
    if (trace.error_y) {
      drawn.error_y = { ...trace.error_y, color: textColour() };
    }
    return drawn;
  });
}

const drawnPlots = [];

function drawPlot(plot, area) {
  Plotly.newPlot(area, plotlyTraces(plot), plotlyLayout(plot), {
    responsive: true,
    displaylogo: false,
    toImageButtonOptions: { format: "svg" },
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });
  drawnPlots.push([plot, area]);
  const showPoint = (traceNumber, { x, y, i }, position) => {
    const trace = plot.traces[traceNumber];
    if (trace.card) {
      showImageCard(position, page.sets[plot.set], i, trace.card);
    } else {
      // A histogram's point is a bin, which has no x of the trace's own.
      const title = trace.type === "histogram" ? x : area.data[traceNumber].x[i];
      showPointCard(position, plot, trace, title, y);
    }
  };
  area.on("plotly_hover", ({ event, points }) => {
    const { curveNumber, pointNumber } = points[0];
    if (plot.traces[curveNumber].card) {
      showPoint(curveNumber, { i: pointNumber }, { x: event.clientX, y: event.clientY });
    }
  });
  area.on("plotly_unhover", hideCard);
  listenToKeys(area, showPoint);
}

const TRACE_STEPS = { ArrowUp: 1, ArrowDown: -1 };
const POINT_STEPS = {
  ArrowRight: 1,
  ArrowLeft: -1,
  PageDown: 20,
  PageUp: -20,
  Home: -Infinity,
  End: Infinity,
};

// The points that a trace shows, by x, as {x, y, i}: bins of a histogram, and none of a trace that
// waits in the legend.
function shownPoints(area, traceNumber) {
  return area.calcdata[traceNumber]
    .filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y))
    .sort((a, b) => a.x - b.x);
}

// By keyboard, left and right go through a trace's points by x, up and down through the traces.
function listenToKeys(area, showPoint) {
  let traceNumber = 0;
  let rank = -1; // of the point, by x; none yet
  const hide = () => {
    hideCard();
    ring.hidden = true;
  };
  area.addEventListener("keydown", (event) => {
    const step = POINT_STEPS[event.key];
    const turn = TRACE_STEPS[event.key];
    if (event.key === "Escape") {
      hide();
    }
    if (step === undefined && turn === undefined) {
      return;
    }
    event.preventDefault();
    const traces = [...area.calcdata.keys()].filter((n) => shownPoints(area, n).length);
    if (!traces.length) {
      return;
    }
    const place = Math.max(0, traces.indexOf(traceNumber)) + (turn ?? 0);
    traceNumber = traces[(place + traces.length) % traces.length];
    const points = shownPoints(area, traceNumber);
    rank = Math.max(0, Math.min(points.length - 1, rank + (step ?? 0)));
    const point = points[rank];
    const { xaxis, yaxis } = area._fullLayout; // the only way to a point's pixels
    const box = area.getBoundingClientRect();
    const position = {
      x: box.left + xaxis._offset + xaxis.c2p(point.x),
      y: box.top + yaxis._offset + yaxis.c2p(point.y),
    };
    ring.hidden = false;
    ring.style.left = position.x + "px";
    ring.style.top = position.y + "px";
    showPoint(traceNumber, point, position);
  });
  area.addEventListener("blur", hide);
}

dark.addEventListener("change", () => {
  for (const [plot, area] of drawnPlots) {
    Plotly.react(area, plotlyTraces(plot), plotlyLayout(plot));
  }
});

function plotGrid(plots) {
  const figures = plots.map((plot) => {
    const note = plot.note ?? "";
    const area = make("div", "", {
      class: "area",
      tabindex: 0,
      role: "group",
      "aria-label": `${plot.title}. ${note} Arrow keys go through the points.`,
    });
    whenSeen(area, () => drawPlot(plot, area), true);
    return make("figure", [make("h3", plot.title), area, make("figcaption", note)]);
  });
  return [make("div", figures, { class: "plots" })];
}

// Scores and errors of a set's images. block.runs: [name, fields of its score, of its score mapped
// to the scale of the opinions, and of its error].
function errorPlots({ set, runs, opinion, fit, measures, note }) {
  // All runs but the first wait in the legend: their clouds would hide each other.
  const clouds = (xOf, yOf) =>
    runs.map((run, number) => {
      const fields = [opinion, ...run.slice(1), xOf(run), "kind", "group"];
      const trace = {
        x: xOf(run),
        y: yOf(run),
        name: run[0],
        style: number,
        mode: "markers",
        opacity: 0.75, // the least at which a point stands out from either background
        card: fields,
      };
      return number ? { ...trace, visible: "legendonly" } : trace;
    });
  const score = (run) => run[1];
  const error = (run) => run[3];
  if (measures) {
    return plotGrid(
      measures.map((name) => ({
        set,
        title: `error and ${name}`,
        x: name,
        y: "error",
        traces: clouds(() => name, error),
      })),
    );
  }
  const scoreTraces = clouds(score, () => opinion);
  if (fit) {
    scoreTraces.push({
      x: fit[0],
      y: fit[1],
      name: "logistic fitted to " + runs[0][0],
      mode: "lines",
      style: 6,
      hoverinfo: "skip",
    });
  }
  const histograms = clouds(error, error).map(({ x, name, style, opacity, visible }) => ({
    x,
    name,
    style,
    opacity,
    visible,
    type: "histogram",
    nbinsx: 40,
  }));
  const mapping = fit ? "mapped to the scale of the opinions by a logistic, " : "";
  const meaning = `error: score, ${mapping}minus opinion`;
  return plotGrid([
    { set, title: `score and ${opinion}`, x: "score", y: opinion, note, traces: scoreTraces },
    {
      set,
      title: `error and ${opinion}`,
      x: opinion,
      y: "error",
      note: meaning,
      traces: clouds(() => opinion, error),
    },
    {
      set,
      title: "errors",
      x: "error",
      y: "images",
      note: meaning,
      barmode: "overlay",
      traces: histograms,
    },
  ]);
}

// A figure of several runs by epoch in each panel [title, values of each run].
function curvePlots({ panels, runs }) {
  const longest = Math.max(...runs.map((run) => run.epochs.length));
  const xaxis = { tickformat: "d", dtick: Math.max(1, Math.floor(longest / 10)) };
  const plots = panels.map(([title, values]) => {
    const traces = runs.map((run, number) => ({
      x: run.epochs,
      y: values[number],
      name: run.name,
      style: number,
      mode: "lines+markers",
      size: run.epochs.map((epoch) => (epoch === run.best ? 13 : 6)),
    }));
    return { title, x: "epoch", y: title, note: "large marker: best epoch", xaxis, traces };
  });
  return plotGrid(plots);
}

// Bars of each level of quality in each panel [title, names of the bars, means of each level,
// half widths of their intervals or null].
function levelPlots({ panels, levels }) {
  const plots = panels.map(([title, names, means, halves]) => {
    const traces = levels.map((name, level) => {
      const trace = { x: names, y: means[level], name, style: level, type: "bar" };
      if (halves) {
        trace.error_y = { type: "data", array: halves[level], thickness: 1 };
      }
      return trace;
    });
    return { title, x: "", y: "", note: "levels of opinion, from low to high", traces };
  });
  return plotGrid(plots);
}

// ---- Tables ----

// The number that a cell's text begins with, after signs such as "~"; NaN where it has none.
function numberIn(cell) {
  if (typeof cell === "number") {
    return cell;
  }
  const text = String(cell).replace("−", "-");
  return parseFloat(text.replace(/^[^\d.-]+/, ""));
}

function compareCells(a, b, descending) {
  const x = numberIn(a);
  const y = numberIn(b);
  if (isNaN(x) !== isNaN(y)) {
    return isNaN(x) ? 1 : -1; // what has no figure comes last
  }
  const sign = descending ? -1 : 1;
  return sign * (isNaN(x) ? String(a).localeCompare(String(b)) : x - y);
}

// Where a row has no room, a figure's interval goes below the figure, in one piece.
function tableCell(cell) {
  const text = String(formatValue(cell));
  const [, figure, interval] = text.match(/^(.*?)( ~?\[.*\])?$/s);
  return make("td", interval ? [figure, " ", make("span", interval.trim())] : text);
}

function sortableTable({ head, rows, label }) {
  const rowNodes = rows.map((cells) => [cells, make("tr", cells.map(tableCell))]);
  const body = make("tbody");
  const fillBody = () => body.append(...rowNodes.map(([, node]) => node));
  const heads = head.map((title, column) => {
    const button = make("button", title, { type: "button" });
    const headNode = make("th", button, { scope: "col" });
    button.onclick = () => {
      const descending = headNode.getAttribute("aria-sort") !== "descending";
      heads.forEach((node) => node.removeAttribute("aria-sort"));
      headNode.setAttribute("aria-sort", descending ? "descending" : "ascending");
      rowNodes.sort(([a], [b]) => compareCells(a[column], b[column], descending));
      fillBody();
    };
    return headNode;
  });
  fillBody();
  const table = make("table", [make("thead", make("tr", heads)), body]);
  const attributes = { tabindex: 0, role: "region", "aria-label": label ?? "Table" };
  return [make("div", table, { class: "wide", ...attributes })];
}

// ---- Galleries ----

// The interval of an image's MOS, as a part of the scale of its set.
function intervalBar(set, image, [from, to]) {
  const low = set.fields.low[image];
  const high = set.fields.high[image];
  const percent = (value) => (100 * (value - from)) / (to - from || 1);
  const style = `left:${percent(low)}%;width:${percent(high) - percent(low)}%`;
  const text = `MOS ${formatValue(low)} to ${formatValue(high)}`;
  const title = `${text}, on a scale of ${formatValue(from)} to ${formatValue(to)}`;
  return [make("div", make("i", "", { style }), { class: "interval", title }), make("div", text)];
}

function galleryFigure(set, image, sortField, otherFields, { most = 3, scale }) {
  const caption = [];
  if (sortField) {
    const isFirst = sortField === Object.keys(set.fields)[0];
    caption.push(make("b", formatValue(set.fields[sortField][image])));
    caption.push(make("div", isFirst ? "" : sortField));
  }
  if (scale) {
    caption.push(...intervalBar(set, image, scale));
  }
  caption.push(make("div", set.names[image]));
  const known = otherFields.filter((name) => set.fields[name][image] !== null);
  for (const name of known.slice(0, most)) {
    caption.push(make("div", `${name} ${formatValue(set.fields[name][image])}`));
  }
  const content = [pictureOf(set, image), make("figcaption", caption)];
  return make("figure", content, { title: set.names[image] });
}

function compareValues(x, y, descending) {
  if (x === null || y === null) {
    return (x === null) - (y === null); // what has no value comes last
  }
  const sign = descending ? -1 : 1;
  return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
}

// Whether an image passes the filters of the view.
function isInView(view, name, value) {
  if (!name.toLowerCase().includes(view.word.toLowerCase())) {
    return false;
  }
  if (view.low === "" && view.high === "") {
    return true;
  }
  const low = view.low === "" ? -Infinity : +view.low;
  const high = view.high === "" ? Infinity : +view.high;
  return value !== null && value >= low && value <= high;
}

// A set's images, sorted by a field. One with a limit, and one in two columns, stays as it is;
// any other can be sorted and filtered by its reader.
function gallery(block) {
  const set = page.sets[block.set];
  // A field that no image has would only be one more choice.
  const isKnown = (name) => set.fields[name].some((value) => value !== null);
  const fields = Object.keys(set.fields).filter(isKnown);
  const grid = make("div", "", { class: block.two ? "gallery two" : "gallery" });
  const count = make("output");
  const view = { sortField: block.by, descending: block.down ?? true, low: "", high: "", word: "" };
  let order = [];

  const addFigures = () => {
    const start = grid.childElementCount;
    // What the bar of the interval says need not be said again.
    const shown = [view.sortField, ...(block.scale ? ["low", "high"] : [])];
    const otherFields = fields.filter((name) => !shown.includes(name));
    for (const image of order.slice(start, start + GALLERY_STEP)) {
      grid.append(galleryFigure(set, image, view.sortField, otherFields, block));
    }
    if (start + GALLERY_STEP < order.length) {
      whenSeen(grid.lastChild, addFigures);
    }
  };
  const fill = () => {
    const values = set.fields[view.sortField];
    const isShown = (image) => isInView(view, set.names[image], values?.[image]);
    order = [...set.names.keys()].filter(isShown);
    if (values) {
      order.sort((a, b) => compareValues(values[a], values[b], view.descending));
    }
    const total = set.names.length.toLocaleString("en");
    count.value = `${order.length.toLocaleString("en")} of ${total}`;
    order = order.slice(0, block.limit ?? Infinity);
    grid.replaceChildren();
    addFigures();
  };

  fill();
  return block.limit || block.two ? [grid] : [galleryControls(fields, view, count, fill), grid];
}

// What sorts and filters a gallery: it changes the view and fills the gallery again.
function galleryControls(fields, view, count, fill) {
  const filterInput = (filter, attributes) => {
    const input = make("input", "", attributes);
    input.oninput = () => {
      view[filter] = input.value;
      fill();
    };
    return input;
  };
  const number = (title) => ({ type: "number", "aria-label": title, step: "any" });
  const low = filterInput("low", number("at least"));
  const high = filterInput("high", number("at most"));
  const word = filterInput("word", { type: "search", "aria-label": "name contains" });

  const options = fields.map((name) => {
    const selected = name === view.sortField ? { selected: "" } : {};
    return make("option", name, { value: name, ...selected });
  });
  const select = make("select", options);
  select.onchange = () => {
    view.sortField = select.value;
    // Bounds on one field mean nothing on another.
    view.low = view.high = low.value = high.value = "";
    fill();
  };

  const directionName = () => (view.descending ? "descending" : "ascending");
  const direction = make("button", directionName(), { type: "button" });
  direction.onclick = () => {
    view.descending = !view.descending;
    direction.textContent = directionName();
    fill();
  };

  const labelled = (title, node) => make("label", [title, node]);
  const nodes = [
    labelled("sorted by", select),
    direction,
    labelled("at least", low),
    labelled("at most", high),
    labelled("name contains", word),
    count,
  ];
  return make("div", nodes, { class: "controls" });
}

// ---- The page ----

// Kind of block, as page.py names it -> its nodes.
const BLOCKS = {
  heading: (block) => [make("h3", block.title)],
  text: (block) => block.lines.map((line) => make("p", line)),
  list: (block) => {
    const items = block.lines.map((line) => make("li", line));
    return [make("ul", items)];
  },
  facts: (block) => {
    const items = block.rows.flatMap(([name, text]) => [make("dt", name), make("dd", text)]);
    const list = make("dl", items);
    return block.folded ? [make("details", [make("summary", block.folded), list])] : [list];
  },
  errors: errorPlots,
  curves: curvePlots,
  levels: levelPlots,
  table: sortableTable,
  gallery,
};

function drawPage() {
  document.querySelector("h1").textContent = page.title;
  const facts = page.facts.map((fact) => make("p", fact));
  document.getElementById("facts").append(...facts);
  const main = document.querySelector("main");
  const nav = document.querySelector("nav");
  for (const [number, section] of page.sections.entries()) {
    const id = `s${number}`;
    const heading = section.title ? make("h2", section.title) : "";
    const node = make("section", heading, { id });
    if (section.title && page.sections.length > 2) {
      nav.append(make("a", section.title, { href: "#" + id }));
    }
    main.append(node);
    for (const block of section.blocks) {
      node.append(...BLOCKS[block.kind](block));
    }
  }
}

// A page of runs that are under way is written again and again: take up the newest at intervals,
// at the place where the reader was.
function followRuns() {
  const scrollKey = "scroll " + location.pathname;
  addEventListener("beforeunload", () => sessionStorage.setItem(scrollKey, scrollY));
  if (page.reload) {
    scrollTo(0, +sessionStorage.getItem(scrollKey));
    setTimeout(() => location.reload(), 1000 * page.reload);
  }
}

drawPage();
followRuns();
document.body.dataset.ready = "yes"; // for tests, which wait for it
