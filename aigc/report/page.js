// The page's own part: hands the data to DataTables and Plotly, and lets the table say which runs the charts show.
import DataTable, { set_or_remove_dark_class } from "datatables";

const COLOURS = ["#4c78a8", "#f58518", "#e45756", "#54a24b", "#b279a2", "#72b7b2", "#9d755d", "#ff9da6", "#bab0ac", "#d4a92a"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "star"];
const $ = (id) => document.getElementById(id);
const make = (tag, text = "", attributes = {}) => Object.assign(document.createElement(tag), { textContent: text }, attributes);
const escape = (text) => DataTable.render.text().display(String(text ?? ""));
const numbers = (packed) => new Float32Array(Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer);
const short = (value) => (Number.isFinite(value) ? Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 }) : "");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let data = JSON.parse($("data").textContent);
let table, score;
const slots = new Map(); // colour of each run in the charts by its folder, kept while it is there

const last = (way) => (a, b) => (a === "") - (b === "") || way * (a < b ? -1 : Number(a > b)); // without a value: last, up and down
DataTable.type("num", "order", { pre: (value) => value, asc: last(1), desc: last(-1) });
DataTable.type("string", "order", { pre: (value) => String(value).toLowerCase(), asc: last(1), desc: last(-1) });

// ---- the table ----

function cell(column) {
  return (value, kind, row) => {
    if (kind !== "display" || value === null || value === "") return value ?? ""; // also for the CSV file: as it is
    if (column.key === "run") return `<span class="swatch" data-run="${row[0]}"></span><span title="${escape(value)}">${escape(value)}</span>`;
    if (column.score) {
      const found = data.scores[column.key], [, low, high, letter] = found.values[row[0]];
      const interval = low === null || high === null ? "" : ` [${short(low)}, ${short(high)}]`;
      const several = Object.keys(found.protocols).length > 1 && column.key !== score;
      return short(value) + interval + (several ? `<span class="badge" title="${escape(found.protocols[letter])}">${letter}</span>` : "");
    }
    if (!column.number) return `<span title="${escape(value)}">${escape(value)}</span>`;
    return column.digits === undefined ? escape(value) : value.toLocaleString("en", { minimumFractionDigits: column.digits, maximumFractionDigits: column.digits });
  };
}

function standing() { // how the user has set the table; DataTables keeps all by name but the columns' filters
  const state = table.state(), filters = new Map(data.columns.map((column, k) => [column.key, state.columnControl?.[k + 1]]));
  return { state, filters, folders: ticked().map((run) => data.runs[run].folder) };
}

function rows() { // of the table, with the protocols of the chosen score
  const letters = data.columns.findIndex((column) => column.key === "protocol");
  return data.runs.map((run, k) => {
    if (letters >= 0 && score) run.cells[letters] = data.scores[score].values[k]?.[3] ?? "";
    return [k, ...run.cells];
  });
}

const tick = (folders) => table.rows((_, row) => folders.includes(data.runs[row[0]].folder)).select();

function buildTable(kept) {
  const columns = data.columns.map((column, k) => ({
    data: k + 1, name: column.key, visible: column.shown, render: cell(column),
    className: column.number ? "dt-right" : "wide", type: column.number ? "num" : "string",
    orderSequence: column.higher ? ["desc", "asc"] : ["asc", "desc"],
    columnControl: [{ extend: "searchDropdown", text: `Filter ${escape(column.title)}` }],
  }));
  const order = [];
  if (score && data.columns.some((column) => column.key === "protocol")) order.push({ name: "protocol", dir: "asc" });
  if (score) order.push({ name: score, dir: data.scores[score].higher ? "desc" : "asc" });
  table?.destroy();
  const head = make("tr");
  head.append(make("th"), ...data.columns.map((column) => make("th", column.title, { scope: "col" })));
  $("table").replaceChildren(make("thead"));
  $("table").tHead.append(head);
  table = new DataTable("#table", {
    data: rows(),
    stateSave: Boolean(kept), stateDuration: 0, stateSaveCallback: () => {},
    stateLoadCallback: () => ({ ...kept.state, columnControl: Object.fromEntries(columns.map((column, k) => [k + 1, kept.filters.get(column.name)])) }),
    columns: [{ data: null, orderable: false, render: DataTable.render.select(), columnControl: [] }, ...columns],
    select: { style: "multi", selector: "td:first-child", headerCheckbox: true },
    order, pageLength: 25, lengthMenu: [10, 25, 100, { label: "all", value: -1 }], autoWidth: false,
    language: { search: "Filter", entries: { _: "runs", 1: "run" }, select: { rows: { _: "%d ticked", 0: "", 1: "1 ticked" } } },
    layout: {
      bottomStart: ["info", "pageLength"],
      topStart: { search: { placeholder: "any column" } },
      topEnd: { buttons: [{ extend: "colvis", text: "Columns", columns: ":gt(0)" }, { extend: "csv", text: "CSV", title: data.title, exportOptions: { orthogonal: "export", columns: ":gt(0)" } }] },
    },
  });
  if (kept) tick(kept.folders);
  table.on("draw select deselect column-visibility", update);
}

