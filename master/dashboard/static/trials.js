// The trials of a stage: the ranking, which can be sorted and filtered, and the running and pending
// trials. Rows come a page at a time. A figure above the table can select trials.

import {at, get} from "./api.js";
import {columnPick, drawHead, drawRows, liveColumns, rankColumns} from "./columns.js";
import {MOST} from "./compare.js";
import {fill, h, setText} from "./dom.js";
import {drawFigureNames, FigureBox, figureNames} from "./figures.js";
import {filterField} from "./filter.js";
import {count} from "./format.js";

const PER_PAGE = 50;
const LEAST_MS = 400; // between two requests; the server may report changes more often
const STATES = [["", "all that ended"], ["completed", "completed"], ["exploded", "exploded"], ["stopped", "stopped"], ["killed", "killed"], ["failed", "failed"], ["running", "running now"], ["pending", "waiting"]];

/** Returns what the address says of the page. */
function viewOf(query) {
  const text = (name, otherwise = "") => query.get(name) ?? otherwise;
  return {
    stage: text("stage"), state: STATES.some(([name]) => name === text("state")) ? text("state") : "", filter: text("filter"), sort: text("sort", "rank"), order: text("order") === "desc" ? "desc" : "asc",
    columns: text("columns"), figure: text("figure"), ticked: text("ticked"), offset: Math.max(0, Math.floor(Number(query.get("offset")) || 0)),
  };
}

