// The page of one trial: configuration, live curves, diagnosis, attempts, weights.

import {at, get} from "./api.js";
import {fill, h, link, setText, state} from "./dom.js";
import {askAndKill} from "./ask.js";
import {Charts, chartsOfTrial} from "./curves.js";
import {followLog} from "./logs.js";
import {noteBox} from "./notes.js";
import {clock, count, curveWords, duration, epochs, metric, short, spread} from "./format.js";

const LEAST_MS = 400;
const MOST_CHILDREN = 20; // shown on the page; the best trial of a large search has hundreds
export function trialPage(main, app, wanted) {
  const id = wanted.trial ?? "";
  const heading = h("h1", {}, id, " ");
  const badge = h("span");
  heading.append(badge);
  const problem = h("p", {class: "problem", role: "alert", hidden: true});
  const standing = h("p", {class: "quiet", id: "standing", hidden: true});
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
  const attempts = h("table", {}, h("thead", {}, h("tr", {}, ["try", "budget", "state", "metric", "epochs", "trained for", "worker", "device", "ended", "reason"].map((title) => h("th", {scope: "col"}, title)))), h("tbody"));
  const picture = h("section", {hidden: true});
  const output = outputOf(app, id);
  const written = noteBox(app, {search: app.search ?? "", trial: id});
  const descent = h("section", {class: "card", id: "descent", hidden: true});
  const body = h("div", {hidden: true},
    facts, written.element, descent, diagnosis, reason,
    h("h2", {}, "Configuration"), h("div", {class: "row"}, copyButton, copied), toml,
    h("h2", {}, "Curves"), nowhere, single, charts, picture, output.element,
    h("h2", {}, "Attempts"), h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Attempts"}, attempts));
  main.append(h("div", {class: "row"}, heading, button), standing, problem, body);

  const plots = new Charts(charts, (error) => setText(nowhere, error.message));
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
    const word = detail.state === "pending" && detail.rung ? "promoted, waits" : null;
    if (badge.dataset.state !== `${detail.state} ${word}`) fill(badge, word ? h("span", {class: "state pending"}, word) : state(detail.state));
    badge.dataset.state = `${detail.state} ${word}`;
    setText(standing, standingOf(detail));
    standing.hidden = !standing.textContent;
    button.hidden = !(detail.state === "running" || detail.state === "pending");
    drawFacts(facts, detail);
    drawDescent(app, descent, detail);
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
    written.update(detail.noted);
    output.update(detail.outputs);
    drawAttempts(attempts.tBodies[0], detail.attempts);
    drawCurves(detail);
  }

  function drawCurves(detail) {
    const once = detail.curves.epoch?.length === 1; // a single point makes no line
    const wantedCharts = once ? [] : chartsOfTrial(detail.curves);
    nowhere.hidden = wantedCharts.length > 0 || once;
    single.hidden = !once;
    if (once) fill(single, h("div", {class: "whole quiet"}, `One evaluation, after epoch ${epochs(detail.curves.epoch[0])}:`), [...curveWords(Object.keys(detail.curves).filter((name) => name !== "epoch"))].map(([name, words]) => h("div", {}, h("dt", {}, words), h("dd", {}, short(detail.curves[name][0])))));
    setText(nowhere, detail.state === "running" ? "No epoch has ended yet; the curves appear here by themselves." : detail.state === "pending" ? "It waits for a worker." : "It left no curves.");
    plots.draw(wantedCharts);
  }

  return {
    update,
    close: () => {
      clearTimeout(again);
      asked?.abort();
      plots.close();
      output.close();
    },
  };
}

/** The output of a trial's program or loop, followed while it runs. One of several attempts can be chosen. */
function outputOf(app, id) {
  const pick = h("select", {});
  const chooser = h("label", {hidden: true}, "Attempt ", pick);
  const place = h("div");
  const element = h("section", {hidden: true, id: "output"}, h("h2", {}, "Output"), h("p", {class: "quiet"}, `All of it: master logs ${id}`, " ", chooser), place);
  let log = null;
  let shown = null; // the attempt
  let chosen = false; // whether the reader chose it

  function open(attempt) {
    log?.close();
    shown = attempt;
    log = followLog((query) => get(`searches/${at(app.search ?? "")}/trials/${at(id)}/output`, {attempt, ...query}), `output of ${id}, attempt ${attempt}`);
    fill(place, log.element);
    pick.value = String(attempt);
  }

  pick.addEventListener("change", () => {
    chosen = true;
    open(Number(pick.value));
  });

  function update(attempts) {
    element.hidden = !attempts.length;
    if (!attempts.length) return;
    chooser.hidden = attempts.length < 2;
    if (pick.dataset.key !== attempts.join()) fill(pick, attempts.map((one) => h("option", {value: one}, String(one))));
    pick.dataset.key = attempts.join();
    const latest = Math.max(...attempts);
    if (shown === null || (!chosen && shown !== latest)) open(latest);
    else pick.value = String(shown);
  }
  return {element, update, close: () => log?.close()};
}

/** Says why a trial with ended attempts waits or runs again. Empty for any other trial. */
function standingOf(detail) {
  const before = detail.attempts.filter((row) => row.state !== "running");
  if (!before.length || (detail.state !== "pending" && detail.state !== "running")) return "";
  const plural = (n) => `${short(n)} ${n === 1 ? "epoch" : "epochs"}`;
  const then = detail.state === "pending" ? "It waits for a worker that trains it" : "It now trains";
  const completed = before.findLast((row) => row.rung < detail.rung);
  if (completed) return `It completed ${plural(completed.budget_epochs)} and was promoted. ${then} to ${plural(detail.budget_epochs)}.`;
  return `An earlier attempt ended without a result. ${then} again.`;
}