const filtered = () => table.rows({ search: "applied", order: "applied" }).data().toArray().map((row) => row[0]);
const ticked = () => table.rows({ selected: true, search: "applied", order: "applied" }).data().toArray().map((row) => row[0]);

function chosen() {
  const picked = ticked(), all = filtered(), most = Math.max(1, Number($("shown").value) || 1);
  const runs = picked.length ? picked : all.slice(0, most);
  const folders = runs.map((run) => data.runs[run].folder);
  for (const folder of slots.keys()) if (!folders.includes(folder)) slots.delete(folder);
  for (const folder of folders) {
    if (slots.has(folder)) continue;
    const used = new Set(slots.values());
    let slot = 0;
    while (used.has(slot)) slot++;
    slots.set(folder, slot);
  }
  const how = picked.length ? "those ticked" : runs.length < all.length ? "the first as filtered and sorted; tick rows to choose others" : "all that pass the filter";
  $("showing").textContent = `${runs.length} of ${data.runs.length} runs in the charts: ${how}.`;
  return runs;
}

const slot = (run) => slots.get(data.runs[run].folder);
const colour = (run) => COLOURS[slot(run) % COLOURS.length];
const round = (run) => Math.floor(slot(run) / COLOURS.length) % DASHES.length; // the same colour again, dashed
const dash = (run) => DASHES[round(run)];
function paint(node, run) {
  const width = 4 - round(run);
  node.style.background = slot(run) === undefined ? "none" : `repeating-linear-gradient(90deg, ${colour(run)} 0 ${width}px, transparent ${width}px 4px)`;
  return node;
}
const swatch = (run) => paint(make("span", "", { className: "swatch" }), run);

// ---- charts ----

function draw(node, traces, layout) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text"), size: 12 }, showlegend: false,
    margin: { l: 50, r: 15, t: 34, b: 42 }, hovermode: "closest", hoverlabel: { namelength: -1 }, ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
  return Plotly.react(node, traces, whole, { responsive: true, displaylogo: false });
}

function smooth(values, weight) { // exponential, corrected for its start
  let mean = 0, total = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + 1 - weight;
    return mean / total;
  });
}

function curve(run, name, axis) {
  const group = data.runs[run].curves.find((group) => name in group.y && axis in group.x);
  return group && { x: numbers(group.x[axis]), y: numbers(group.y[name]) };
}

