// The frame around the pages: which one is shown, what is live, and what is wrong.

import {follow, get} from "./api.js";
import {fill, h, setText} from "./dom.js";
import {figuresPage} from "./figures.js";
import {overviewPage} from "./overview.js";
import {trialPage} from "./trial.js";
import {trialsPage} from "./trials.js";
import {workersPage} from "./workers.js";

const PAGES = {overview: overviewPage, trials: trialsPage, figures: figuresPage, workers: workersPage, trial: trialPage};
const TABS = [["overview", "Overview"], ["trials", "Trials"], ["figures", "Figures"], ["workers", "Workers"]];
const main = document.getElementById("main");

const app = {session: {may_change: false, search: null, version: ""}, state: null, search: null, go: (hash) => (location.hash = hash)};
let page = null; // {update(state), close()} of what is shown
let place = null; // what it was made for
let unfollow = () => {};
let followed; // the search whose events are followed; undefined before the first
let streamBroken = false;

/** "#/s/digits/trial/coarse-0042?x=y" as its parts. */
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

/** The search to show: the address's, the command line's, the one that moves, the first. */
function pick(wanted) {
  const known = app.state?.searches ?? [];
  if (wanted) return wanted;
  const asked = known.find((line) => line.search === (app.search ?? app.session.search));
  return (asked ?? known.find((line) => line.running > 0) ?? known[0])?.search ?? app.session.search;
}

function show() {
  const wanted = parse(location.hash);
  const search = pick(wanted.search);
  app.search = search;
  if (followed !== search) listen(search);
  const key = JSON.stringify([search, wanted.name, wanted.trial]);
  if (key !== place) {
    place = key;
    page?.close?.();
    fill(main);
    page = PAGES[wanted.name](main, app, wanted);
    document.title = `${wanted.trial ?? TABS.find(([name]) => name === wanted.name)?.[1] ?? "Overview"} · ${search ?? "coarsefine"}`;
    window.scrollTo(0, 0);
  }
  drawTabs(wanted.name);
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

function drawTabs(current) {
  const base = app.search ? `#/s/${encodeURIComponent(app.search)}` : "#";
  const tabs = TABS.map(([name, title]) => h("a", {href: `${base}/${name}`, "aria-current": name === current ? "page" : null}, title));
  const nav = document.getElementById("pages");
  if (nav.dataset.key !== base + current) fill(nav, tabs);
  nav.dataset.key = base + current;
  document.querySelector(".brand").href = `${base}/overview`;
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
  if (streamBroken) alerts.push(["The dashboard's server cannot be reached. What is shown is from before; it goes on by itself.", ""]);
  if (redis === "away") alerts.push(["Redis is away: running trials and workers are not known, and nothing can be killed. It is tried again every second.", health.redis.message]);
  if (health?.folder.state === "away") alerts.push(["The checkpoint folder cannot be read.", health.folder.message]);
  const key = JSON.stringify(alerts);
  const box = document.getElementById("alerts");
  if (box.dataset.key !== key) fill(box, alerts.map(([what, detail]) => h("p", {class: "alert"}, h("strong", {}, what), detail ? ` ${detail}` : "")));
  box.dataset.key = key;
}

document.getElementById("search-select").addEventListener("change", (event) => {
  app.go(`#/s/${encodeURIComponent(event.target.value)}/overview`);
});
window.addEventListener("hashchange", show);

app.session = await get("session").catch(() => app.session);
app.state = await get("state").catch(() => null);
if (app.state) drawSearches();
drawHealth();
setText(
  document.getElementById("visitor"),
  app.session.may_change ? `coarsefine ${app.session.version}` : `coarsefine ${app.session.version} · read only: the address that "master serve" printed allows to kill`,
);
show();
