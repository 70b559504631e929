// All searches of the folder: progress, best, pace, time left, cost and tags.

import {fill, h, link, setText} from "./dom.js";
import {count, metric} from "./format.js";
import {chips} from "./notes.js";

const MOST_NOTE = 200; // characters of a note

export function searchesPage(main) {
  const note = h("p", {class: "quiet"});
  const cards = h("div", {class: "cards"});
  main.append(h("h1", {}, "Searches"), note, cards);

  function update({searches, health}) {
    setText(note, searches.length ? `${count(searches.length)} in ${health.folder.where}` : "No search has been launched yet; searches appear here by themselves.");
    const key = JSON.stringify(searches);
    if (cards.dataset.key === key) return;
    cards.dataset.key = key;
    const focused = document.activeElement?.closest?.("[data-search]")?.dataset.search;
    fill(cards, searches.map(card));
    if (focused) cards.querySelector(`[data-search="${CSS.escape(focused)}"] a`)?.focus({preventScroll: true});
  }
  return {update};
}

function card({search, running, trained, trainings, trials, best, estimate, cost, tags, note}) {
  const base = `#/s/${encodeURIComponent(search)}`;
  const bar = h("div", {class: "bar", role: "progressbar", "aria-label": `progress of ${search}`, "aria-valuemin": "0", "aria-valuemax": trainings, "aria-valuenow": trained},
    h("span", {class: "completed", style: `flex-grow: ${trained}`}), h("span", {class: "running", style: `flex-grow: ${running}`}), h("span", {class: "pending", style: `flex-grow: ${Math.max(0, trainings - trained - running)}`}));
  const of = trainings > trials ? `${count(trained)} of ${count(trainings)} trainings of ${count(trials)} trials` : `${count(trained)} of ${count(trials)} trials`;
  const live = [estimate.pace_words, estimate.left_words].filter(Boolean).join(", ");
  return h("section", {class: "card", "data-search": search},
    h("div", {class: "row"}, h("h2", {}, link(`${base}/overview`, search)), h("span", {class: "tags"}, chips(tags))), bar,
    h("p", {}, h("strong", {}, of), running ? `, ${count(running)} run now` : trained >= trainings ? ", done" : ""),
    live ? h("p", {class: "live"}, live) : null,
    best ? h("p", {}, "Best ", h("strong", {class: "value"}, metric(best.value)), ` ${best.metric}: `, link(`${base}/trial/${encodeURIComponent(best.trial)}`, best.trial)) : h("p", {class: "quiet"}, "No trial has ended well yet."),
    cost.words ? h("p", {class: "quiet"}, `Cost: ${cost.words}`) : null,
    note ? h("p", {class: "note"}, note.length > MOST_NOTE ? `${note.slice(0, MOST_NOTE)}…` : note) : null);
}
