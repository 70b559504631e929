// Several trials beside one another: configurations, metrics, and each curve with a line for each trial.

import {at, get} from "./api.js";
import {Charts, chartsOfTrials} from "./curves.js";
import {fill, h, link, setText, state} from "./dom.js";
import {budget, count, epochs, metric, short, spread} from "./format.js";

const LEAST_MS = 1000;
export const MOST = 20; // trials side by side

export function comparePage(main, app, wanted) {
  const ids = [...new Set((wanted.query.get("trials") ?? "").split(",").filter(Boolean))].slice(0, MOST);
  const problem = h("p", {class: "problem", role: "alert", hidden: true});
  const only = h("input", {type: "checkbox", id: "only", checked: wanted.query.get("only") === "1"});
  const table = h("table", {id: "comparison"}, h("thead"), h("tbody"));
  const charts = h("div", {class: "figures"});
  const plots = new Charts(charts, (error) => setText(problem, error.message), (trial) => app.go(`#/s/${encodeURIComponent(app.search)}/trial/${encodeURIComponent(trial)}`));
  main.append(
    h("h1", {}, `${count(ids.length)} trials compared`), problem,
    h("p", {class: "quiet"}, ids.length ? "Rows in which the trials differ are marked." : "Tick trials in the table of trials, then choose Compare."),
    h("form", {class: "controls", onsubmit: (event) => event.preventDefault()}, h("label", {}, only, " only what differs")),
    h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Comparison"}, table), charts);
  let details = [];
  let shown = "";
  let busy = false;
  let again = null;
  let lastAt = 0;

  function update(now) {
    const key = JSON.stringify([now?.moving, now?.overview?.version]);
    if (!ids.length || busy || key === shown) return;
    clearTimeout(again);
    const wait = lastAt + LEAST_MS - Date.now();
    if (wait > 0) again = setTimeout(() => update(app.state), wait);
    else load(key);
  }

  async function load(key) {
    busy = true;
    lastAt = Date.now();
    const told = await Promise.allSettled(ids.map((id) => get(`searches/${at(app.search)}/trials/${at(id)}`)));
    const failed = told.filter((one) => one.status === "rejected").map((one) => one.reason.message);
    problem.hidden = !failed.length;
    setText(problem, failed.join("; "));
    details = told.filter((one) => one.status === "fulfilled").map((one) => one.value);
    shown = key;
    busy = false;
    draw();
    update(app.state);
  }

  function draw() {
    const base = `#/s/${encodeURIComponent(app.search)}/trial/`;
    fill(table.tHead, h("tr", {}, h("td"), details.map((detail) => h("th", {scope: "col"}, link(base + encodeURIComponent(detail.trial), detail.trial)))));
    const rows = rowsOf(details).filter((row) => !only.checked || row.differs);
    fill(table.tBodies[0], rows.map((row) => h("tr", {class: row.differs ? "differs" : null}, h("th", {scope: "row"}, row.title, row.differs ? h("span", {class: "unseen"}, " (differs)") : ""), row.cells.map((cell) => h("td", {}, cell)))));
    plots.draw(chartsOfTrials(details));
  }

  only.addEventListener("change", () => {
    app.remember("compare", {trials: ids.join(","), only: only.checked ? "1" : ""});
    draw();
  });
  return {
    update,
    close: () => {
      clearTimeout(again);
      plots.close();
    },
  };
}

function rowsOf(details) {
  const metrics = [...new Set(details.flatMap((detail) => Object.keys(detail.metrics)))].filter((name) => !["val_acc", "val_loss"].includes(name));
  const names = [...new Set(details.flatMap((detail) => Object.keys(detail.hyperparameters)))];
  const own = details.every((detail) => detail.metric === "val_acc" || detail.metric === "val_loss") ? [] : [["value", (detail) => detail.value, metric]];
  const rows = [
    ["state", (detail) => detail.state, state],
    ["rank in its stage", (detail) => detail.rank, (rank) => (rank === null ? "–" : count(rank))],
    ...(details.some((detail) => detail.repeats) ? [["mean of its configuration", (detail) => detail.repeats, (one) => (one ? spread(one) : "–")]] : []),
    ...own,
    ["val_acc", (detail) => detail.val_acc, metric],
    ["val_loss", (detail) => detail.val_loss, metric],
    ...metrics.map((name) => [name, (detail) => detail.metrics[name], metric]),
    ["epochs", (detail) => detail.epochs, epochs],
    ["budget", (detail) => budget(detail), String],
    ["diagnosis", (detail) => detail.diagnosis?.word ?? "", String],
    ["drawn", (detail) => detail.drawn, String],
    ["parents", (detail) => detail.parents.map((one) => one.trial).join(", "), String],
    ["seed", (detail) => detail.seed, String],
    ...names.map((name) => [name, (detail) => detail.hyperparameters[name], short]),
  ];
  return rows.map(([title, of, shown]) => {
    const values = details.map(of);
    return {title, differs: new Set(values.map((value) => JSON.stringify(value ?? null))).size > 1, cells: values.map(shown)};
  });
}
