// The figures of a stage, drawn by the server as plotly's JSON.

import {at, get} from "./api.js";
import {Brush} from "./brush.js";
import {fill, h, setText} from "./dom.js";
import {filterField, select} from "./filter.js";
import {count} from "./format.js";
import {draw, forget, plotly} from "./plot.js";

const LEAST_MS = 5000; // between two drawings of a figure, while trials end
const NARROW = 700; // pixels; wider elements have panels side by side
const WIDTH = {hyperparameters: "wide", parallel: "wide", histograms: "wide", timeline: "wide", progress: "double"}; // one column is too narrow for these

/**
 * One figure, updated with its stage. It is requested when it comes into view.
 * With `chosen`, parts of its axes can be selected; it is called with the filter that has them.
 */
export class FigureBox {
  constructor(search, stage, name, title = "", filter = "", chosen = null) {
    this.open = (trial) => (location.hash = `#/s/${encodeURIComponent(search)}/trial/${encodeURIComponent(trial)}`);
    this.path = `searches/${at(search)}/stages/${at(stage)}/figures/${at(name)}`;
    this.filter = filter;
    this.plot = h("div", {class: "plot"});
    this.note = h("p", {class: "quiet"}, "Drawing.");
    this.caption = h("p", {class: "quiet hint", hidden: true});
    this.element = h("figure", {class: `figure ${WIDTH[name] ?? ""}`, "data-figure": name, "aria-label": title || name}, this.note, h("div", {class: "drawing"}, this.plot), this.caption);
    this.brush = chosen && name === "parallel" ? new Brush(this.plot, (axis, demand) => chosen(select(this.filter, axis, demand))) : null;
    this.wanted = 0;
    this.drawn = "";
    this.lastAt = 0;
    this.visible = false;
    this.watcher = new IntersectionObserver((entries) => {
      this.visible = entries.some((entry) => entry.isIntersecting);
      this.#next();
    }, {rootMargin: "300px"});
    this.watcher.observe(this.element);
  }

  update(version, filter = this.filter) {
    if (filter !== this.filter) this.lastAt = 0; // a person waits for it
    this.wanted = version;
    this.filter = filter;
    this.#next();
  }

  #key() {
    return JSON.stringify([this.wanted, this.filter]);
  }

  #next() {
    if (!this.visible || this.busy || this.#key() === this.drawn) return;
    clearTimeout(this.again);
    const wait = this.lastAt + LEAST_MS - Date.now();
    if (wait > 0) this.again = setTimeout(() => this.#next(), wait);
    else this.#load();
  }

  async #load() {
    this.busy = true;
    this.lastAt = Date.now();
    const [key, filter] = [this.#key(), this.filter];
    plotly().catch(() => null); // it is loaded while the server draws; draw() tells what went wrong
    try {
      const figure = await get(this.path, {columns: this.element.clientWidth < NARROW ? 1 : 2, filter});
      this.note.hidden = true;
      const {matching, of, axes} = figure.layout.meta ?? {};
      this.caption.hidden = !filter;
      setText(this.caption, matching === undefined ? "Of all trials, whether they match the filter or not." : `${count(matching)} of ${count(of)} trials match the filter.`);
      await draw(this.plot, figure, this.open);
      this.#offerBrush(axes);
    } catch (error) {
      this.note.hidden = false;
      setText(this.note, error.message);
    }
    this.drawn = key;
    this.busy = false;
    this.#next();
  }

  #offerBrush(axes) {
    this.axes = axes;
    if (!this.brush || !this.plot.isConnected) return;
    this.brush.draw(axes, this.filter);
    if (!this.follows) this.plot.on("plotly_afterplot", () => this.brush.draw(this.axes, this.filter));
    this.follows = true;
  }

  close() {
    clearTimeout(this.again);
    this.watcher.disconnect();
    this.brush?.close();
    forget(this.plot);
  }
}

/** Fills a list of figures to choose from, with the titles that the server gives them. */
export function drawFigureNames(pick, names, none, chosen) {
  fill(pick, h("option", {value: ""}, none), names.map(({name, title}) => h("option", {value: name}, title)));
  pick.value = names.some(({name}) => name === chosen) ? chosen : "";
}

let asked = null;

/** Returns the names of all figures; they are requested once. */
export function figureNames() {
  asked ??= get("figures").catch(() => {
    asked = null;
    return [];
  });
  return asked;
}

export function figuresPage(main, app, wanted) {
  const view = {stage: wanted.query.get("stage"), filter: wanted.query.get("filter") ?? "", figure: wanted.query.get("figure") ?? ""};
  const pick = h("select", {id: "stage"});
  const which = h("select", {id: "figure"});
  const note = h("p", {class: "quiet"});
  const holder = h("div", {class: "figures"});
  const changed = (filter, typing) => {
    view.filter = filter;
    app.remember("figures", view, typing);
    update(app.state);
  };
  const filter = filterField(view.filter, changed);
  const chosen = (text) => {
    filter.set(text);
    changed(text, false);
  };
  main.append(
    h("h1", {}, "Figures"),
    h("form", {class: "controls", onsubmit: (event) => event.preventDefault()}, h("label", {}, "Stage ", pick), h("label", {}, "Figure ", which), filter.label), filter.chips,
    h("p", {class: "quiet hint"}, "The filter is that of the trials; the figures that show single trials follow it. Drag along an axis of the parallel coordinates to select a part of it."), note, holder);
  let boxes = [];
  let names = null;

  async function update(now) {
    const stages = (now.overview?.stages ?? []).filter((one) => one.launched && one.ended && one.version);
    const known = stages.map((one) => one.stage);
    if (pick.dataset.names !== JSON.stringify(known)) fill(pick, known.map((name) => h("option", {value: name}, name)));
    pick.dataset.names = JSON.stringify(known);
    const lost = known.length && view.stage && !known.includes(view.stage);
    setText(note, !known.length ? "No trial has ended yet; the figures appear here by themselves." : lost ? `No trial of a stage "${view.stage}" has ended; these are the figures of ${known.at(-1)}.` : "");
    if (!known.length) return;
    const stage = known.includes(view.stage) ? view.stage : known.at(-1);
    if (document.activeElement !== pick) pick.value = stage;
    if (!names) {
      names = [];
      names = await figureNames();
      drawFigureNames(which, names, "all", view.figure);
      if (!names.length) names = null;
    }
    if (!names?.length) return;
    const key = JSON.stringify([stage, view.figure]);
    if (holder.dataset.key !== key) {
      boxes.forEach((box) => box.close());
      const shown = names.filter(({name}) => name === view.figure);
      boxes = (shown.length ? shown : names).map((figure) => new FigureBox(app.search, stage, figure.name, figure.about, view.filter, chosen));
      fill(holder, boxes.map((box) => box.element));
      holder.dataset.key = key;
      holder.classList.toggle("one", boxes.length === 1);
    }
    boxes.forEach((box) => box.update(stages.find((one) => one.stage === stage).version, view.filter));
  }

  const follow = (select, name) => select.addEventListener("change", () => {
    view[name] = select.value;
    app.remember("figures", view);
    update(app.state);
  });
  follow(pick, "stage");
  follow(which, "figure");
  if (wanted.query.has("focus")) filter.input.focus();
  return {
    update,
    close: () => {
      filter.close();
      boxes.forEach((box) => box.close());
    },
  };
}
