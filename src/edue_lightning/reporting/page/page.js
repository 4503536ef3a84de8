"use strict";
(() => {
const all = (query, within = document) => [...within.querySelectorAll(query)];
const hidden = new Set();
const dark = matchMedia("(prefers-color-scheme: dark)");

// ------------------------------------------------------------------------------------------------- hide methods
function show(method, shown) {
  if (shown) hidden.delete(method); else hidden.add(method);
  update();
}
function update() {
  for (const part of all("[data-method]")) part.classList.toggle("away", hidden.has(part.dataset.method));
  for (const control of all("[data-toggle]")) {
    const shown = !hidden.has(control.dataset.toggle);
    if (control.type === "checkbox") control.checked = shown; else control.setAttribute("aria-pressed", shown);
  }
  all(".canvas[data-drawn]").forEach(draw);
}
for (const control of all("[data-toggle]")) {
  const changed = control.type === "checkbox" ? "change" : "click";
  control.addEventListener(changed, () => show(control.dataset.toggle, hidden.has(control.dataset.toggle)));
}
const methods = () => all("#methods input").map(box => box.dataset.toggle);
document.getElementById("all").addEventListener("click", () => { hidden.clear(); update(); });
document.getElementById("none").addEventListener("click", () => { methods().forEach(one => hidden.add(one)); update(); });
if (matchMedia("(max-width: 62rem)").matches) all(".menu").forEach(menu => { menu.open = false; });

// ------------------------------------------------------------------------------------------------- sort
const numberOf = cell => parseFloat((cell.querySelector("small") && cell.closest(".matrix") ? cell.querySelector("small")
  : cell).textContent.replace(/,/g, ""));
function sorted(items, cellOf, up) {
  return items.sort((a, b) => {
    const [x, y] = [numberOf(cellOf(a)), numberOf(cellOf(b))];
    return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : (up ? 1 : -1) * (x - y);
  });
}
for (const button of all("button.sort")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  if (table.classList.contains("matrix")) {
    const column = head.cellIndex;
    body.append(...sorted([...body.rows], row => row.cells[column], up));
  } else {
    const cells = [...head.parentElement.cells].slice(1);
    const order = sorted(cells.map((_, number) => number), number => cells[number], up);
    for (const row of table.rows) {
      const own = [...row.cells].slice(1);
      row.append(...order.map(number => own[number]));
    }
  }
  all("[aria-sort]", table).forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
});

// ------------------------------------------------------------------------------------------------- matrix
const tip = document.getElementById("tip");
function explain(cell) {
  const text = cell && cell.querySelector(".details");
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text.textContent;
  const place = cell.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(place.left, innerWidth - tip.offsetWidth - 8)) + "px";
  const below = place.bottom + 4;
  tip.style.top = (below + tip.offsetHeight > innerHeight ? place.top - tip.offsetHeight - 4 : below) + "px";
}
for (const table of all("table.matrix")) {
  const cellAt = (row, column) => row && row.cells[column] && row.cells[column].tagName === "TD" ? row.cells[column] : null;
  all("td", table).forEach((cell, number) => { cell.tabIndex = number ? -1 : 0; });
  // read aloud with the cell, which shows it on hover and focus
  all("td", table).forEach(cell => {
    const text = cell.querySelector(".details");
    if (text) cell.setAttribute("aria-label", cell.querySelector("b").textContent + ". " + text.textContent);
  });
  table.addEventListener("mouseover", event => explain(event.target.closest("td")));
  table.addEventListener("mouseleave", () => explain(null));
  table.addEventListener("focusin", event => explain(event.target.closest("td")));
  table.addEventListener("focusout", () => explain(null));
  table.addEventListener("keydown", event => {
    const cell = event.target.closest("td"), steps = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
    if (event.key === "Escape") tip.hidden = true;
    if (!cell || !steps[event.key]) return;
    const [down, right] = steps[event.key], rows = [...table.tBodies[0].rows].filter(row => !row.classList.contains("away"));
    const next = cellAt(rows[rows.indexOf(cell.parentElement) + down], cell.cellIndex + right);
    event.preventDefault();
    if (!next) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
document.addEventListener("scroll", () => { tip.hidden = true; }, {passive: true});

// ------------------------------------------------------------------------------------------------- figures
const touch = matchMedia("(pointer: coarse)").matches;
const variable = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function spec(canvas) {
  const data = JSON.parse(canvas.parentElement.querySelector("script").textContent);
  const text = variable("--text"), line = variable("--line"), soft = variable("--soft"), band = variable("--band");
  const traces = data.data.filter(trace => !hidden.has(trace.meta.method));
  for (const trace of traces) {
    const colour = dark.matches ? trace.meta.dark : trace.meta.light;
    if (!colour) { trace.error_x.color = band; trace.marker.color = "rgba(0,0,0,0)"; continue; }
    if (trace.type === "box") { trace.fillcolor = colour; trace.line.color = soft; continue; }
    if (trace.line) trace.line.color = colour;
    if (trace.marker) trace.marker.color = colour;
    if (trace.error_x) trace.error_x.color = colour;
  }
  const layout = Object.assign({}, data.layout, {
    margin: {l: 56, r: 12, t: 8, b: 44}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    hovermode: "closest", dragmode: touch ? false : "zoom", font: {family: "system-ui, sans-serif", size: 12, color: text},
    hoverlabel: {bgcolor: text, font: {color: variable("--back")}, align: "left", namelength: -1}});
  for (const name of ["xaxis", "yaxis"])
    Object.assign(layout[name], {gridcolor: line, linecolor: soft, zeroline: false, automargin: true, fixedrange: touch});
  if (layout.yaxis.categoryarray) {
    const rows = new Set(traces.filter(trace => trace.meta.method).map(trace => trace.y[0]));
    const before = layout.yaxis.categoryarray.length;
    layout.yaxis.categoryarray = layout.yaxis.categoryarray.filter(row => rows.has(row));
    layout.height -= (before - layout.yaxis.categoryarray.length) * (traces.some(trace => trace.type === "box") ? 34 : 19);
    layout.yaxis.range = [-0.6, layout.yaxis.categoryarray.length - 0.4];
    layout.yaxis.tickfont = {size: 11};
    layout.yaxis.showgrid = false;
    layout.margin.b = 40;
    const narrow = canvas.clientWidth < 430;
    Object.assign(layout.xaxis, {tickangle: 0, nticks: narrow ? 3 : 5});
    layout.yaxis.tickfont.size = narrow ? 10 : 11;
  }
  for (const shape of layout.shapes || []) shape.line.color = soft;
  return [traces, layout];
}
function draw(canvas) {
  const [traces, layout] = spec(canvas);
  canvas.style.minHeight = layout.height + "px";
  canvas.dataset.drawn = "yes";
  return Plotly.react(canvas, traces, layout, {displayModeBar: false, responsive: true, doubleClick: "reset"});
}
function zoom(figure, factor) {
  for (const canvas of all(".canvas[data-drawn]", figure)) {
    if (!factor) { draw(canvas); continue; }
    const change = {};
    for (const name of ["xaxis", "yaxis"]) {
      const axis = canvas._fullLayout[name];
      if (axis.type === "category") continue;
      const [low, high] = axis.range, middle = (low + high) / 2;
      change[name + ".range"] = [middle - (middle - low) * factor, middle + (high - middle) * factor];
    }
    Plotly.relayout(canvas, change);
  }
}
async function start() {
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
  }, {rootMargin: "300px"});
  for (const figure of all("figure.chart")) {
    figure.querySelector("img.static").style.display = "none";
    all(".plots, .legend, .zooms", figure).forEach(part => { part.hidden = false; });
    all(".canvas", figure).forEach(canvas => seen.observe(canvas));
    all("[data-zoom]", figure).forEach(button => button.addEventListener("click", () => zoom(figure, +button.dataset.zoom)));
  }
  dark.addEventListener("change", () => all(".canvas[data-drawn]").forEach(draw));
  document.documentElement.dataset.ready = "yes";
}
// the pictures of the figures stay where a browser cannot unpack the library
if (typeof DecompressionStream === "function") start().catch(error => { console.error(error); });
let closed = [];
addEventListener("beforeprint", () => { closed = all("main details:not([open])"); closed.forEach(part => { part.open = true; }); });
addEventListener("afterprint", () => closed.forEach(part => { part.open = false; }));
})();
