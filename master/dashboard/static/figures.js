// The figures of a stage, drawn by the server as plotly's JSON.

import {at, get} from "./api.js";
import {fill, h, setText} from "./dom.js";
import {draw, forget} from "./plot.js";

const LEAST_MS = 5000; // between two drawings of a figure, while trials end
const NARROW = 700; // pixels; wider elements have panels side by side
const WIDE = new Set(["hyperparameters", "parallel", "histograms", "timeline"]); // need the whole width

/** One figure, updated with its stage. It is requested when it comes into view. */
export class FigureBox {
  constructor(search, stage, name, title = "") {
    this.open = (trial) => (location.hash = `#/s/${encodeURIComponent(search)}/trial/${encodeURIComponent(trial)}`);
    this.path = `searches/${at(search)}/stages/${at(stage)}/figures/${at(name)}`;
    this.plot = h("div", {class: "plot"});
    this.note = h("p", {class: "quiet"}, "Drawing.");
    this.element = h("figure", {class: WIDE.has(name) ? "figure wide" : "figure", "data-figure": name, "aria-label": title || name}, this.note, this.plot);
    this.wanted = 0;
    this.drawn = -1;
    this.lastAt = 0;
    this.visible = false;
    this.watcher = new IntersectionObserver((entries) => {
      this.visible = entries.some((entry) => entry.isIntersecting);
      this.#next();
    }, {rootMargin: "300px"});
    this.watcher.observe(this.element);
  }

  update(version) {
    this.wanted = version;
    this.#next();
  }

  #next() {
    if (!this.visible || this.busy || this.wanted === this.drawn) return;
    clearTimeout(this.again);
    const wait = this.lastAt + LEAST_MS - Date.now();
    if (wait > 0) this.again = setTimeout(() => this.#next(), wait);
    else this.#load();
  }

  async #load() {
    this.busy = true;
    this.lastAt = Date.now();
    const version = this.wanted;
    try {
      const figure = await get(this.path, {columns: this.element.clientWidth < NARROW ? 1 : 2});
      this.note.hidden = true;
      await draw(this.plot, figure, this.open);
    } catch (error) {
      this.note.hidden = false;
      setText(this.note, error.message);
    }
    this.drawn = version;
    this.busy = false;
    this.#next();
  }

  close() {
    clearTimeout(this.again);
    this.watcher.disconnect();
    forget(this.plot);
  }
}

export function figuresPage(main, app, wanted) {
  const pick = h("select", {id: "stage"});
  const note = h("p", {class: "quiet"});
  const holder = h("div", {class: "figures"});
  main.append(h("h1", {}, "Figures"), h("form", {class: "controls", onsubmit: (event) => event.preventDefault()}, h("label", {}, "Stage ", pick)), note, holder);
  let stage = wanted.query.get("stage");
  let boxes = [];
  let names = null;

  async function update(now) {
    const stages = (now.overview?.stages ?? []).filter((one) => one.launched && one.ended && one.version);
    const known = stages.map((one) => one.stage);
    if (pick.dataset.names !== JSON.stringify(known)) fill(pick, known.map((name) => h("option", {value: name}, name)));
    pick.dataset.names = JSON.stringify(known);
    setText(note, known.length ? "" : "No trial has ended yet; the figures appear here by themselves.");
    if (!known.length) return;
    if (!known.includes(stage)) stage = known.at(-1);
    if (document.activeElement !== pick) pick.value = stage;
    if (!names) {
      names = [];
      names = await get("figures").catch(() => null);
    }
    if (!names) return;
    if (holder.dataset.stage !== stage && names.length) {
      boxes.forEach((box) => box.close());
      boxes = names.map((figure) => new FigureBox(app.search, stage, figure.name, figure.title));
      fill(holder, boxes.map((box) => box.element));
      holder.dataset.stage = stage;
    }
    boxes.forEach((box) => box.update(stages.find((one) => one.stage === stage).version));
  }

  pick.addEventListener("change", () => {
    stage = pick.value;
    app.remember("figures", {stage});
    update(app.state);
  });
  return {update, close: () => boxes.forEach((box) => box.close())};
}