function drawCurves(runs) {
  const axis = $("axis").value, weight = Number($("smoothing").value);
  const names = [...$("choices").querySelectorAll("input:checked")].map((box) => box.value);
  const charts = new Map([...$("charts").children].map((node) => [node.dataset.name, node]));
  for (const [name, node] of charts) if (!names.includes(name)) { Plotly.purge(node); node.remove(); }
  for (const name of names) {
    const traces = [], letters = data.scores[name]?.curves ?? [], several = new Set(runs.map((run) => letters[run]).filter(Boolean)).size > 1;
    for (const run of runs) {
      const other = several && letters[run] && letters[run] !== "A" ? ` (protocol ${letters[run]})` : "";
      const found = curve(run, name, axis);
      if (!found) continue;
      const mode = found.x.length < 40 ? "lines+markers" : "lines";
      traces.push({ x: found.x, y: weight ? smooth(found.y, weight) : found.y, name: data.runs[run].label + other, mode, line: { color: colour(run), dash: dash(run), width: 1.5 }, marker: { size: 5 } });
    }
    const node = charts.get(name) ?? make("div", "", { className: "chart" });
    node.dataset.name = name;
    $("charts").append(node);
    const title = traces.length ? name : `${name}: no run shown logs it against ${axis}`;
    draw(node, traces, { title: { text: title, font: { size: 13 } }, xaxis: { title: { text: axis } }, yaxis: { type: $("log").checked ? "log" : "linear" } });
  }
}

function front(points, higher) { // what no other point beats in both cost and score; points are [cost, score]
  const sorted = [...points].sort((a, b) => a[0] - b[0] || (higher ? b[1] - a[1] : a[1] - b[1]));
  let best = higher ? -Infinity : Infinity;
  return sorted.filter(([, value]) => (higher ? value > best : value < best) && ((best = value), true));
}

function tradeoff(node, points, title, paths = []) { // points: { run, x, y, low, high, letter, text }
  const { higher } = data.scores[score], letters = [...new Set(points.map((point) => point.letter))].sort();
  const traces = paths.map(([run, x, y]) => ({ x, y, mode: "lines", hoverinfo: "skip", line: { color: colour(run), dash: "dot", width: 1 }, opacity: 0.6 }));
  for (const letter of letters) {
    const own = points.filter((point) => point.letter === letter), best = front(own.map((point) => [point.x, point.y]), higher);
    const name = letters.length > 1 ? `protocol ${letter}` : "";
    const intervals = own.some((point) => point.low !== null && point.high !== null);
    traces.push({ x: best.map((p) => p[0]), y: best.map((p) => p[1]), mode: "lines", name, hoverinfo: "skip", line: { color: css("--text"), width: 1.2, shape: "hv", dash: letter === letters[0] ? "solid" : "dash" } });
    traces.push({
      x: own.map((p) => p.x), y: own.map((p) => p.y), text: own.map((p) => `${p.text}${name && ` (${name})`}`), mode: "markers", name, hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
      marker: { color: own.map((p) => colour(p.run)), symbol: SYMBOLS[letters.indexOf(letter) % SYMBOLS.length], size: 10, line: { color: css("--back"), width: 1 } },
      ...(intervals && { error_y: { type: "data", symmetric: false, array: own.map((p) => (p.high ?? p.y) - p.y), arrayminus: own.map((p) => p.y - (p.low ?? p.y)), thickness: 1, color: css("--soft") } }),
    });
  }
  const type = $("logcost").checked ? "log" : "linear";
  draw(node, traces, { title: { text: `${score} (${higher ? "more" : "less"} is better)`, font: { size: 13 } }, xaxis: { title: { text: title }, type }, yaxis: { type: points.every((p) => p.y > 0) ? type : "linear" } });
}

function drawTradeoffs(runs) {
  if (!score) return;
  const minutes = data.columns.findIndex((column) => column.key === "minutes"), { values, costs } = data.scores[score];
  const points = [], paths = [];
  for (const run of runs) {
    const { cells, label } = data.runs[run];
    const spent = values[run]?.[4] ?? cells[minutes]; // at the checkpoint that was scored, else of all training
    if (values[run] && Number.isFinite(spent)) points.push({ run, x: Number(spent.toPrecision(3)), y: values[run][0], low: values[run][1], high: values[run][2], letter: values[run][3], text: escape(label) });
    const path = curve(run, score, "minutes");
    if (path) paths.push([run, path.x, path.y]);
  }
  tradeoff($("minutes"), points, "minutes of training", paths);
  const which = Number($("cost").value), known = costs.filter((cost) => runs.includes(cost[0]) && cost[which]);
  $("nosampling").hidden = known.length > 0;
  $("sampling").hidden = known.length === 0;
  if (known.length) tradeoff($("sampling"), known.map((cost) => ({ run: cost[0], x: cost[which], y: cost[3], low: cost[4], high: cost[5], letter: cost[6], text: escape(data.runs[cost[0]].label) })), $("cost").selectedOptions[0].text);
}

