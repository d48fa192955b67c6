"use strict";

// Draws the curves from the logged numbers in the page, at the size that they have on the screen.
const numbers = JSON.parse(document.getElementById("numbers")?.textContent ?? "[]").map(expand);
const steps = [...new Set(numbers.flatMap(({ columns }) => columns.step ?? []))].sort((a, b) => a - b);
const slider = document.getElementById("step");
const MARGIN = { top: 8, right: 10, bottom: 22, left: 46 };

// Make columns of equal length from curves, of which each has the numbers of its rows and its values.
function expand({ run, steps, curves }) {
  const columns = { step: steps };
  for (const [key, [rows, values]] of Object.entries(curves)) {
    columns[key] = new Array(steps.length).fill(null);
    rows.forEach((row, index) => (columns[key][row] = values[index]));
  }
  return { run, columns };
}

function svg(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function html(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

function show(value) {
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? Number(value.toPrecision(3)).toExponential() : Number(value.toPrecision(4)).toString();
}

// Return up to `count` round numbers between `low` and `high`.
function chooseTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(10)));
}

function listSeries(chart) {
  const several = numbers.length > 1;
  return numbers.flatMap(({ run, columns }, index) =>
    [["train", chart.dataset.train], ["held-out", chart.dataset.heldOut]]
      .filter(([, key]) => key && columns[key])
      .map(([split, key]) => ({
        label: several ? `${run}, ${split}` : split,
        look: `run-${several ? index : 0} ${split}`,
        key,
        points: columns.step.map((step, row) => [step, columns[key][row]]).filter(([, value]) => typeof value === "number"),
      }))
  ).filter(({ points }) => points.length);
}

// Describe a chart in words, for screen readers.
function describe(title, series) {
  const parts = series.map(({ label, points }) => {
    const [[first, from], [last, to]] = [points[0], points.at(-1)];
    return points.length > 1 ? `${label} from ${show(from)} at step ${first} to ${show(to)} at step ${last}` : `${label} ${show(from)} at step ${first}`;
  });
  return `${title}: ${parts.join("; ") || "no finite value"}`;
}