function drawFacts(list, detail) {
  const running = detail.running;
  const facts = [
    ["Rank in its stage", detail.rank ? `${count(detail.rank)} of ${count(detail.of)} ended` : null],
    [running ? `${detail.metric}, best so far` : detail.metric, detail.value === null ? null : metric(detail.value)],
    ["Mean of its configuration", detail.repeats ? spread(detail.repeats) : null],
    ["Validation loss", detail.val_loss === null || detail.metric === "val_loss" ? null : metric(detail.val_loss)],
    ...Object.entries(detail.metrics).filter(([name]) => name !== detail.metric && name !== "val_loss").map(([name, value]) => [name, value === null ? null : metric(value)]),
    ["Epochs", `${epochs(detail.epochs)} of ${epochs(detail.budget_epochs)}`],
    ["Budget", detail.rung || detail.max_epochs > detail.budget_epochs ? detail.budget : null],
    ["Best epoch", detail.best_epoch === null ? null : epochs(detail.best_epoch)],
    ["First loss", detail.first_loss === null ? null : metric(detail.first_loss)],
    ["Worker", running?.worker ?? detail.attempts.at(-1)?.worker],
    ["Phase", running?.phase],
    ["Running for", running ? duration(running.claimed_s) : null],
    ["Array", running?.array_width ? `${running.array_width} wide` : null],
    ["Cost", detail.cost.words || null],
    ["Seed", detail.seed],
    ["Weights", detail.checkpoint ? h("code", {class: "path"}, detail.checkpoint) : running || detail.state === "pending" ? null : "not kept"],
  ];
  fill(list, facts.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** Shows how a trial was drawn, its parents and children, and its value within each budget. */
function drawDescent(app, card, detail) {
  const key = JSON.stringify([detail.rungs, detail.parents, detail.children, detail.drawn, detail.state]);
  card.hidden = !detail.drawn && detail.rungs.length < 2 && !detail.children.length;
  if (card.hidden || card.dataset.key === key) return;
  card.dataset.key = key;
  const rows = detail.rungs.map((rung, place) => h("tr", {}, h("th", {scope: "row"}, `${short(rung.epochs)} ${rung.epochs === 1 ? "epoch" : "epochs"}`),
    h("td", {class: "number"}, metric(rung.value)), h("td", {}, place ? "promoted" : "new", rung.stage && place ? [" in stage ", link(`#/s/${encodeURIComponent(app.search)}/trials?stage=${encodeURIComponent(rung.stage)}`, rung.stage)] : "")));
  fill(card, h("h2", {}, "Line of descent"),
    detail.drawn ? h("p", {}, `Its configuration: ${detail.drawn_words}`, detail.parents.length ? ": " : "", ...relatives(app, detail.parents), ".") : null,
    ...OFFSPRING.map(({is, one, many}) => childrenLine(app, detail.children.filter(is), one, many)),
    h("table", {class: "rungs"}, h("thead", {}, h("tr", {}, ["budget", detail.metric, "how"].map((title, place) => h("th", {scope: "col", class: place === 1 ? "number" : null}, title)))), h("tbody", {}, rows)));
}

/** The kinds of children, by how they were drawn, and what the page says of one and of many. */
const OFFSPRING = [
  {is: (child) => child.drawn === "repeat", one: "One trial trained its configuration again: ", many: (n) => `${n} trials trained its configuration again: `},
  {is: (child) => child.drawn === "heir", one: "One trial went on from its weights: ", many: (n) => `${n} trials went on from its weights: `},
  {is: (child) => child.drawn !== "repeat" && child.drawn !== "heir", one: "One trial was drawn from it: ", many: (n) => `${n} trials were drawn from it: `},
];

function childrenLine(app, children, one, many) {
  if (!children.length) return null;
  const more = children.length - MOST_CHILDREN;
  return h("p", {}, children.length === 1 ? one : many(count(children.length)), ...relatives(app, children.slice(0, MOST_CHILDREN)), more > 0 ? ` and ${count(more)} more` : "", ".");
}

function relatives(app, all) {
  return all.flatMap((one, place) => [
    place ? ", " : "", link(`#/s/${encodeURIComponent(app.search)}/trial/${encodeURIComponent(one.trial)}`, one.trial),
    one.value === null ? "" : ` (${metric(one.value)} at ${short(one.budget_epochs)})`,
  ]);
}

function drawAttempts(body, rows) {
  fill(body, rows.map((row) =>
    h("tr", {}, h("td", {class: "number"}, String(row.attempt)), h("td", {}, `${row.rung ? "promoted to " : ""}${short(row.budget_epochs)} ${row.budget_epochs === 1 ? "epoch" : "epochs"}`), h("td", {}, state(row.state)), h("td", {class: "number"}, metric(row.value)), h("td", {class: "number"}, epochs(row.epochs)),
      h("td", {class: "number"}, duration(row.seconds)), h("td", {}, row.worker ?? "–"), h("td", {}, row.device ?? "–"), h("td", {}, clock(row.ended_at)), h("td", {}, row.reason ?? ""))));
}

async function copy(source, told) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    setText(told, "copied");
  } catch {
    // Without https or localhost browsers give no clipboard, so the text is selected instead.
    getSelection().selectAllChildren(source);
    setText(told, "selected: copy it with the keyboard");
  }
}
