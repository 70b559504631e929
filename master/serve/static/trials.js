// The trials of a stage: the ranking that sorts and filters, those that run, those that wait. Rows come a page at a time.

import {at, get} from "./api.js";
import {fill, h, link, setText, state} from "./dom.js";
import {count, duration, epochs, metric, short} from "./format.js";

const PER_PAGE = 50;
const LEAST_MS = 400; // between two questions: the server may tell of changes more often
const STATES = [["", "all that ended"], ["completed", "completed"], ["exploded", "exploded"], ["stopped", "stopped"], ["killed", "killed"], ["failed", "failed"], ["running", "running now"], ["pending", "waiting"]];

export function trialsPage(main, app, wanted) {
  const view = {stage: wanted.query.get("stage"), state: wanted.query.get("state") ?? "", filter: wanted.query.get("filter") ?? "", sort: wanted.query.get("sort") ?? "rank", order: wanted.query.get("order") ?? "asc", offset: Number(wanted.query.get("offset")) || 0};
  const stagePick = h("select", {id: "stage"});
  const statePick = h("select", {id: "state"}, STATES.map(([value, title]) => h("option", {value}, title)));
  const filter = h("input", {id: "filter", type: "search", size: "30", autocomplete: "off", spellcheck: "false", placeholder: "learning_rate>0.01 noisy"});
  const problem = h("p", {class: "problem", role: "alert", hidden: true});
  const summary = h("p", {class: "quiet", "aria-live": "polite", id: "summary"});
  const table = h("table", {id: "ranking"}, h("thead"), h("tbody"));
  const previous = h("button", {class: "small"}, "Previous");
  const next = h("button", {class: "small"}, "Next");
  const where = h("span", {class: "quiet"});
  statePick.value = view.state;
  filter.value = view.filter;
  main.append(
    h("h1", {}, "Trials"),
    h("form", {class: "controls", onsubmit: (event) => event.preventDefault()}, h("label", {}, "Stage ", stagePick), h("label", {}, "Which ", statePick), h("label", {class: "grow"}, "Filter ", filter)),
    h("p", {class: "quiet hint"}, "Words that must all hold: a comparison such as learning_rate>0.01 or optimizer=sgd, or part of a trial, diagnosis, reason or worker."),
    problem, summary,
    h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Ranking"}, table),
    h("div", {class: "row"}, previous, next, where),
  );

  let shown = ""; // what the rows on the page are, so that nothing is asked twice
  let asked = null; // the question under way
  let again = null;
  let lastAt = 0;

  function ask(reset) {
    if (reset) view.offset = 0;
    remember(app, view);
    shown = "";
    update(app.state);
  }

  function update(now) {
    const stages = (now?.overview?.stages ?? []).filter((stage) => stage.launched);
    drawStages(stagePick, stages, view);
    const stage = stages.find((one) => one.stage === view.stage);
    if (!stage) {
      setText(summary, now ? "No stage has been launched yet; trials appear here by themselves." : "");
      fill(table.tBodies[0]);
      fill(table.tHead);
      return;
    }
    const live = view.state === "running" || view.state === "pending";
    const key = JSON.stringify([view, live ? [now.sequence, now.moving] : stage.version]);
    if (key === shown || asked) return;
    clearTimeout(again);
    const wait = lastAt + LEAST_MS - Date.now();
    if (wait > 0) again = setTimeout(() => update(app.state), wait);
    else load(key, live);
  }

  async function load(key, live) {
    lastAt = Date.now();
    asked = new AbortController();
    const path = `searches/${at(app.search)}/stages/${at(view.stage)}/${live ? "unfinished" : "ranking"}`;
    const query = {offset: view.offset, limit: PER_PAGE, state: view.state, ...(live ? {} : {filter: view.filter, sort: view.sort, order: view.order})};
    try {
      const page = await get(path, query, asked.signal);
      problem.hidden = !page.problem;
      setText(problem, page.problem ?? "");
      shown = key;
      draw(page, live);
    } catch (error) {
      if (error.name === "AbortError") return;
      problem.hidden = false;
      setText(problem, error.message);
      shown = key; // the same question has the same answer until something changes
    } finally {
      asked = null;
    }
    update(app.state);
  }

  function draw(page, live) {
    const matching = live ? page.total : page.matching;
    if (view.offset && view.offset >= matching) return ask(true);
    setText(summary, live ? `${count(matching)} ${view.state === "running" ? "running" : "waiting"}` : `${count(matching)} of ${count(page.total)} ended trials`);
    const columns = live ? liveColumns(page) : rankColumns(page);
    drawHead(table.tHead, columns, live ? null : view, (name) => {
      view.order = view.sort === name && view.order === "asc" ? "desc" : "asc";
      if (view.sort !== name && columns.find((column) => column.sort === name).most) view.order = "desc";
      view.sort = name;
      ask(true);
    });
    const base = `#/s/${encodeURIComponent(app.search)}/trial/`;
    drawRows(table.tBodies[0], page.rows, columns, base);
    setText(where, matching ? `${count(view.offset + 1)} to ${count(Math.min(view.offset + PER_PAGE, matching))}` : "none");
    previous.disabled = view.offset === 0;
    next.disabled = view.offset + PER_PAGE >= matching;
  }

  const turn = (by) => {
    view.offset = Math.max(0, view.offset + by);
    ask(false);
  };
  previous.addEventListener("click", () => turn(-PER_PAGE));
  next.addEventListener("click", () => turn(PER_PAGE));
  stagePick.addEventListener("change", () => {
    view.stage = stagePick.value;
    ask(true);
  });
  statePick.addEventListener("change", () => {
    view.state = statePick.value;
    ask(true);
  });
  let typed = null;
  filter.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => {
      view.filter = filter.value.trim();
      ask(true);
    }, 200);
  });
  return {
    update,
    close: () => {
      clearTimeout(again);
      clearTimeout(typed);
      asked?.abort();
    },
  };
}

