// The numbers of a search that move: pace, time left, cost, and who trains what.

import {fill, h} from "./dom.js";
import {count} from "./format.js";

const MOST_ROWS = 12; // more workers than this are shown by kind

/** Draws the numbers of an overview into `section`. */
export function drawLive(section, overview) {
  const key = JSON.stringify([overview.estimate, overview.to_come, overview.cost, overview.at_work]);
  const facts = factsOf(overview);
  section.hidden = !facts.length;
  if (section.dataset.key === key) return;
  section.dataset.key = key;
  fill(section, h("dl", {class: "facts"}, facts.map(([title, value]) => h("div", {}, h("dt", {}, title), h("dd", {}, value)))), atWork(overview.at_work));
}

function factsOf({estimate, to_come: later, cost, at_work: workers}) {
  const n = (word) => workers.filter((worker) => worker.does === word).length;
  const others = Object.entries({idle: "idle", elsewhere: "with another search", aside: "put aside", quitting: "leaving"});
  const said = [[n("trains"), workers.length === n("trains") ? (workers.length === 1 ? "trains" : "train") : "train"], ...others.map(([word, title]) => [n(word), title])].filter(([number]) => number);
  return [
    ["Pace", estimate.pace_words],
    ["Time left", estimate.left_words.replace(" left", "")],
    ["Stages to come", later.left_words.replace(" left", "")],
    ["Cost so far", cost.words],
    ["Workers", said.map(([number, title]) => `${count(number)} ${title}`).join(", ")],
  ].filter(([, value]) => value);
}

/** The table of who trains what; nothing if no worker trains. */
function atWork(workers) {
  if (!workers.some((worker) => worker.does === "trains")) return null;
  const rows = workers.length > MOST_ROWS ? byKind(workers) : workers.map((worker) => [worker.worker, worker]);
  const cells = ([name, worker]) => [name, worker.device, worker.does === "trains" ? doing(worker) : worker.does === "elsewhere" ? "trains for another search" : worker.does, worker.widths.length ? worker.widths.map(count).join(", ") : "", worker.backend];
  return h("details", {open: true}, h("summary", {}, "Who trains what"),
    h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Who trains what"},
      h("table", {}, h("thead", {}, h("tr", {}, ["worker", "device", "does", "array width", "steps"].map((title) => h("th", {scope: "col"}, title)))),
        h("tbody", {}, rows.map((row) => h("tr", {}, cells(row).map((text, place) => h(place ? "td" : "th", {scope: place ? null : "row"}, text))))))));
}

const doing = ({trials, stages}) => `${count(trials)} ${trials === 1 ? "trial" : "trials"} of ${Object.keys(stages).join(", ")}`;

/** Puts workers together that have the same device, do the same, and compute alike. */
function byKind(workers) {
  const kinds = new Map();
  for (const worker of workers) {
    const key = JSON.stringify([worker.device, worker.does, worker.backend, Object.keys(worker.stages), worker.widths]);
    const known = kinds.get(key);
    if (known) {
      known.n += 1;
      known.trials += worker.trials;
    } else kinds.set(key, {...worker, n: 1});
  }
  return [...kinds.values()].map((kind) => [`${count(kind.n)} ${kind.n === 1 ? "worker" : "workers"}`, kind]);
}
