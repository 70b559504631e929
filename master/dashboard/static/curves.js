// Charts of curves: those of one trial that share an axis, or one curve of several trials.

import {h} from "./dom.js";
import {curveWords, short} from "./format.js";
import {draw as drawFigure, forget} from "./plot.js";

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a6d00", "#2a7fb8", "#000000"];
const HEIGHT = 320; // pixels of a chart; the legend is within
const DASHES = ["solid", "dash", "dot", "dashdot"];
const GROUPS = [
  {title: "Loss", log: true, unit: "loss (nats)", match: (name) => /(^|_)loss$/.test(name)},
  {title: "Accuracy", unit: "accuracy (share)", match: (name) => /(^|_)acc$/.test(name)},
  {title: "Update:weight ratio", log: true, unit: "ratio of norms", line: 1e-3, match: (name) => /ratio/.test(name)},
  {title: "Learning rate", log: true, unit: "learning rate", match: (name) => /(^|_)(lr|learning_rate)$/.test(name)},
  {title: "Gradient norm", log: true, unit: "gradient norm", match: (name) => /grad/.test(name)},
  {title: "Dead or saturated units", unit: "share of the units", match: (name) => /dead|saturat/.test(name)},
];

/** Groups the curves of one trial that share an axis. */
export function chartsOfTrial(curves) {
  const axis = curves.epoch;
  if (!axis?.length) return [];
  const left = new Set(Object.keys(curves).filter((name) => name !== "epoch" && curves[name].some((value) => value !== null)));
  const charts = [];
  const words = curveWords([...left]);
  const lines = (names) => names.map((name) => ({name: words.get(name), x: axis, y: curves[name]}));
  for (const group of GROUPS) {
    const names = [...left].filter(group.match);
    names.forEach((name) => left.delete(name));
    if (names.length) charts.push(chart(group, lines(names)));
  }
  for (const name of left) charts.push(chart({title: capital(words.get(name)), unit: words.get(name)}, lines([name])));
  return charts;
}

/** Returns a chart for each curve that one of the trials has, with a line for each trial. */
export function chartsOfTrials(details) {
  const found = new Map(); // words -> {name, lines}; trials number their layers differently
  for (const {trial, curves} of details) {
    const names = Object.keys(curves).filter((name) => name !== "epoch" && curves[name].some((value) => value !== null));
    for (const [name, words] of curveWords(names)) {
      if (!found.has(words)) found.set(words, {name, lines: []});
      found.get(words).lines.push({name: trial, x: curves.epoch, y: curves[name]});
    }
  }
  return [...found].map(([words, {name, lines}]) => chart({...(GROUPS.find((one) => one.match(name)) ?? {unit: words}), title: capital(words)}, lines));
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Returns the title and the plotly figure of some lines: `{name, x, y}`. */
function chart(group, lines) {
  const data = lines.map(({name, x, y}, place) => ({
    type: "scatter", mode: x.length < 3 ? "lines+markers" : "lines", name: escapeText(name), x, y,
    line: {color: COLOURS[place % COLOURS.length], width: 2, dash: DASHES[Math.floor(place / COLOURS.length) % DASHES.length]},
  }));
  const positive = lines.flatMap(({y}) => y.filter((value) => value > 0));
  const axis = {gridcolor: "#e4e4e4", zeroline: false, showline: true, linecolor: "#6b6b6b", ticks: "outside", automargin: true};
  const layout = {
    title: {text: escapeText(group.title), x: 0.012, xanchor: "left", y: 1, yref: "container", yanchor: "top", pad: {t: 12}, font: {size: 15}}, height: HEIGHT, margin: {l: 56, r: 16, t: 40, b: 44}, showlegend: lines.length > 1,
    legend: {orientation: "h", yref: "container", y: 0.04, yanchor: "bottom", x: 0, xanchor: "left", font: {size: 11}}, font: {family: "system-ui, sans-serif", size: 12, color: "#222"}, paper_bgcolor: "white", plot_bgcolor: "white",
    xaxis: {...axis, title: {text: "epoch", standoff: 6}, rangemode: "tozero"}, yaxis: {...axis, title: {text: escapeText(group.unit), standoff: 6}, ...(group.log && positive.length ? logAxis(Math.min(...positive), Math.max(...positive)) : {})},
    shapes: group.line ? [{type: "line", xref: "paper", x0: 0, x1: 1, y0: group.line, y1: group.line, line: {color: "#6b6b6b", dash: "dash", width: 1}}] : [],
  };
  return {title: group.title, figure: {data, layout}};
}

/** Over more than two decades the ticks are powers of ten. Below, they are 1, 2 and 5 in each decade. */
function logAxis(least, most) {
  const decades = Math.log10(most / least);
  if (decades > 2) return {type: "log", dtick: Math.ceil(decades / 6), exponentformat: "power"};
  const ticks = [];
  for (let power = Math.floor(Math.log10(least)) - 1; power <= Math.log10(most) + 1; power += 1) ticks.push(...[1, 2, 5].map((digit) => digit * 10 ** power));
  return {type: "log", tickvals: ticks, ticktext: ticks.map((tick) => (tick < 1e-3 ? tick.toExponential() : short(tick)))};
}

/** Escapes text for plotly.js, which interprets some tags. The user chooses names of curves. */
const escapeText = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** Draws charts below one another and keeps those that are there already. */
export class Charts {
  constructor(holder, failed, open = null) {
    this.holder = holder;
    this.failed = failed;
    this.open = open; // called with the name of a trial whose line is clicked
    this.plots = new Map(); // title of a chart -> element
  }

  draw(charts) {
    for (const [title, element] of this.plots) {
      if (charts.some((one) => one.title === title)) continue;
      forget(element);
      element.remove();
      this.plots.delete(title);
    }
    for (const {title, figure} of charts) {
      if (!this.plots.has(title)) this.plots.set(title, this.holder.appendChild(h("figure", {class: "figure", "aria-label": title})));
      drawFigure(this.plots.get(title), figure, this.open).catch(this.failed);
    }
  }

  close() {
    this.plots.forEach(forget);
  }
}
