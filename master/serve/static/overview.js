// The search at a glance: is it moving, what is best, is anything at a border.

import {fill, h, link, setText, state} from "./dom.js";
import {askAndKill} from "./ask.js";
import {count, duration, metric, pace, short} from "./format.js";
import {FigureBox} from "./figures.js";

const SHOWN = ["completed", "exploded", "stopped", "killed", "failed", "running", "pending"];

export function overviewPage(main, app) {
  const heading = h("h1");
  const about = h("p", {class: "quiet"});
  const empty = h("section", {class: "empty", hidden: true}, h("h2", {}, "Nothing to show yet"), h("p", {id: "nothing"}));
  const cards = h("div", {class: "cards"});
  const figures = h("div", {class: "figures"});
  const notes = h("section", {hidden: true}, h("h2", {}, "Warnings"), h("ul"));
  main.append(heading, about, empty, cards, figures, notes);
  const stages = new Map(); // name -> its card
  let boxes = null; // the figures of the stage that is shown

  function update({overview, health, workers}) {
    empty.hidden = Boolean(overview);
    if (!overview) {
      setText(heading, app.search ?? "coarsefine");
      setText(empty.querySelector("#nothing"), nothing(app, health));
      fill(cards);
      stages.clear();
      return;
    }
    setText(heading, overview.search);
    setText(about, aboutText(overview, workers));
    for (const stage of overview.stages) {
      if (!stages.has(stage.stage)) {
        stages.set(stage.stage, stageCard(app, stage));
        cards.append(stages.get(stage.stage).element);
      }
      stages.get(stage.stage).update(stage, overview);
    }
    notes.hidden = !health.warnings.length;
    fill(notes.querySelector("ul"), health.warnings.map((warning) => h("li", {}, warning)));
    drawFigures(overview);
  }

  function drawFigures(overview) {
    const begun = overview.stages.filter((stage) => stage.launched && stage.version > 0 && stage.ended);
    const last = begun.filter((stage) => stage.best).at(-1) ?? begun.at(-1); // the last that has something to show
    if (!last) return;
    if (boxes?.stage !== last.stage) {
      boxes?.all.forEach((box) => box.close());
      boxes = {stage: last.stage, all: ["hyperparameters", "progress"].map((name) => new FigureBox(overview.search, last.stage, name))};
      fill(figures, boxes.all.map((box) => box.element));
    }
    boxes.all.forEach((box) => box.update(last.version));
  }

  return {update, close: () => boxes?.all.forEach((box) => box.close())};
}

function nothing(app, health) {
  if (app.search && health.folder.state === "ok") return `There is no search "${app.search}" in ${health.folder.where}. It appears here by itself once it is launched.`;
  return health.folder.message.charAt(0).toUpperCase() + health.folder.message.slice(1) + ".";
}

function aboutText(overview, workers) {
  const watched = {true: "a master watches it", false: "no master watches it", null: "Redis does not tell who watches it"}[overview.master_alive];
  const alive = workers.filter((worker) => worker.state !== "lost").length;
  const aim = overview.mode === "max" ? "the most" : "the least";
  return `Task ${overview.task}; ${aim} ${overview.metric} is best; ${alive} ${alive === 1 ? "worker" : "workers"}; ${watched}.`;
}

/** One stage: the bar, the figures in words, its best trial and its borders. */
function stageCard(app, first) {
  const name = first.stage;
  const base = `#/s/${encodeURIComponent(app.search)}`;
  const title = h("h2", {}, link(`${base}/trials?stage=${encodeURIComponent(name)}`, name));
  const budget = h("span", {class: "quiet"});
  const bar = h("div", {class: "bar", role: "progressbar", "aria-label": `progress of ${name}`, "aria-valuemin": "0"});
  const segments = new Map(SHOWN.map((word) => [word, bar.appendChild(h("span", {class: word}))]));
  const done = h("strong", {class: "done"});
  const left = h("span");
  const counts = h("p", {class: "counts"});
  const best = h("p", {class: "best"});
  const borders = h("div");
  const button = h("button", {class: "danger small", hidden: true}, "Kill the stage");
  button.addEventListener("click", () =>
    askAndKill(app, {search: app.search, stage: name}, `Kill stage ${name}?`, "All its trials that wait or run end as killed. `master retry` can send them back.", "Kill them all"),
  );
  const element = h("section", {class: "card", "data-stage": name}, h("div", {class: "row"}, title, budget, button), bar, h("p", {}, done, " ", left), counts, best, borders);

  function update(stage) {
    const {counts: by} = stage;
    setText(budget, `${short(stage.epochs)} ${stage.epochs === 1 ? "epoch" : "epochs"} a trial${stage.kind === "seeds" ? ", from other seeds" : ""}`);
    bar.setAttribute("aria-valuemax", stage.trials);
    bar.setAttribute("aria-valuenow", stage.ended);
    for (const [word, segment] of segments) segment.style.flexGrow = String(by[word] ?? 0);
    setText(done, stage.launched ? `${count(stage.ended)} of ${count(stage.trials)} trials` : `${count(stage.trials)} trials planned`);
    setText(left, !stage.launched ? "not launched yet" : stage.ended >= stage.trials ? "done" : stage.pace === null ? "none has ended in the last minute" : `${pace(stage.pace)}, about ${duration(stage.left_s)} left`);
    fill(counts, SHOWN.filter((word) => by[word]).map((word) => h("span", {class: "count"}, `${count(by[word])} `, state(word))));
    counts.hidden = !counts.childElementCount;
    fill(best, ...bestLine(stage, base));
    best.hidden = !stage.best;
    fill(borders, stage.borders.map((border) => h("p", {class: "border"}, h("strong", {}, `Border: ${border.hyperparameter}. `), border.advice)));
    button.hidden = !(by.running + by.pending) || stage.counts_from !== "redis";
  }
  return {element, update};
}

function bestLine(stage, base) {
  const top = stage.best;
  if (!top) return [];
  const word = top.diagnosis ? `, ${top.diagnosis.word}` : "";
  return [
    "Best ", h("strong", {class: "value"}, metric(top.value)), ` ${top.metric}: `, link(`${base}/trial/${encodeURIComponent(top.trial)}`, top.trial), word,
    stage.counts.completed > 1 ? `, selected over ${count(stage.counts.completed)} trials` : "",
  ];
}