export function trialsPage(main, app, wanted) {
  const view = viewOf(wanted.query);
  const stagePick = h("select", {id: "stage"});
  const statePick = h("select", {id: "state"}, STATES.map(([value, title]) => h("option", {value}, title)));
  const figurePick = h("select", {id: "figure"}, h("option", {value: ""}, "none"));
  const problem = h("p", {class: "problem", role: "alert", hidden: true});
  const summary = h("p", {class: "quiet", "aria-live": "polite", id: "summary"});
  const table = h("table", {id: "ranking"}, h("thead"), h("tbody"));
  const previous = h("button", {class: "small"}, "Previous");
  const next = h("button", {class: "small"}, "Next");
  const where = h("span", {class: "quiet"});
  const compare = h("button", {class: "small", type: "button"});
  const downloads = h("span", {class: "quiet"});
  const drawing = h("div", {class: "figures one"});
  const filter = filterField(view.filter, (text, typing) => {
    view.filter = text;
    ask(true, typing);
  });
  const columnsPick = columnPick((names) => {
    view.columns = names;
    ask(false);
  });
  statePick.value = view.state;
  main.append(
    h("h1", {}, "Trials"),
    h("form", {class: "controls", onsubmit: (event) => event.preventDefault()}, h("label", {}, "Stage ", stagePick), h("label", {}, "Which ", statePick), h("label", {}, "Figure ", figurePick), filter.label), filter.chips,
    h("p", {class: "quiet hint"}, "All words must match; OR and parentheses give alternatives: (hidden=64 OR hidden=128) val_acc>0.9. A word is a comparison, or part of a trial, its parents, diagnosis, reason or worker, or how it was drawn. With the parallel coordinates above the table, drag along an axis to select a part of it."),
    drawing, problem,
    h("div", {class: "row"}, summary, columnsPick.element),
    h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Ranking"}, table),
    h("div", {class: "row"}, previous, next, where, compare, downloads),
  );
  if (wanted.query.has("focus")) filter.input.focus();
  if (view.ticked) { // the address says which trials are ticked; without a word about it, those of before stay
    ticked(app).forEach((id) => app.ticked.delete(`${app.search}/${id}`));
    view.ticked.split(",").filter(Boolean).forEach((id) => app.ticked.add(`${app.search}/${id}`));
  }
  compare.addEventListener("click", () => {
    app.go(`#/s/${encodeURIComponent(app.search)}/compare?trials=${ticked(app).map(encodeURIComponent).join(",")}`);
  });
  const offerComparison = () => {
    const n = ticked(app).length;
    compare.disabled = n < 2 || n > MOST;
    setText(compare, n > MOST ? `Compare (at most ${MOST})` : n ? `Compare ${count(n)} trials` : "Compare: tick trials");
    view.ticked = ticked(app).join(",");
    if (app.search) app.remember("trials", view, true);
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
  let box = null; // the figure above the table

  function ask(reset, quiet = false) {
    if (reset) view.offset = 0;
    app.remember("trials", view, quiet);
    shown = "";
    update(app.state);
  }

  function update(now) {
    const stages = (now?.overview?.stages ?? []).filter((stage) => stage.launched);
    drawStages(stagePick, stages, view);
    drawFigure(stages);
    const stage = stages.find((one) => one.stage === view.stage);
    if (!stages.length) {
      setText(summary, now ? "No stage has been launched yet; trials appear here by themselves." : "");
      fill(table.tBodies[0]);
      fill(table.tHead);
      return;
    }
    const live = view.state === "running" || view.state === "pending";
    const key = JSON.stringify([asks(view), live ? [now.sequence, now.moving] : [(stage ?? now.overview).version, now.overview.notes_version]]);
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
    if (view.offset && view.offset >= matching) return ask(true, true);
    setText(summary, live ? `${count(matching)} ${view.state === "running" ? "running" : "waiting"}` : `${count(matching)} of ${count(page.total)} ended trials`);
    const columns = live ? {shown: liveColumns(page, app)} : rankColumns(page, app, view.columns);
    columnsPick.element.hidden = live;
    if (!live) columnsPick.draw(columns);
    drawHead(table.tHead, columns.shown, live ? null : view, ({sort, most}) => {
      view.order = view.sort === sort ? (view.order === "asc" ? "desc" : "asc") : most ? "desc" : "asc";
      view.sort = sort;
      ask(true);
    });
    const base = `#/s/${encodeURIComponent(app.search)}/trial/`;
    drawDownloads(downloads, app, live ? null : {...view, columns: columns.shown.flatMap(({sort}) => sort ?? []).join(",")});
    drawRows(table.tBodies[0], page.rows, columns.shown, base);
    setText(where, matching ? `${count(view.offset + 1)} to ${count(Math.min(view.offset + PER_PAGE, matching))}` : "none");
    previous.disabled = view.offset === 0;
    next.disabled = view.offset + PER_PAGE >= matching;
  }

  /** Shows the chosen figure of the stage above the table; of all stages, that of the last that searches. */
  function drawFigure(stages) {
    const begun = stages.filter((stage) => stage.ended && stage.version);
    const stage = begun.find((one) => one.stage === view.stage) ?? begun.findLast((one) => !one.kind_words) ?? begun.at(-1);
    const key = JSON.stringify([stage?.stage, view.figure]);
    if (drawing.dataset.key !== key) {
      box?.close();
      const made = view.figure && stage;
      box = made ? new FigureBox(app.search, stage.stage, view.figure, "", view.filter, (text) => {
        filter.set(text);
        view.filter = text;
        ask(true);
      }) : null;
      fill(drawing, box?.element ?? null);
      drawing.hidden = !box;
      drawing.dataset.key = key;
    }
    box?.update(stage.version, view.filter);
  }

  const turn = (by) => {
    view.offset = Math.max(0, view.offset + by);
    ask(false);
  };
  const follow = (select, name) => select.addEventListener("change", () => {
    view[name] = select.value;
    ask(true);
  });
  previous.addEventListener("click", () => turn(-PER_PAGE));
  next.addEventListener("click", () => turn(PER_PAGE));
  follow(stagePick, "stage");
  follow(statePick, "state");
  follow(figurePick, "figure");
  figureNames().then((names) => drawFigureNames(figurePick, names, "none", view.figure));
  return {
    update,
    close: () => {
      clearTimeout(again);
      filter.close();
      box?.close();
      asked?.abort();
    },
  };
}

/** The part of a view that a request depends on. */
const asks = ({stage, state, filter, sort, order, columns, offset}) => [stage, state, filter, sort, order, columns, offset];

function drawStages(pick, stages, view) {
  const names = stages.map((stage) => stage.stage);
  const offered = names.length > 1 ? ["", ...names] : names; // with a single stage, "all stages" is left out
  if (pick.dataset.names !== JSON.stringify(offered)) fill(pick, offered.map((name) => h("option", {value: name}, name || "all stages")));
  pick.dataset.names = JSON.stringify(offered);
  if (offered.length && !offered.includes(view.stage)) view.stage = offered[0];
  if (document.activeElement !== pick) pick.value = view.stage;
}

/** Returns the ticked trials of the search, in the order in which they were ticked. */
const ticked = (app) => [...app.ticked].filter((key) => key.startsWith(`${app.search}/`)).map((key) => key.slice(app.search.length + 1));

/** Offers all rows that match, not just those of the page, with the columns of the table. */
function drawDownloads(element, app, view) {
  const key = JSON.stringify([app.search, view]);
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  if (!view) return fill(element);
  const query = new URLSearchParams(Object.entries({state: view.state, filter: view.filter, sort: view.sort, order: view.order, columns: view.columns}).filter(([, value]) => value));
  const path = `/api/searches/${at(app.search)}${view.stage ? `/stages/${at(view.stage)}` : ""}/download`;
  const offer = (form, title) => h("a", {href: `${path}.${form}?${query}`, download: true}, title);
  fill(element, "Download these rows and columns: ", offer("csv", "CSV"), ", ", offer("parquet", "Parquet"));
}
