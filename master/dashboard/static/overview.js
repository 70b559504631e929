// The search at a glance: its progress, its best trial, and its border warnings.

import {fill, h, link, setText, state} from "./dom.js";
import {askAndKill} from "./ask.js";
import {budget, count, metric, short} from "./format.js";
import {FigureBox} from "./figures.js";
import {drawLive} from "./live.js";
import {chips, noteBox} from "./notes.js";

const SHOWN = ["completed", "exploded", "stopped", "killed", "failed", "running", "pending"];

export function overviewPage(main, app) {
  const heading = h("h1");
  const about = h("p", {class: "quiet"});
  const empty = h("section", {class: "empty", hidden: true}, h("h2", {}, "Nothing to show yet"), h("p", {id: "nothing"}));
  const guessing = h("p", {class: "border", id: "guessing", hidden: true});
  const best = h("section", {class: "card", id: "best", hidden: true});
  const live = h("section", {id: "live-numbers", hidden: true});
  const written = noteBox(app, {search: app.search ?? ""});
  const noted = h("section", {id: "noted", hidden: true});
  const cards = h("div", {class: "cards"});
  const figures = h("div", {class: "figures"});
  const notes = h("section", {hidden: true}, h("h2", {}, "Warnings"), h("ul"));
  main.append(heading, about, empty, guessing, best, written.element, live, cards, noted, figures, notes);
  const stages = new Map(); // stage name -> its card
  let boxes = null; // figures of the stage that is shown

  function update({overview, health, workers, searches}) {
    empty.hidden = Boolean(overview);
    if (!overview) {
      setText(heading, app.search ?? "coarsefine");
      setText(empty.querySelector("#nothing"), nothing(app, health, searches));
      fill(cards);
      best.hidden = guessing.hidden = live.hidden = noted.hidden = written.element.hidden = true;
      stages.clear();
      return;
    }
    setText(heading, overview.search);
    setText(about, aboutText(overview, workers));
    guessing.hidden = !overview.guessing;
    setText(guessing, overview.guessing?.sentence ?? "");
    drawBest(app, best, overview);
    drawLive(live, overview);
    written.update(overview.noted);
    drawNoted(noted, overview);
    const newest = overview.stages.filter((stage) => stage.launched && stage.version > 0 && stage.ended).at(-1)?.stage;
    for (const stage of overview.stages) {
      if (!stages.has(stage.stage)) {
        stages.set(stage.stage, stageCard(app, stage));
        cards.append(stages.get(stage.stage).element);
      }
      stages.get(stage.stage).update(stage, stage.stage === newest);
    }
    notes.hidden = !health.warnings.length;
    fill(notes.querySelector("ul"), health.warnings.map((warning) => h("li", {}, warning)));
    drawFigures(overview);
  }

  function drawFigures(overview) {
    const begun = overview.stages.filter((stage) => stage.launched && stage.version > 0 && stage.ended);
    const last = begun.filter((stage) => stage.best).at(-1) ?? begun.at(-1); // the last stage that has a best trial, else the last
    if (!last) return;
    if (boxes?.stage !== last.stage) {
      boxes?.all.forEach((box) => box.close());
      boxes = {stage: last.stage, all: ["rungs", "hyperparameters", "progress"].map((name) => new FigureBox(overview.search, last.stage, name))};
      fill(figures, boxes.all.map((box) => box.element));
    }
    boxes.all.forEach((box) => box.update(last.version));
  }

  return {update, close: () => boxes?.all.forEach((box) => box.close())};
}

function nothing(app, health, searches) {
  if (searches.some((line) => line.search === app.search)) return "Reading the search.";
  if (app.search && health.folder.state === "ok") return "A search appears here by itself once it is launched.";
  return health.folder.message.charAt(0).toUpperCase() + health.folder.message.slice(1) + ".";
}

function aboutText(overview, workers) {
  const watched = {true: "a master watches it", false: "no master watches it", null: "whether a master watches it is unknown"}[overview.master_alive];
  const alive = workers.filter((worker) => worker.state !== "lost").length;
  const aim = overview.mode === "max" ? "the highest" : "the lowest";
  return `Task ${overview.task}; ${aim} ${overview.metric} is best; ${alive} ${alive === 1 ? "worker" : "workers"}; ${watched}.`;
}

