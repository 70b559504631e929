// Charts of curves: those of one trial that share an axis, or one curve of several trials.

import {h} from "./dom.js";
import {curve, short} from "./format.js";
import {draw as drawFigure, forget} from "./plot.js";

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a6d00", "#2a7fb8", "#000000"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const GROUPS = [
  {title: "Loss", log: true, unit: "loss (nats)", match: (name) => /(^|_)loss$/.test(name)},
  {title: "Accuracy", unit: "share", match: (name) => /(^|_)acc$/.test(name)},
  {title: "Update:weight ratio", log: true, unit: "ratio", line: 1e-3, match: (name) => /ratio/.test(name)},
  {title: "Learning rate", log: true, unit: "learning rate", match: (name) => /(^|_)(lr|learning_rate)$/.test(name)},
  {title: "Gradient norm", log: true, unit: "norm", match: (name) => /grad/.test(name)},
  {title: "Dead or saturated units", unit: "share", match: (name) => /dead|saturat/.test(name)},
];

/** Groups the curves of one trial that share an axis. */
export function chartsOfTrial(curves) {
  const axis = curves.epoch;
  if (!axis?.length) return [];
  const left = new Set(Object.keys(curves).filter((name) => name !== "epoch" && curves[name].some((value) => value !== null)));
  const charts = [];
  const lines = (names) => names.map((name) => ({name: curve(name), x: axis, y: curves[name]}));
  for (const group of GROUPS) {
    const names = [...left].filter(group.match);
    names.forEach((name) => left.delete(name));
    if (names.length) charts.push(chart(group, lines(names)));
  }
  for (const name of left) charts.push(chart({title: curve(name), unit: curve(name)}, lines([name])));
  return charts;
}

/** Returns a chart for each curve that one of the trials has, with a line for each trial. */
export function chartsOfTrials(details) {
  const names = new Set(details.flatMap((detail) => Object.keys(detail.curves).filter((name) => name !== "epoch" && detail.curves[name].some((value) => value !== null))));
  return [...names].map((name) => {
    const group = GROUPS.find((one) => one.match(name)) ?? {unit: curve(name)};
    const having = details.filter((detail) => detail.curves[name]);
    return chart({...group, title: curve(name)}, having.map((detail) => ({name: detail.trial, x: detail.curves.epoch, y: detail.curves[name]})));
  });
}

/** Returns the title and the plotly figure of some lines: `{name, x, y}`. */
function chart(group, lines) {
  const data = lines.map(({name, x, y}, place) => ({
    type: "scatter", mode: x.length < 3 ? "lines+markers" : "lines", name: escapeText(name), x, y,
    line: {color: COLOURS[place % COLOURS.length], width: 2, dash: DASHES[Math.floor(place / COLOURS.length) % DASHES.length]},
  }));
  const positive = lines.flatMap(({y}) => y.filter((value) => value > 0));
  const axis = {gridcolor: "#e4e4e4", zeroline: false, showline: true, linecolor: "#6b6b6b", ticks: "outside", automargin: true};
  const layout = {
    title: {text: escapeText(group.title), x: 0, xref: "paper", font: {size: 15}}, height: 320, margin: {l: 56, r: 12, t: 40, b: 44}, showlegend: lines.length > 1,
    legend: {orientation: "h", y: -0.28, font: {size: 11}}, font: {family: "system-ui, sans-serif", size: 12, color: "#222"}, paper_bgcolor: "white", plot_bgcolor: "white",
    xaxis: {...axis, title: {text: "epoch"}, rangemode: "tozero"}, yaxis: {...axis, title: {text: escapeText(group.unit)}, ...(group.log && positive.length ? logAxis(Math.min(...positive), Math.max(...positive)) : {})},
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
  return {type: "log", tickvals: ticks, ticktext: ticks.map(short)};
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
