// The columns of the trials table. A column of ended trials has the name that filters, sorting,
// downloads and the address use.

import {fill, h, link, state} from "./dom.js";
import {count, duration, epochs, metric, short, spread, times} from "./format.js";
import {chips} from "./notes.js";

const MEASURED = ["val_acc", "val_loss"];

/** The column of the boxes that choose trials to compare. */
const tick = (app) => ({title: h("span", {class: "unseen"}, "compare"), key: "tick", cell: (row) => h("input", {type: "checkbox", "data-tick": row.trial, "aria-label": `compare ${row.trial}`, checked: app.ticked.has(`${app.search}/${row.trial}`)})});
const trialColumn = {title: "trial", sort: "trial", head: true, kept: true, cell: (row, base) => link(base + encodeURIComponent(row.trial), row.trial)};
const links = (names, base) => h("span", {}, names.flatMap((name, place) => [place ? ", " : "", link(base + encodeURIComponent(name), name)]));
const oneLine = (text) => text?.split("\n")[0] ?? "";

const tags = {title: "tags", cell: (row) => h("span", {class: "tags"}, chips(row.tags))};
const note = {title: "note", cell: (row) => h("span", {title: row.note}, oneLine(row.note).slice(0, 60))};

/**
 * Returns all columns that a page of the ranking can show. `usual` says whether a column is there
 * when nobody has chosen.
 */
function offered(page, app) {
  const any = (has) => page.rows.some(has);
  const own = page.rows.find((row) => row.value !== null)?.metric ?? "val_acc";
  const metrics = [...new Set(page.rows.flatMap((row) => Object.keys(row.metrics)))].filter((name) => !MEASURED.includes(name) && name !== own);
  const names = [...new Set([...page.varied, ...page.rows.flatMap((row) => Object.keys(row.hyperparameters))])];
  const number = (title, sort, cell, usual = false, most = false) => ({title, sort, cell, usual, most, number: true});
  const text = (title, sort, cell, usual = false) => ({title, sort, cell, usual});
  return [
    number("#", "rank", (row) => String(row.rank), true),
    {...trialColumn, usual: true},
    text("stage", "stage", (row) => row.stage),
    text("state", "state", (row) => state(row.state), true),
    ...(any((row) => row.repeats) ? [
      number("mean", "mean", (row) => h("span", {title: row.repeats ? spread(row.repeats) : ""}, metric(row.repeats?.mean)), true, true),
      number("deviation", "deviation", (row) => metric(row.repeats?.deviation)),
    ] : []),
    ...(MEASURED.includes(own) ? [] : [number(own, "value", (row) => metric(row.value), true, true)]),
    number("val_acc", "val_acc", (row) => metric(row.val_acc), true, true),
    number("val_loss", "val_loss", (row) => metric(row.val_loss), true),
    ...metrics.map((name) => number(name, name, (row) => metric(row.metrics[name]))),
    number("epochs", "epochs", (row) => `${epochs(row.epochs)}${row.max_epochs > row.budget_epochs || row.epochs < row.budget_epochs ? ` of ${short(row.max_epochs)}` : ""}`, true),
    number("budget", "budget_epochs", (row) => epochs(row.budget_epochs)),
    {...text("promoted", "rung", (row) => times(row.rung), any((row) => row.rung)), most: true},
    text("drawn", "drawn", (row) => h("span", {title: app.session.drawn?.[row.drawn] ?? ""}, row.drawn), any((row) => row.drawn)),
    text("parents", "parents", (row, base) => links(row.parents, base), any((row) => row.parents.length)),
    text("diagnosis", "diagnosis", (row) => h("span", {title: row.diagnosis?.sentence ?? row.reason}, row.diagnosis?.word ?? oneLine(row.reason).slice(0, 40)), true),
    text("reason", "reason", (row) => h("span", {class: "long", title: row.reason}, oneLine(row.reason))),
    ...names.map((name) => number(name, name, (row) => short(row.hyperparameters[name]), page.varied.includes(name))),
    number("seconds", "seconds", (row) => (row.seconds === null ? "–" : short(row.seconds)), false, true),
    text("worker", "worker", (row) => row.worker ?? "", true),
    number("attempt", "attempt", (row) => count(row.attempt)),
    {...tags, sort: "tags", usual: any((row) => row.tags.length)},
    {...note, sort: "note", usual: any((row) => row.note)},
    text("weights", "checkpoint", (row) => h("span", {class: "long", title: row.checkpoint}, row.checkpoint ?? "not kept")),
  ];
}

/** A column of a name in the address that no trial of this page has. */
const absent = (name) => ({title: name, sort: name, number: true, cell: (row) => short(row.hyperparameters[name] ?? row.metrics[name])});

/**
 * Returns the columns of ended trials that are shown, and all that are offered.
 * `chosen` are their names, separated by commas; empty for the usual ones.
 */
