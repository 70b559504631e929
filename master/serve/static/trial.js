// One trial: configuration, curves as they come, diagnosis, attempts, weights.

import {at, get} from "./api.js";
import {fill, h, setText, state} from "./dom.js";
import {askAndKill} from "./ask.js";
import {clock, count, duration, epochs, metric, short} from "./format.js";
import {draw as drawFigure, forget} from "./plot.js";

const LEAST_MS = 400;
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

export function trialPage(main, app, wanted) {
  const id = wanted.trial ?? "";
  const heading = h("h1", {}, id, " ");
  const badge = h("span");
  heading.append(badge);
  const problem = h("p", {class: "problem", role: "alert", hidden: true});
  const button = h("button", {class: "danger small", hidden: true}, "Kill this trial");
  button.addEventListener("click", () =>
    askAndKill(app, {search: app.search, trial: id}, `Kill trial ${id}?`, "It ends as killed at its worker's next step. `master retry` can send it back.", "Kill it"),
  );
  const facts = h("dl", {class: "facts"});
  const diagnosis = h("section", {class: "card", hidden: true});
  const reason = h("section", {hidden: true});
  const charts = h("div", {class: "figures"});
  const nowhere = h("p", {class: "quiet", hidden: true});
  const single = h("dl", {class: "facts card", hidden: true});
  const toml = h("pre", {id: "toml", tabindex: "0"});
  const copied = h("span", {class: "quiet", role: "status"});
  const copyButton = h("button", {class: "small", onclick: () => copy(toml, copied)}, "Copy as TOML");
  const attempts = h("table", {}, h("thead", {}, h("tr", {}, ["try", "state", "metric", "epochs", "took", "worker", "device", "ended", "reason"].map((title) => h("th", {scope: "col"}, title)))), h("tbody"));
  const picture = h("section", {hidden: true});
  const body = h("div", {hidden: true},
    facts, diagnosis, reason,
    h("h2", {}, "Configuration"), h("div", {class: "row"}, copyButton, copied), toml,
    h("h2", {}, "Curves"), nowhere, single, charts, picture,
    h("h2", {}, "Attempts"), h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Attempts"}, attempts));
  main.append(h("div", {class: "row"}, heading, button), problem, body);

  const plots = new Map(); // title -> element
  let shown = "";
  let asked = null;
  let again = null;
  let lastAt = 0;

  function update(now) {
    const stage = now.overview?.stages.find((one) => id.startsWith(`${one.stage}-`));
    const key = JSON.stringify([now.moving, now.sequence, stage?.version]);
    if (key === shown || asked) return;
    clearTimeout(again);
    const wait = lastAt + LEAST_MS - Date.now();
    if (wait > 0) again = setTimeout(() => update(app.state), wait);
    else load(key);
  }

  async function load(key) {
    lastAt = Date.now();
    asked = new AbortController();
    try {
      const detail = await get(`searches/${at(app.search ?? "")}/trials/${at(id)}`, {}, asked.signal);
      problem.hidden = true;
      body.hidden = false;
      draw(detail);
    } catch (error) {
      if (error.name === "AbortError") return;
      problem.hidden = false;
      setText(problem, error.message);
    } finally {
      asked = null;
    }
    shown = key;
    if (app.state) update(app.state);
  }

  function draw(detail) {
    if (badge.dataset.state !== detail.state) fill(badge, state(detail.state));
    badge.dataset.state = detail.state;
    button.hidden = !(detail.state === "running" || detail.state === "pending");
    drawFacts(facts, detail);
    diagnosis.hidden = !detail.diagnosis;
    if (detail.diagnosis) fill(diagnosis, h("h2", {}, `Diagnosis: ${detail.diagnosis.word}`), h("p", {}, detail.diagnosis.sentence));
    reason.hidden = !detail.reason && !detail.traceback;
    const opened = reason.querySelector("details")?.open;
    if (!reason.hidden) fill(reason, h("p", {class: "border"}, h("strong", {}, "Why it ended: "), detail.reason ?? "it raised"), detail.traceback ? h("details", {open: opened}, h("summary", {}, "Traceback"), h("pre", {}, detail.traceback)) : null);
    setText(toml, detail.toml);
    picture.hidden = !detail.picture;
    if (detail.picture && picture.dataset.of !== `${detail.attempt}`) {
      fill(picture, h("h3", {}, "First-layer weights"), h("img", {src: detail.picture, alt: `First-layer weights of ${id}`, class: "weights"}));
      picture.dataset.of = `${detail.attempt}`;
    }
    drawAttempts(attempts.tBodies[0], detail.attempts);
    drawCurves(detail);
  }

  function drawCurves(detail) {
    const once = detail.curves.epoch?.length === 1; // a point is no curve
    const wantedCharts = once ? [] : chartsOf(detail.curves);
    nowhere.hidden = wantedCharts.length > 0 || once;
    single.hidden = !once;
    if (once) fill(single, h("div", {class: "whole quiet"}, `One evaluation, after epoch ${epochs(detail.curves.epoch[0])}:`), Object.entries(detail.curves).filter(([name]) => name !== "epoch").map(([name, values]) => h("div", {}, h("dt", {}, name), h("dd", {}, short(values[0])))));
    setText(nowhere, detail.state === "running" ? "No epoch has ended yet; the curves appear here by themselves." : detail.state === "pending" ? "It waits for a worker." : "It left no curves.");
    for (const [title, element] of plots) {
      if (!wantedCharts.some((chart) => chart.title === title)) {
        forget(element);
        element.remove();
        plots.delete(title);
      }
    }
    for (const chart of wantedCharts) {
      if (!plots.has(chart.title)) plots.set(chart.title, charts.appendChild(h("figure", {class: "figure", "aria-label": chart.title})));
      drawFigure(plots.get(chart.title), chart.figure).catch((error) => setText(nowhere, error.message));
    }
  }

  return {
    update,
    close: () => {
      clearTimeout(again);
      asked?.abort();
      plots.forEach(forget);
    },
  };
}

function drawFacts(list, detail) {
  const running = detail.running;
  const facts = [
    ["Rank", detail.rank ? `${count(detail.rank)} of ${count(detail.of)} ended` : null],
    [running ? `${detail.metric}, best so far` : detail.metric, detail.value === null ? null : metric(detail.value)],
    ["Validation loss", detail.val_loss === null || detail.metric === "val_loss" ? null : metric(detail.val_loss)],
    ["Epochs", `${epochs(detail.epochs)} of ${epochs(detail.budget_epochs)}`],
    ["Best epoch", detail.best_epoch === null ? null : epochs(detail.best_epoch)],
    ["First loss", detail.first_loss === null ? null : metric(detail.first_loss)],
    ["Worker", running?.worker ?? detail.attempts.at(-1)?.worker],
    ["Phase", running?.phase],
    ["Running for", running ? duration(running.claimed_s) : null],
    ["Array", running?.array_width ? `${running.array_width} wide` : null],
    ["Seed", detail.seed],
    ["Weights", detail.checkpoint ? h("code", {class: "path"}, detail.checkpoint) : running || detail.state === "pending" ? null : "not kept"],
  ];
  fill(list, facts.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function drawAttempts(body, rows) {
  fill(body, rows.map((row) =>
    h("tr", {}, h("td", {class: "number"}, String(row.attempt)), h("td", {}, state(row.state)), h("td", {class: "number"}, metric(row.value)), h("td", {class: "number"}, epochs(row.epochs)),
      h("td", {class: "number"}, duration(row.seconds)), h("td", {}, row.worker ?? "–"), h("td", {}, row.device ?? "–"), h("td", {}, clock(row.ended_at)), h("td", {}, row.reason ?? ""))));
}

/** The curves in groups that share an axis. */
function chartsOf(curves) {
  const axis = curves.epoch;
  if (!axis?.length) return [];
  const left = new Set(Object.keys(curves).filter((name) => name !== "epoch" && curves[name].some((value) => value !== null)));
  const charts = [];
  for (const group of GROUPS) {
    const names = [...left].filter(group.match);
    names.forEach((name) => left.delete(name));
    if (names.length) charts.push({title: group.title, figure: chart(group, names, curves)});
  }
  for (const name of left) charts.push({title: name, figure: chart({title: name, unit: name}, [name], curves)});
  return charts;
}

function chart(group, names, curves) {
  const few = curves.epoch.length < 3;
  const data = names.map((name, place) => ({
    type: "scatter", mode: few ? "lines+markers" : "lines", name: escapeText(name), x: curves.epoch, y: curves[name],
    line: {color: COLOURS[place % COLOURS.length], width: 2, dash: DASHES[Math.floor(place / COLOURS.length) % DASHES.length]},
  }));
  const positive = names.flatMap((name) => curves[name].filter((value) => value > 0));
  const decades = positive.length ? Math.log10(Math.max(...positive) / Math.min(...positive)) : 0;
  const axis = {gridcolor: "#e4e4e4", zeroline: false, showline: true, linecolor: "#6b6b6b", ticks: "outside", automargin: true};
  const layout = {
    title: {text: escapeText(group.title), x: 0, xref: "paper", font: {size: 15}}, height: 320, margin: {l: 56, r: 12, t: 40, b: 44}, showlegend: names.length > 1,
    legend: {orientation: "h", y: -0.28, font: {size: 11}}, font: {family: "system-ui, sans-serif", size: 12, color: "#222"}, paper_bgcolor: "white", plot_bgcolor: "white",
    xaxis: {...axis, title: {text: "epoch"}, rangemode: "tozero"}, yaxis: {...axis, title: {text: escapeText(group.unit)}, ...(group.log && positive.length ? {type: "log", dtick: decades > 2 ? Math.ceil(decades / 6) : "D2", exponentformat: "power"} : {})},
    shapes: group.line ? [{type: "line", xref: "paper", x0: 0, x1: 1, y0: group.line, y1: group.line, line: {color: "#6b6b6b", dash: "dash", width: 1}}] : [],
  };
  return {data, layout};
}

/** plotly.js reads some tags in text; a curve's name is the user's. */
const escapeText = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

async function copy(source, told) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    setText(told, "copied");
  } catch {
    // Without https or localhost browsers give no clipboard: select it for the reader instead.
    getSelection().selectAllChildren(source);
    setText(told, "selected: copy it with the keyboard");
  }
}