/** Keeps what is chosen in the address, so that it can be sent to somebody and survives a reload. */
function remember(app, view) {
  const pairs = Object.entries(view).filter(([, value]) => value !== "" && value !== null && value !== 0);
  const query = new URLSearchParams(pairs).toString();
  history.replaceState(null, "", `#/s/${encodeURIComponent(app.search)}/trials?${query}`);
}

function drawStages(pick, stages, view) {
  const names = stages.map((stage) => stage.stage);
  if (pick.dataset.names !== JSON.stringify(names)) fill(pick, names.map((name) => h("option", {value: name}, name)));
  pick.dataset.names = JSON.stringify(names);
  if (!names.includes(view.stage)) view.stage = (stages.filter((stage) => stage.ended).at(-1) ?? stages.at(-1))?.stage ?? null; // the last that has something to show
  if (view.stage && document.activeElement !== pick) pick.value = view.stage;
}

const hyperparameter = (name) => ({title: name, sort: name, number: true, cell: (row) => short(row.hyperparameters[name])});

function rankColumns(page) {
  const metricName = page.rows.find((row) => row.value !== null)?.metric ?? "val_acc";
  const own = metricName === "val_acc" || metricName === "val_loss" ? [] : [{title: metricName, sort: "value", number: true, most: true, cell: (row) => metric(row.value)}];
  return [
    {title: "#", sort: "rank", number: true, cell: (row) => String(row.rank)},
    {title: "trial", sort: "trial", cell: (row, base) => link(base + encodeURIComponent(row.trial), row.trial), head: true},
    {title: "state", sort: "state", cell: (row) => state(row.state)},
    ...own,
    {title: "val_acc", sort: "val_acc", number: true, most: true, cell: (row) => metric(row.val_acc)},
    {title: "val_loss", sort: "val_loss", number: true, cell: (row) => metric(row.val_loss)},
    {title: "epochs", sort: "epochs", number: true, cell: (row) => epochs(row.epochs)},
    {title: "diagnosis", sort: "diagnosis", cell: (row) => h("span", {title: row.diagnosis?.sentence ?? row.reason}, row.diagnosis?.word ?? row.reason?.split("\n")[0].slice(0, 40) ?? "")},
    ...page.varied.map(hyperparameter),
    {title: "worker", sort: "worker", cell: (row) => row.worker ?? ""},
  ];
}

function liveColumns(page) {
  const varied = page.varied.map((name) => ({...hyperparameter(name), sort: null}));
  const trial = {title: "trial", cell: (row, base) => link(base + encodeURIComponent(row.trial), row.trial), head: true};
  if (page.state === "pending") return [trial, ...varied];
  return [
    trial,
    {title: "epoch", number: true, cell: (row) => `${epochs(row.epoch)} of ${epochs(row.budget_epochs)}`},
    {title: "best so far", number: true, cell: (row) => metric(row.value)},
    {title: "phase", cell: (row) => row.phase ?? "starting"},
    {title: "for", number: true, cell: (row) => duration(row.claimed_s)},
    {title: "try", number: true, cell: (row) => String(row.attempt)},
    ...varied,
    {title: "worker", cell: (row) => row.worker ?? ""},
  ];
}

function drawHead(head, columns, view, sortBy) {
  const key = JSON.stringify([columns.map((column) => column.title), view?.sort, view?.order]);
  if (head.dataset.key === key && head.childElementCount) return;
  head.dataset.key = key;
  const focused = document.activeElement?.dataset?.sort;
  const cells = columns.map((column) => {
    const sorted = view && column.sort === view.sort;
    const arrow = sorted ? (view.order === "asc" ? " ▲" : " ▼") : "";
    const button = view && column.sort ? h("button", {class: "sort", "data-sort": column.sort, onclick: () => sortBy(column.sort)}, column.title, h("span", {"aria-hidden": "true"}, arrow)) : column.title;
    return h("th", {scope: "col", class: column.number ? "number" : null, "aria-sort": sorted ? (view.order === "asc" ? "ascending" : "descending") : null}, button);
  });
  fill(head, h("tr", {}, cells));
  if (focused) head.querySelector(`[data-sort="${CSS.escape(focused)}"]`)?.focus();
}

function drawRows(body, rows, columns, base) {
  const focused = document.activeElement?.closest?.("tr")?.dataset?.trial;
  const made = rows.map((row) =>
    h("tr", {"data-trial": row.trial}, columns.map((column) => h(column.head ? "th" : "td", {scope: column.head ? "row" : null, class: column.number ? "number" : null}, column.cell(row, base)))),
  );
  fill(body, made);
  if (focused) body.querySelector(`tr[data-trial="${CSS.escape(focused)}"] a`)?.focus({preventScroll: true});
}