/** Shows the best trial of all stages, by budget first, and how it was drawn. */
function drawBest(app, card, overview) {
  const top = overview.best;
  card.hidden = !top;
  if (!top) return;
  const to = (trial) => link(`#/s/${encodeURIComponent(app.search)}/trial/${encodeURIComponent(trial)}`, trial);
  const key = JSON.stringify([top, overview.measured]);
  if (card.dataset.key === key) return;
  card.dataset.key = key;
  const drawn = overview.best_drawn;
  fill(card,
    h("h2", {}, "Best of the search"),
    h("p", {}, h("strong", {class: "value"}, metric(top.value)), ` ${top.metric}: `, to(top.trial), `, ${budget(top)}`, top.diagnosis ? `, ${top.diagnosis.word}` : "",
      overview.measured > 1 ? `; selected over ${count(overview.measured)} trials, by their budget first` : ""),
    drawn ? h("p", {class: "quiet"}, `Its configuration: ${drawn}`, top.parents.length ? ": " : "", ...top.parents.flatMap((parent, place) => (place ? [", ", to(parent)] : [to(parent)])), ".") : null);
}

/** Lists the trials with tags or notes. */
function drawNoted(section, overview) {
  const key = String(overview.notes_version);
  section.hidden = !overview.n_noted;
  if (section.dataset.key === key) return;
  section.dataset.key = key;
  const base = `#/s/${encodeURIComponent(overview.search)}`;
  const more = overview.n_noted - overview.noted_trials.length;
  fill(section, h("h2", {}, "Trials with tags or notes"), h("ul", {class: "plain"}, overview.noted_trials.map((row) =>
    h("li", {}, link(`${base}/trial/${encodeURIComponent(row.trial)}`, row.trial), " ", h("span", {class: "tags"}, chips(row.tags)), row.note ? ` ${row.note.split("\n")[0].slice(0, 120)}${row.note.length > 120 ? "…" : ""}` : ""))),
    more > 0 ? h("p", {class: "quiet"}, `and ${count(more)} more`) : null);
}

/** Makes the card of a stage: progress bar, counts, best trial and border warnings. */
function stageCard(app, first) {
  const name = first.stage;
  const base = `#/s/${encodeURIComponent(app.search)}`;
  const title = h("h2", {}, link(`${base}/trials?stage=${encodeURIComponent(name)}`, name));
  const budgetText = h("span", {class: "quiet"});
  const bar = h("div", {class: "bar", role: "progressbar", "aria-label": `progress of ${name}`, "aria-valuemin": "0"});
  const segments = new Map(SHOWN.map((word) => [word, bar.appendChild(h("span", {class: word}))]));
  const done = h("strong", {class: "done"});
  const left = h("span");
  const counts = h("p", {class: "counts"});
  const rungs = h("table", {class: "rungs", hidden: true}, h("thead", {}, h("tr", {}, ["budget", "trials", "trained", "run now", "go on"].map((title, place) => h("th", {scope: "col", class: place ? "number" : null}, title)))), h("tbody"));
  const best = h("p", {class: "best"});
  const cost = h("p", {class: "quiet cost", hidden: true});
  const borders = h("div");
  const button = h("button", {class: "danger small", hidden: true}, "Kill the stage");
  button.addEventListener("click", () =>
    askAndKill(app, {search: app.search, stage: name}, `Kill stage ${name}?`, "All its trials that wait or run end as killed. `master retry` can send them back.", "Kill them all"),
  );
  const element = h("section", {class: "card", "data-stage": name}, h("div", {class: "row"}, title, budgetText, button), bar, h("p", {}, done, " ", left), counts, rungs, best, cost, borders);

  function update(stage, isNewest) {
    const several = stage.rungs.length > 1;
    const by = trainingsByState(stage);
    const {running, pending} = stage.counts;
    setText(budgetText, budgetOf(stage));
    bar.setAttribute("aria-valuemax", stage.trainings);
    bar.setAttribute("aria-valuenow", stage.trained);
    for (const [word, segment] of segments) segment.style.flexGrow = String(by[word] ?? 0);
    const planned = several ? `${count(stage.trainings)} trainings of ${count(stage.trials)} new trials` : `${count(stage.trials)} trials`;
    setText(done, stage.launched ? `${count(stage.trained)} of ${planned}` : `${planned} planned`);
    const ended = stage.trained >= stage.trainings && !(running + pending && !several);
    setText(left, !stage.launched ? "not launched yet" : ended ? "done" : stage.pace === null ? (stage.counts_from === "redis" && !running ? "nothing trains now" : "the pace is not known yet") : `${stage.pace_words}, ${stage.left_words}`);
    setText(cost, `Cost: ${stage.cost.words}`);
    cost.hidden = !stage.cost.words;
    fill(counts, SHOWN.filter((word) => by[word]).map((word) => h("span", {class: "count"}, `${count(by[word])} `, state(word))));
    counts.hidden = !counts.childElementCount;
    rungs.hidden = !several;
    const key = JSON.stringify(stage.rungs);
    if (several && rungs.dataset.key !== key) fill(rungs.tBodies[0], stage.rungs.map((rung, place) => rungRow(rung, place === stage.rungs.length - 1)));
    rungs.dataset.key = key;
    fill(best, ...bestLine(stage, base));
    best.hidden = !stage.best;
    fill(borders, (isNewest ? stage.borders : []).map((border) => h("p", {class: "border"}, h("strong", {}, `Border: ${border.hyperparameter}. `), border.advice)));
    button.hidden = !(running + pending) || stage.counts_from !== "redis";
  }
  return {element, update};
}

