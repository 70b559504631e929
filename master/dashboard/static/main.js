// The frame around the pages: it selects the page and shows the live state and problems.

import {follow, get} from "./api.js";
import {comparePage} from "./compare.js";
import {fill, h, setText} from "./dom.js";
import {figuresPage} from "./figures.js";
import {overviewPage} from "./overview.js";
import {searchesPage} from "./searches.js";
import {trialPage} from "./trial.js";
import {trialsPage} from "./trials.js";
import {workersPage} from "./workers.js";

const PAGES = {overview: overviewPage, trials: trialsPage, figures: figuresPage, workers: workersPage, trial: trialPage, compare: comparePage, searches: searchesPage};
const TABS = [["overview", "Overview"], ["trials", "Trials"], ["figures", "Figures"], ["workers", "Workers"]];
const FILTERED = ["trials", "figures"]; // pages of the trials that pass the filter
const USUAL = {sort: "rank", order: "asc"}; // what the address leaves out
const main = document.getElementById("main");

const app = {session: {may_change: false, search: null, version: ""}, state: null, search: null, go: (hash) => (location.hash = hash), remember};
let page = null; // {update(state), close()} of the page that is shown
let place = null; // the address of that page, as JSON
let unfollow = () => {};
let followed; // the search whose events are followed; undefined at the start
let streamBroken = false;

/** Splits an address such as "#/s/digits/trial/coarse-0042?x=y" into its parts. */
function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  const named = parts[0] === "s" && parts[1] ? parts[1] : null;
  const rest = named ? parts.slice(2) : parts;
  const name = rest[0] in PAGES ? rest[0] : "overview";
  return {search: named, name, trial: rest[1] ?? null, query: new URLSearchParams(query)};
}

/**
 * Returns the search to show: the one in the address, else the one shown before or named on the
 * command line, else the first that has running trials, else the first.
 */
function pick(wanted) {
  const known = app.state?.searches ?? [];
  if (wanted) return wanted;
  const asked = known.find((line) => line.search === (app.search ?? app.session.search));
  return (asked ?? known.find((line) => line.running > 0) ?? known[0])?.search ?? app.session.search;
}

const keyOf = (search, wanted) => JSON.stringify([search, wanted.name, wanted.trial, wanted.query.toString()]);

/**
 * Keeps what a page shows in the address, so that it can be shared and survives a reload. The
 * browser's Back undoes it, unless it is a quiet change, such as another letter of a filter.
 */
function remember(name, view, quiet = false) {
  const query = new URLSearchParams(Object.entries(view).filter(([key, value]) => value && value !== USUAL[key])).toString();
  const address = `#/s/${encodeURIComponent(app.search)}/${name}${query && `?${query}`}`;
  const wanted = parse(address);
  if (keyOf(app.search, wanted) === place) return;
  history[quiet ? "replaceState" : "pushState"](null, "", address);
  place = keyOf(app.search, wanted);
  drawTabs(wanted);
}