function dimension(key, values) {
  if (values.every((value) => typeof value === "number")) return { label: key, values };
  const words = [...new Set(values.map((value) => String(value ?? "")))].sort();
  return { label: key, values: values.map((value) => words.indexOf(String(value ?? ""))), tickvals: words.map((_, k) => k), ticktext: words.map((word) => word.slice(0, 24)) };
}

function drawParallel() {
  const runs = score ? filtered().filter((run) => data.scores[score].values[run]) : [];
  const dimensions = data.columns.map((entry, k) => [entry, k])
    .filter(([entry, k]) => (entry.setting || ["family", "data", "protocol"].includes(entry.key)) && table.column(k + 1).visible())
    .map(([entry, k]) => dimension(entry.title, runs.map((run) => data.runs[run].cells[k])));
  const told = dimensions.filter(({ values }) => new Set(values).size > 1);
  $("nothing").hidden = told.length > 0 && runs.length > 1;
  $("coordinates").hidden = !$("nothing").hidden;
  if ($("coordinates").hidden) return;
  const values = runs.map((run) => data.scores[score].values[run][0]);
  $("coordinates").style.width = `${Math.max(640, 130 * (told.length + 1))}px`;
  const line = { color: values, colorscale: [[0, "#3b7dd8"], [0.5, "#9b8fb0"], [1, "#f0801a"]], reversescale: !data.scores[score].higher, showscale: true };
  const trace = { type: "parcoords", line, dimensions: [...told, { label: score, values }], labelfont: { size: 12 }, unselected: { line: { opacity: 0.08 } } };
  draw($("coordinates"), [trace], { margin: { l: 60, r: 30, t: 60, b: 20 } });
}

// ---- pictures, legend, settings ----

function drawGrids(runs) {
  const key = $("key").value, axis = $("axis").value === "minutes" ? "minutes" : "images", by = axis === "minutes" ? 1 : 0;
  const pictures = (run) => (data.runs[run].grids[key] ?? []).filter((picture) => picture[by] !== null), found = runs.filter((run) => pictures(run).length);
  const stops = [...new Set(found.flatMap((run) => pictures(run).map((picture) => picture[by])))].sort((a, b) => a - b);
  const range = $("progress"), last = Number(range.max), atEnd = !range.dataset.used || Number(range.value) >= last;
  range.max = Math.max(0, stops.length - 1);
  if (atEnd) range.value = range.max;
  const at = stops[Number(range.value)] ?? 0;
  $("at").textContent = by ? `${at.toFixed(1)} minutes of training` : `${at.toLocaleString("en")} images seen`;
  $("figures").replaceChildren(...found.map((run) => {
    const { label, data: set } = data.runs[run], all = pictures(run), before = all.filter((picture) => picture[by] <= at);
    const [images, minutes, source] = before.at(-1) ?? all[0], figure = make("figure"), caption = make("figcaption", label);
    const path = score && curve(run, score, axis), value = path && path.y[path.x.findLastIndex((x) => x <= at * (1 + 1e-6))];
    const told = [set, `${images.toLocaleString("en")} images`, by ? `${minutes.toFixed(1)} minutes` : "", short(value) && `${score} ${short(value)}`];
    caption.prepend(swatch(run));
    caption.append(make("small", told.filter(Boolean).join(", ") + (before.length ? "" : all.length > 1 ? " (its first)" : " (its only one)")));
    figure.append(caption, make("img", "", { src: source, alt: `${key} of ${label} after ${images} images` }));
    return figure;
  }));
}

function drawLegend(runs) {
  $("legend").replaceChildren(...runs.map((run) => {
    const entry = make("li", data.runs[run].label);
    entry.prepend(swatch(run));
    return entry;
  }));
  for (const node of document.querySelectorAll("#table .swatch")) paint(node, Number(node.dataset.run));
}

