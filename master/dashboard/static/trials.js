// The trials of a stage: the ranking, which can be sorted and filtered, and the running and pending
// trials. Rows come a page at a time.

import {at, get} from "./api.js";
import {fill, h, link, setText, state} from "./dom.js";
import {MOST} from "./compare.js";
import {chips} from "./notes.js";
import {count, duration, epochs, metric, short, spread, times} from "./format.js";

const PER_PAGE = 50;
const LEAST_MS = 400; // between two requests; the server may report changes more often
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
  const compare = h("button", {class: "small", type: "button"});
  const downloads = h("span", {class: "quiet"});
  statePick.value = view.state;
  filter.value = view.filter;
  main.append(
    h("h1", {}, "Trials"),
    h("form", {class: "controls", onsubmit: (event) => event.preventDefault()}, h("label", {}, "Stage ", stagePick), h("label", {}, "Which ", statePick), h("label", {class: "grow"}, "Filter ", filter)),
    h("p", {class: "quiet hint"}, "All words must match; OR and parentheses give alternatives: (hidden=64 OR hidden=128) val_acc>0.9. A word is a comparison, or part of a trial, its parents, diagnosis, reason or worker, or how it was drawn."),
    problem, summary,
    h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Ranking"}, table),
    h("div", {class: "row"}, previous, next, where, compare, downloads),
  );
  if (wanted.query.has("focus")) filter.focus();
  compare.addEventListener("click", () => {
    const ids = ticked(app);
    app.go(`#/s/${encodeURIComponent(app.search)}/compare?trials=${ids.map(encodeURIComponent).join(",")}`);
  });
  const offerComparison = () => {
    const n = ticked(app).length;
    compare.disabled = n < 2 || n > MOST;
    setText(compare, n > MOST ? `Compare (at most ${MOST})` : n ? `Compare ${count(n)} trials` : "Compare: tick trials");
  };
  table.addEventListener("change", (event) => {
    const key = `${app.search}/${event.target.dataset.tick}`;
    if (event.target.checked) app.ticked.add(key);
    else app.ticked.delete(key);
    offerComparison();
  });
  offerComparison();

  let shown = ""; // key of the rows on the page, so that nothing is requested twice
  let asked = null; // the request under way
  let again = null;
  let lastAt = 0;

  function ask(reset) {
    if (reset) view.offset = 0;
    app.remember("trials", view);
    shown = "";
    update(app.state);
  }

  function update(now) {
    const stages = (now?.overview?.stages ?? []).filter((stage) => stage.launched);
    drawStages(stagePick, stages, view);
    const stage = stages.find((one) => one.stage === view.stage);
    if (!stages.length) {
      setText(summary, now ? "No stage has been launched yet; trials appear here by themselves." : "");
      fill(table.tBodies[0]);
      fill(table.tHead);
      return;
    }
    const live = view.state === "running" || view.state === "pending";
    const key = JSON.stringify([view, live ? [now.sequence, now.moving] : [(stage ?? now.overview).version, now.overview.notes_version]]);
    if (key === shown || asked) return;
    clearTimeout(again);
    const wait = lastAt + LEAST_MS - Date.now();
    if (wait > 0) again = setTimeout(() => update(app.state), wait);
    else load(key, live);
  }

  async function load(key, live) {
    lastAt = Date.now();
    asked = new AbortController();
    const path = `searches/${at(app.search)}${view.stage ? `/stages/${at(view.stage)}` : ""}/${live ? "unfinished" : "ranking"}`;
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
      shown = key; // the same request has the same answer until something changes
    } finally {
      asked = null;
    }
    update(app.state);
  }

  function draw(page, live) {
    const matching = live ? page.total : page.matching;
    if (view.offset && view.offset >= matching) return ask(true);
    setText(summary, live ? `${count(matching)} ${view.state === "running" ? "running" : "waiting"}` : `${count(matching)} of ${count(page.total)} ended trials`);
    const columns = live ? liveColumns(page, app) : rankColumns(page, app);
    drawHead(table.tHead, columns, live ? null : view, (name) => {
      view.order = view.sort === name && view.order === "asc" ? "desc" : "asc";
      if (view.sort !== name && columns.find((column) => column.sort === name).most) view.order = "desc";
      view.sort = name;
      ask(true);
    });
    const base = `#/s/${encodeURIComponent(app.search)}/trial/`;
    drawDownloads(downloads, app, live ? null : view);
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

function drawStages(pick, stages, view) {
  const names = stages.map((stage) => stage.stage);
  const offered = names.length > 1 ? ["", ...names] : names; // with a single stage, "all stages" is left out
  if (pick.dataset.names !== JSON.stringify(offered)) fill(pick, offered.map((name) => h("option", {value: name}, name || "all stages")));
  pick.dataset.names = JSON.stringify(offered);
  if (!offered.includes(view.stage)) view.stage = offered[0] ?? null;
  if (view.stage !== null && document.activeElement !== pick) pick.value = view.stage;
}

/** Returns the ticked trials of the search, in the order in which they were ticked. */
const ticked = (app) => [...app.ticked].filter((key) => key.startsWith(`${app.search}/`)).map((key) => key.slice(app.search.length + 1));

/** Offers all rows that match, not just those of the page. */
function drawDownloads(element, app, view) {
  const key = JSON.stringify([app.search, view]);
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  if (!view) return fill(element);
  const query = new URLSearchParams(Object.entries({state: view.state, filter: view.filter, sort: view.sort, order: view.order}).filter(([, value]) => value));
  const path = `/api/searches/${at(app.search)}${view.stage ? `/stages/${at(view.stage)}` : ""}/download`;
  const offer = (form, title) => h("a", {href: `${path}.${form}?${query}`, download: true}, title);
  fill(element, "Download these rows: ", offer("csv", "CSV"), ", ", offer("parquet", "Parquet"));
}

const hyperparameter = (name) => ({title: name, sort: name, number: true, cell: (row) => short(row.hyperparameters[name])});

/** The column of the boxes that choose trials to compare. */
const tick = (app) => ({title: h("span", {class: "unseen"}, "compare"), key: "tick", cell: (row) => h("input", {type: "checkbox", "data-tick": row.trial, "aria-label": `compare ${row.trial}`, checked: app.ticked.has(`${app.search}/${row.trial}`)})});

function rankColumns(page, app) {
  const metricName = page.rows.find((row) => row.value !== null)?.metric ?? "val_acc";
  const own = metricName === "val_acc" || metricName === "val_loss" ? [] : [{title: metricName, sort: "value", number: true, most: true, cell: (row) => metric(row.value)}];
  return [
    tick(app),
    {title: "#", sort: "rank", number: true, cell: (row) => String(row.rank)},
    {title: "trial", sort: "trial", cell: (row, base) => link(base + encodeURIComponent(row.trial), row.trial), head: true},
    {title: "state", sort: "state", cell: (row) => state(row.state)},
    ...(page.rows.some((row) => row.repeats) ? [{title: "mean", sort: "mean", number: true, most: true, cell: (row) => h("span", {title: row.repeats ? spread(row.repeats) : ""}, metric(row.repeats?.mean))}] : []),
    ...own,
    {title: "val_acc", sort: "val_acc", number: true, most: true, cell: (row) => metric(row.val_acc)},
    {title: "val_loss", sort: "val_loss", number: true, cell: (row) => metric(row.val_loss)},
    {title: "epochs", sort: "epochs", number: true, cell: (row) => `${epochs(row.epochs)}${row.max_epochs > row.budget_epochs || row.epochs < row.budget_epochs ? ` of ${short(row.max_epochs)}` : ""}`},
    ...lineColumns(page, app, "rung", "drawn"),
    {title: "diagnosis", sort: "diagnosis", cell: (row) => h("span", {title: row.diagnosis?.sentence ?? row.reason}, row.diagnosis?.word ?? row.reason?.split("\n")[0].slice(0, 40) ?? "")},
    ...page.varied.map(hyperparameter),
    {title: "worker", sort: "worker", cell: (row) => row.worker ?? ""},
    ...noteColumns(page),
  ];
}

/** The columns of tags and notes, each if a trial of the page has some. */
function noteColumns(page) {
  const columns = [
    {title: "tags", has: (row) => row.tags.length, cell: (row) => h("span", {class: "tags"}, chips(row.tags))},
    {title: "note", has: (row) => row.note, cell: (row) => h("span", {title: row.note}, row.note.split("\n")[0].slice(0, 60))},
  ];
  return columns.filter((column) => page.rows.some(column.has));
}

/**
 * Returns the columns that say where a trial comes from.
 * A column is left out if no trial of the page has a value in it.
 */
function lineColumns(page, app, rungSort = null, drawnSort = null) {
  const columns = [
    {title: "promoted", sort: rungSort, most: true, has: (row) => row.rung, cell: (row) => times(row.rung)},
    {title: "drawn", sort: drawnSort, has: (row) => row.drawn, cell: (row) => h("span", {title: app.session.drawn?.[row.drawn] ?? ""}, row.drawn)},
    {title: "parents", has: (row) => row.parents.length, cell: (row, base) => h("span", {}, row.parents.flatMap((parent, place) => [place ? ", " : "", link(base + encodeURIComponent(parent), parent)]))},
  ];
  return columns.filter((column) => page.rows.some(column.has));
}

function liveColumns(page, app) {
  const varied = page.varied.map((name) => ({...hyperparameter(name), sort: null}));
  const trial = {title: "trial", cell: (row, base) => link(base + encodeURIComponent(row.trial), row.trial), head: true};
  const wait = {title: "to epochs", number: true, cell: (row) => `${epochs(row.budget_epochs)}${row.max_epochs > row.budget_epochs ? ` of ${short(row.max_epochs)}` : ""}`};
  if (page.state === "pending") return [tick(app), trial, wait, ...lineColumns(page, app), ...varied, ...noteColumns(page)];
  return [
    tick(app),
    trial,
    {title: "epoch", number: true, cell: (row) => `${epochs(row.epoch)} of ${epochs(row.budget_epochs)}`},
    ...lineColumns(page, app),
    {title: "best so far", number: true, cell: (row) => metric(row.value)},
    {title: "phase", cell: (row) => row.phase ?? "starting"},
    {title: "for", number: true, cell: (row) => duration(row.claimed_s)},
    {title: "try", number: true, cell: (row) => String(row.attempt)},
    ...varied,
    {title: "worker", cell: (row) => row.worker ?? ""},
    ...noteColumns(page),
  ];
}

function drawHead(head, columns, view, sortBy) {
  const key = JSON.stringify([columns.map((column) => column.key ?? column.title), view?.sort, view?.order]);
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
  const inBox = document.activeElement?.dataset?.tick;
  const made = rows.map((row) =>
    h("tr", {"data-trial": row.trial}, columns.map((column) => h(column.head ? "th" : "td", {scope: column.head ? "row" : null, class: column.number ? "number" : null}, column.cell(row, base)))),
  );
  fill(body, made);
  if (focused) body.querySelector(`tr[data-trial="${CSS.escape(focused)}"] ${inBox ? "input" : "a"}`)?.focus({preventScroll: true});
}