function show() {
  const wanted = parse(location.hash);
  const isStart = location.hash.replace(/[#/]/g, "") === "" && !app.session.search;
  if (isStart && (app.state?.searches.length ?? 0) > 1) wanted.name = "searches"; // the start page of several
  const search = pick(wanted.search);
  if (app.state?.overview && app.state.overview.search !== search) app.state.overview = null; // it belongs to the search shown before
  app.search = search;
  if (followed !== search) listen(search);
  const key = keyOf(search, wanted);
  if (key !== place) {
    place = key;
    page?.close?.();
    fill(main);
    page = PAGES[wanted.name](main, app, wanted);
    document.title = `${wanted.trial ?? TABS.find(([name]) => name === wanted.name)?.[1] ?? (wanted.name === "compare" ? "Comparison" : "Searches")} · ${search ?? "coarsefine"}`;
    window.scrollTo(0, 0);
  }
  drawTabs(parse(location.hash));
  drawHealth();
  if (app.state) page.update(app.state);
}

function listen(search) {
  unfollow();
  followed = search;
  unfollow = follow(search, heard, (broken) => {
    streamBroken = broken;
    drawHealth();
  });
}

function heard(state) {
  app.state = state;
  drawSearches();
  drawHealth();
  if (pick(parse(location.hash).search) !== app.search || !page) show();
  else page.update(state);
}

/** Draws the links to the pages. The trials and the figures of a stage have the same filter. */
function drawTabs({name: current, query}) {
  const base = app.search ? `#/s/${encodeURIComponent(app.search)}` : "#";
  const shared = new URLSearchParams(["stage", "filter"].filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
  const suffix = FILTERED.includes(current) && shared.size ? `?${shared}` : "";
  const tabs = TABS.map(([name, title]) => h("a", {href: `${base}/${name}${FILTERED.includes(name) ? suffix : ""}`, "aria-current": name === current ? "page" : null}, title));
  const nav = document.getElementById("pages");
  const key = base + current + suffix;
  if (nav.dataset.key !== key) fill(nav, tabs);
  nav.dataset.key = key;
  document.querySelector(".brand").href = (app.state?.searches.length ?? 0) > 1 ? "#/searches" : `${base}/overview`;
}

function drawSearches() {
  const names = app.state.searches.map((line) => line.search);
  document.getElementById("search-pick").hidden = names.length < 2;
  const select = document.getElementById("search-select");
  if (select.dataset.names !== JSON.stringify(names)) fill(select, names.map((name) => h("option", {value: name}, name)));
  select.dataset.names = JSON.stringify(names);
  if (app.search && document.activeElement !== select) select.value = app.search;
}

function drawHealth() {
  const health = app.state?.health;
  const redis = health?.redis.state;
  const text = streamBroken ? "reconnecting" : !health ? "connecting" : redis === "away" ? "Redis is away" : "live";
  const live = document.getElementById("live");
  live.className = text === "live" ? "ok" : "away";
  setText(document.getElementById("live-text"), text);
  const alerts = [];
  if (streamBroken) alerts.push(["The dashboard's server cannot be reached. This page shows older data and reconnects by itself.", ""]);
  if (redis === "away") alerts.push(["Redis is away: running trials and workers are unknown, and nothing can be killed. The dashboard tries again every second.", health.redis.message]);
  if (health?.folder.state === "away") alerts.push(["The checkpoint folder cannot be read.", health.folder.message]);
  const known = (app.state?.searches ?? []).some((line) => line.search === app.search);
  if (app.search && !known && health?.folder.state === "ok") alerts.push([`There is no search "${app.search}" in ${health.folder.where}.`, "It appears here by itself once it is launched."]);
  const key = JSON.stringify(alerts);
  const box = document.getElementById("alerts");
  if (box.dataset.key !== key) fill(box, alerts.map(([what, detail]) => h("p", {class: "alert"}, h("strong", {}, what), detail ? ` ${detail}` : "")));
  box.dataset.key = key;
}

document.getElementById("search-select").addEventListener("change", (event) => {
  app.go(`#/s/${encodeURIComponent(event.target.value)}/overview`);
});
window.addEventListener("hashchange", show);

/** "/" goes to the filter; "j" and "k" go to the next and the previous row of a table of trials. */
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea, dialog[open]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    const filter = document.getElementById("filter");
    if (filter) filter.focus();
    else app.go(`${app.search ? `#/s/${encodeURIComponent(app.search)}` : "#"}/trials?focus=filter`);
  } else if (event.key === "j" || event.key === "k") {
    const links = [...main.querySelectorAll("tbody tr[data-trial] th a")];
    const now = links.findIndex((one) => one.closest("tr").contains(document.activeElement));
    const next = now < 0 ? links[0] : links[now + (event.key === "j" ? 1 : -1)];
    next?.focus();
  }
});

app.ticked = new Set(); // trials to compare, as `search/trial`
app.session = await get("session").catch(() => app.session);
app.state = await get("state", {search: parse(location.hash).search}).catch(() => null);
if (app.state) drawSearches();
drawHealth();
setText(
  document.getElementById("visitor"),
  app.session.may_change ? `coarsefine ${app.session.version}` : `coarsefine ${app.session.version} · read only: to kill, open the address that "master serve" printed`,
);
show();