class ChartView {
  constructor(figure) {
    this.figure = figure;
    this.canvas = figure.querySelector("svg");
    this.series = listSeries(figure);
    this.canvas.setAttribute("aria-label", describe(figure.dataset.title, this.series));
    this.values = this.series.map(({ label, look }) => {
      const item = figure.querySelector(".readout").appendChild(html("li", look));
      item.append(html("i", "swatch line"), `${label} `, html("b", "value"), html("span", "soft"));
      return item;
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
  }

  draw() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const [low, high] = this.findRange();
    const [first, last] = [steps[0], steps.at(-1) > steps[0] ? steps.at(-1) : steps[0] + 1];
    this.x = (step) => MARGIN.left + ((step - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
    this.y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    this.canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.canvas.replaceChildren(...this.drawAxes(width, height, low, high, first, last), ...this.series.flatMap((one) => this.drawSeries(one)));
    this.cursor = this.canvas.appendChild(svg("line", { class: "cursor", y1: MARGIN.top, y2: height - MARGIN.bottom }));
    this.dots = this.series.map(({ look }) => this.canvas.appendChild(svg("circle", { class: `dot ${look}`, r: 4 })));
    this.mark(steps[slider.value]);
  }

  // Small charts next to each other share one scale.
  findRange() {
    const sharing = this.figure.closest(".small") ? charts.filter(({ figure }) => figure.closest(".small")) : [this];
    const all = sharing.flatMap(({ series }) => series.flatMap(({ points }) => points.map(([, value]) => value)));
    const [low, high] = all.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
    const room = high > low ? (high - low) * 0.05 : Math.abs(low) * 0.1 || 1;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  drawAxes(width, height, low, high, first, last) {
    const across = chooseTicks(low, high, height > 180 ? 4 : 3).flatMap((tick) => [
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: this.y(tick), y2: this.y(tick) }),
      svg("text", { x: MARGIN.left - 8, y: this.y(tick) + 4, "text-anchor": "end" }, show(tick)),
    ]);
    const far = (tick) => this.x(tick) - this.x(first) > 45 && this.x(last) - this.x(tick) > 45;
    const between = chooseTicks(first, last, Math.max(1, Math.floor(width / 110))).filter(far);
    const along = [[first, "start"], ...between.map((tick) => [tick, "middle"]), [last, "end"]].map(([tick, anchor]) =>
      svg("text", { x: this.x(tick), y: height - 5, "text-anchor": anchor }, show(tick)));
    return [...across, ...along];
  }

  drawSeries({ look, points }) {
    const places = points.map(([step, value]) => `${this.x(step).toFixed(1)},${this.y(value).toFixed(1)}`);
    const line = svg("polyline", { class: `curve ${look}`, points: places.join(" ") });
    const spots = points.length <= 30 ? points.map(([step, value]) => svg("circle", { class: `spot ${look}`, cx: this.x(step), cy: this.y(value), r: 2.25 })) : [];
    return [line, ...spots];
  }

  point(event) {
    const { left } = this.canvas.getBoundingClientRect();
    const distance = (step) => Math.abs(this.x(step) - (event.clientX - left));
    const nearest = steps.reduce((best, step, index) => (distance(step) < distance(steps[best]) ? index : best), 0);
    choose(nearest);
  }

  // Show the values at a step, or the last ones before it.
  mark(step) {
    this.cursor?.setAttribute("x1", this.x(step));
    this.cursor?.setAttribute("x2", this.x(step));
    this.series.forEach(({ points }, index) => {
      const point = points.findLast(([at]) => at <= step);
      const [value, place] = this.values[index].querySelectorAll(".value, .soft");
      value.textContent = point ? show(point[1]) : "–";
      value.dataset.exact = point ? point[1] : "";
      place.textContent = point && point[0] !== step ? ` at ${point[0]}` : "";
      if (this.dots) {
        this.dots[index].setAttribute("visibility", point ? "visible" : "hidden");
        this.dots[index].setAttribute("cx", point ? this.x(point[0]) : 0);
        this.dots[index].setAttribute("cy", point ? this.y(point[1]) : 0);
      }
    });
  }
}

const charts = slider ? [...document.querySelectorAll(".chart")].map((figure) => new ChartView(figure)) : [];

function choose(index) {
  slider.value = index;
  const step = steps[index];
  slider.setAttribute("aria-valuetext", `step ${step}`);
  document.getElementById("shown-step").textContent = `${step} of ${steps.at(-1)}`;
  for (const chart of charts) if (chart.x) chart.mark(step);
}

if (slider) {
  slider.max = steps.length - 1;
  choose(steps.length - 1);
  slider.addEventListener("input", () => choose(Number(slider.value)));
  document.getElementById("all-numbers").addEventListener("toggle", writeTables, { once: true });
}

// Write the table of all numbers when it is opened first: a long run has many.
function writeTables() {
  const place = document.getElementById("tables");
  for (const { run, columns } of numbers) {
    const keys = Object.keys(columns);
    const region = html("div", "wide tall");
    for (const [name, value] of [["tabindex", 0], ["role", "region"], ["aria-label", `All logged numbers of ${run}`]]) region.setAttribute(name, value);
    const table = region.appendChild(html("table", "logged"));
    const head = table.createTHead().insertRow();
    for (const key of keys) head.appendChild(html("th", "", key)).scope = "col";
    const body = table.createTBody();
    (columns.step ?? []).forEach((_, row) => {
      const line = body.insertRow();
      for (const key of keys) line.insertCell().textContent = columns[key][row] ?? "";
    });
    if (numbers.length > 1) place.append(html("h4", "", run));
    place.append(region);
  }
}
