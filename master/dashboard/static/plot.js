// Loads plotly.js when the first figure is drawn, since it is 5 MB.

import {fill, h} from "./dom.js";

const TRIAL = /\b[A-Za-z][A-Za-z0-9_]{0,31}-\d{4,9}\b/g; // the name of a trial

const waiting = []; // figures to be drawn: {element, begin}
let drawing = false; // whether a figure is drawn now, or is not painted yet
let loading = null;

/** Loads plotly.js, once. */
export function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/static/plotly.min.js";
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => {
      loading = null;
      reject(new Error("plotly.js cannot be loaded"));
    });
    document.head.append(script);
  });
  return loading;
}

// The button that sends a chart to the makers of plotly.js is off, as in master/figures/style.py.
const CONFIG = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", displayModeBar: "hover", modeBarButtonsToRemove: ["lasso2d", "select2d"]};

/** Waits until the browser has painted what was drawn. A hidden page paints nothing. */
function painted() {
  const soon = document.hidden ? (next) => next() : requestAnimationFrame;
  return new Promise((resolve) => soon(() => setTimeout(resolve)));
}

/** Whether an element comes before another one on the page. */
const isAbove = (one, other) =>
  Boolean(one.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING);

/** Begins the waiting figure that is highest on the page. */
function drawNext() {
  if (drawing || !waiting.length) return;
  drawing = true;
  waiting.sort((a, b) => (isAbove(a.element, b.element) ? -1 : 1));
  waiting.shift().begin();
}

/**
 * Draws or redraws a figure in an element. The reader's zoom stays while the data grow.
 * One figure is painted before the next one is drawn, so that the first does not wait for all.
 * A click on a point whose text or line names a trial calls `open` with the name. If the text names
 * the trials that it was drawn around, too, the reader chooses one of them.
 */
export async function draw(element, figure, open = null) {
  const library = await plotly();
  await new Promise((begin) => {
    waiting.push({element, begin});
    setTimeout(drawNext); // so that all figures that waited for plotly.js are in the list
  });
  try {
    await drawNow(library, element, figure, open);
  } finally {
    await painted();
    drawing = false;
    drawNext();
  }
}

async function drawNow(library, element, figure, open) {
  if (!element.isConnected) return;
  const isNew = !element.classList.contains("js-plotly-plot");
  await library.react(element, figure.data, {...figure.layout, uirevision: "kept"}, CONFIG);
  if (isNew && open) element.on("plotly_click", ({points, event}) => {
    const named = points.map(({text, data}) => (String(text ?? "").match(TRIAL) ?? String(data.name ?? "").match(TRIAL))).find(Boolean);
    const trials = [...new Set(named)];
    if (trials.length > 1) offer(trials, event, open);
    else if (trials.length) open(trials[0]);
  });
}

/** Shows a trial and those that it was drawn around beside the pointer, to go to one of them. */
function offer([trial, ...parents], event, open) {
  document.getElementById("kin")?.remove();
  const go = (name) => () => {
    close();
    open(name);
  };
  let closed = false;
  const close = () => {
    if (closed) return; // the focus that leaves a removed menu closes it once more
    closed = true;
    menu.remove();
  };
  const button = (name) => h("button", {class: "small", type: "button", onclick: go(name)}, name);
  const menu = h("div", {id: "kin", role: "group", "aria-label": `${trial} and its parents`});
  fill(menu, h("p", {}, button(trial)), h("p", {}, "drawn around ", ...parents.map(button)));
  document.getElementById("main").append(menu);
  const width = menu.offsetWidth;
  menu.style.left = `${Math.max(8, Math.min(event.pageX ?? 0, window.innerWidth - width - 8))}px`;
  menu.style.top = `${(event.pageY ?? 0) + 8}px`;
  menu.querySelector("button").focus({preventScroll: true});
  menu.addEventListener("keydown", ({key}) => key === "Escape" && close());
  menu.addEventListener("focusout", ({relatedTarget}) => menu.contains(relatedTarget) || close());
}

/** Frees the resources of a figure. */
export function forget(element) {
  document.getElementById("kin")?.remove();
  if (window.Plotly && element.classList.contains("js-plotly-plot")) window.Plotly.purge(element);
}
