// All searches of the folder, with their progress.

import {fill, h, link, setText} from "./dom.js";
import {count} from "./format.js";

export function searchesPage(main) {
  const note = h("p", {class: "quiet"});
  const cards = h("div", {class: "cards"});
  main.append(h("h1", {}, "Searches"), note, cards);

  function update({searches, health}) {
    setText(note, searches.length ? `${count(searches.length)} in ${health.folder.where}` : "No search has been launched yet; searches appear here by themselves.");
    const key = JSON.stringify(searches);
    if (cards.dataset.key !== key) fill(cards, searches.map(card));
    cards.dataset.key = key;
  }
  return {update};
}

function card({search, ended, running, trials}) {
  const bar = h("div", {class: "bar", role: "progressbar", "aria-label": `progress of ${search}`, "aria-valuemin": "0", "aria-valuemax": trials, "aria-valuenow": ended},
    h("span", {class: "completed", style: `flex-grow: ${ended}`}), h("span", {class: "running", style: `flex-grow: ${running}`}), h("span", {class: "pending", style: `flex-grow: ${Math.max(0, trials - ended - running)}`}));
  return h("section", {class: "card", "data-search": search},
    h("h2", {}, link(`#/s/${encodeURIComponent(search)}/overview`, search)), bar,
    h("p", {}, h("strong", {}, `${count(ended)} of ${count(trials)} trials`), running ? `, ${count(running)} run now` : ""));
}