export function rankColumns(page, app, chosen) {
  const all = offered(page, app);
  const names = chosen.split(",").filter(Boolean);
  const known = new Set(all.map(({sort}) => sort));
  const shown = names.length ? all.filter((one) => one.kept || names.includes(one.sort)) : all.filter((one) => one.usual);
  return {shown: [tick(app), ...shown, ...names.filter((name) => !known.has(name)).map(absent)], all};
}

/** Returns the columns of trials that wait or run. */
export function liveColumns(page, app) {
  const varied = page.varied.map((name) => ({title: name, number: true, cell: (row) => short(row.hyperparameters[name])}));
  const {sort, ...trial} = trialColumn;
  const line = [
    {title: "promoted", has: (row) => row.rung, cell: (row) => times(row.rung)},
    {title: "drawn", has: (row) => row.drawn, cell: (row) => h("span", {title: app.session.drawn?.[row.drawn] ?? ""}, row.drawn)},
    {title: "parents", has: (row) => row.parents.length, cell: (row, base) => links(row.parents, base)},
  ].filter(({has}) => page.rows.some(has));
  const noted = [{...tags, has: (row) => row.tags.length}, {...note, has: (row) => row.note}].filter(({has}) => page.rows.some(has));
  if (page.state === "pending") {
    const wait = {title: "to epochs", number: true, cell: (row) => `${epochs(row.budget_epochs)}${row.max_epochs > row.budget_epochs ? ` of ${short(row.max_epochs)}` : ""}`};
    return [tick(app), trial, wait, ...line, ...varied, ...noted];
  }
  return [
    tick(app),
    trial,
    {title: "epoch", number: true, cell: (row) => `${epochs(row.epoch)} of ${epochs(row.budget_epochs)}`},
    ...line,
    {title: "best so far", number: true, cell: (row) => metric(row.value)},
    {title: "phase", cell: (row) => row.phase ?? "starting"},
    {title: "for", number: true, cell: (row) => duration(row.claimed_s)},
    {title: "try", number: true, cell: (row) => String(row.attempt)},
    ...varied,
    {title: "worker", cell: (row) => row.worker ?? ""},
    ...noted,
  ];
}

/** Makes the list of columns to choose from. `changed` is called with their names, or "" for the usual. */
export function columnPick(changed) {
  const boxes = h("div", {class: "boxes"});
  const usual = h("button", {class: "small", type: "button"}, "The usual columns");
  const every = h("button", {class: "small", type: "button"}, "All columns");
  const element = h("details", {id: "columns"}, h("summary", {}, "Columns"), h("div", {class: "row"}, usual, every), boxes);
  const inputs = () => [...boxes.querySelectorAll("input")];
  usual.addEventListener("click", () => changed(""));
  every.addEventListener("click", () => changed(inputs().map(({value}) => value).join(",")));
  boxes.addEventListener("change", () => changed(inputs().filter(({checked}) => checked).map(({value}) => value).join(",")));

  function draw({shown, all}) {
    const there = new Set(shown.map(({sort}) => sort));
    const key = JSON.stringify(all.map(({sort}) => sort));
    if (boxes.dataset.key !== key) fill(boxes, all.map(({title, sort, kept}) => h("label", {}, h("input", {type: "checkbox", value: sort, disabled: kept}), ` ${title === "#" ? "rank" : title}`)));
    boxes.dataset.key = key;
    for (const input of inputs()) input.checked = there.has(input.value);
  }
  return {element, draw};
}

export function drawHead(head, columns, view, sortBy) {
  const key = JSON.stringify([columns.map((column) => column.key ?? column.title), view?.sort, view?.order]);
  if (head.dataset.key === key && head.childElementCount) return;
  head.dataset.key = key;
  const focused = document.activeElement?.dataset?.sort;
  const cells = columns.map((column) => {
    const sorted = view && column.sort === view.sort;
    const arrow = sorted ? (view.order === "asc" ? " ▲" : " ▼") : "";
    const button = view && column.sort ? h("button", {class: "sort", "data-sort": column.sort, onclick: () => sortBy(column)}, column.title, h("span", {"aria-hidden": "true"}, arrow)) : column.title;
    return h("th", {scope: "col", class: column.number ? "number" : null, "aria-sort": sorted ? (view.order === "asc" ? "ascending" : "descending") : null}, button);
  });
  fill(head, h("tr", {}, cells));
  if (focused) head.querySelector(`[data-sort="${CSS.escape(focused)}"]`)?.focus();
}

export function drawRows(body, rows, columns, base) {
  const focused = document.activeElement?.closest?.("tr")?.dataset?.trial;
  const inBox = document.activeElement?.dataset?.tick;
  const made = rows.map((row) =>
    h("tr", {"data-trial": row.trial}, columns.map((column) => h(column.head ? "th" : "td", {scope: column.head ? "row" : null, class: column.number ? "number" : null}, column.cell(row, base)))),
  );
  fill(body, made);
  if (focused) body.querySelector(`tr[data-trial="${CSS.escape(focused)}"] ${inBox ? "input" : "a"}`)?.focus({preventScroll: true});
}