function drawDifferences(runs) {
  const head = make("tr"), body = make("tbody");
  head.append(make("th", "setting", { scope: "col" }), ...runs.map((run) => make("th", data.runs[run].label, { scope: "col" })));
  for (const [key, values] of Object.entries(data.settings)) {
    if (new Set(runs.map((run) => String(values[run]))).size < 2) continue;
    const row = make("tr");
    row.append(make("th", key, { scope: "row" }), ...runs.map((run) => make("td", values[run] ?? "–", { className: values[run] === null ? "missing" : "" })));
    body.append(row);
  }
  if (!body.children.length) body.append(make("tr")), body.firstChild.append(make("td", "Nothing differs between the runs shown."));
  $("settings").replaceChildren(make("thead"), body);
  $("settings").firstChild.append(head);
}

function drawProtocols() {
  const found = score && data.scores[score];
  const sentences = [...(found ? found.warnings : []), ...data.warnings];
  $("warnings").hidden = !sentences.length;
  $("warnings").replaceChildren(...sentences.map((sentence) => make("li", sentence)));
  const lines = found ? Object.entries(found.protocols).map(([letter, words]) => `${letter}: ${words}`) : [];
  $("protocols").textContent = found ? `${score}, ${found.higher ? "more" : "less"} is better. Measured with\n${lines.join("\n")}` : "No run has a score yet.";
}

// ---- all of it ----

let waiting;
function update() { // once for all changes of a moment
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => {
    const runs = chosen();
    drawLegend(runs);
    drawCurves(runs);
    drawGrids(runs);
    drawTradeoffs(runs);
    drawParallel();
    drawDifferences(runs);
  });
}

function options(node, names, kept) {
  node.replaceChildren(...names.map((name) => make("option", name, { value: name, selected: name === kept })));
  node.disabled = !names.length;
}

function fill() { // everything that depends on which names the data have
  const ticks = [...$("choices").querySelectorAll("input:checked")].map((box) => box.value);
  const checked = ticks.length ? ticks : data.charts;
  $("choices").replaceChildren(...data.curves.map((name) => {
    const label = make("label", ` ${name}`);
    label.prepend(make("input", "", { type: "checkbox", value: name, checked: checked.includes(name) }));
    return label;
  }));
  const keys = [...new Set(data.runs.flatMap((run) => Object.keys(run.grids)))];
  options($("key"), keys, $("key").value || "samples");
  $("grids").hidden = !keys.length;
  options($("score"), Object.keys(data.scores), score);
  $("made").textContent = `${data.live ? "Live, last change" : "Written"} ${data.made}: ${data.runs.length} runs in ${data.root}`;
  drawProtocols();
}

function show(fresh) {
  const kept = table && standing(), same = table && JSON.stringify(fresh.columns) === JSON.stringify(data.columns);
  data = fresh;
  if (!(score in data.scores)) score = Object.keys(data.scores)[0];
  fill();
  if (!same) return buildTable(kept), update();
  table.clear().rows.add(rows());
  tick(kept.folders);
  table.draw(false);
}

async function poll() {
  try {
    const answer = await fetch(`data?after=${data.live.version}`);
    if (answer.status === 200) show(await answer.json());
  } catch {
    $("made").textContent = `The server has ended; this is how the runs stood at ${data.made}.`;
  }
  setTimeout(poll, 1000 * data.live.seconds);
}

$("shown").value = data.shown;
$("size").addEventListener("input", () => $("figures").style.setProperty("--size", `${$("size").value}px`));
$("progress").addEventListener("input", () => (($("progress").dataset.used = "yes"), drawGrids(chosen())));
for (const id of ["axis", "smoothing", "log", "choices", "key", "cost", "logcost", "shown"]) $(id).addEventListener("input", update);
$("score").addEventListener("change", () => { score = $("score").value; show(data); table.columns([`${score}:name`, "protocol:name"]).visible(true); table.order([table.column(`${score}:name`).index(), data.scores[score].higher ? "desc" : "asc"]).draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
set_or_remove_dark_class();
show(data);
if (data.live) poll();