/** Returns the budgets of a stage in words: "1, 2 and 7 epochs". */
function budgetOf(stage) {
  const all = stage.rungs.map((rung) => short(rung.epochs));
  const told = all.length > 1 ? `${all.slice(0, -1).join(", ")} and ${all.at(-1)}` : short(stage.epochs);
  return `${told} ${told === "1" ? "epoch" : "epochs"} a trial${stage.kind_words && `, ${stage.kind_words}`}`;
}

/**
 * Counts the trainings of a stage by state, over all rungs.
 * A trial that waits for a longer budget still counts as completed at its shorter ones.
 */
function trainingsByState(stage) {
  if (stage.rungs.length < 2) return stage.counts;
  const running = stage.rungs.reduce((sum, rung) => sum + rung.running, 0);
  const others = Object.fromEntries(["exploded", "stopped", "killed", "failed"].map((word) => [word, stage.counts[word] ?? 0]));
  const lost = Object.values(others).reduce((sum, n) => sum + n, 0);
  return {...others, completed: Math.max(0, stage.trained - lost), running, pending: Math.max(0, stage.trainings - stage.trained - running)};
}

function rungRow(rung, last) {
  const waits = rung.awaited < rung.planned ? `${count(rung.awaited)} of ${count(rung.planned)}` : count(rung.planned);
  const goOn = last ? "–" : rung.decided ? count(rung.promoted) : rung.promoted ? `${count(rung.promoted)} so far` : "open";
  return h("tr", {}, h("th", {scope: "row"}, `${short(rung.epochs)} ${rung.epochs === 1 ? "epoch" : "epochs"}`), h("td", {class: "number"}, waits), h("td", {class: "number"}, count(rung.trained)),
    h("td", {class: "number"}, rung.running ? count(rung.running) : ""), h("td", {class: "number"}, goOn));
}

function bestLine(stage, base) {
  const top = stage.best;
  if (!top) return [];
  const word = top.diagnosis ? `, ${top.diagnosis.word}` : "";
  return [
    stage.rungs.length > 1 ? "Best of its own " : "Best ", h("strong", {class: "value"}, metric(top.value)), ` ${top.metric}: `, link(`${base}/trial/${encodeURIComponent(top.trial)}`, top.trial), top.max_epochs > top.budget_epochs || top.rung ? `, ${budget(top)}` : "", word,
    stage.counts.completed > 1 ? `, selected over ${count(stage.counts.completed)} trials` : "",
  ];
}
