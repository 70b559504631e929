// Loads plotly.js when the first figure is drawn, since it is 5 MB.

const TRIAL = /\b[A-Za-z][A-Za-z0-9_]{0,31}-\d{4,9}\b/; // the name of a trial

let loading = null;

function plotly() {
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

/**
 * Draws or redraws a figure in an element. The reader's zoom stays while the data grow.
 * A click on a point whose text or line names a trial calls `open` with the name.
 */
export async function draw(element, figure, open = null) {
  const library = await plotly();
  if (!element.isConnected) return;
  const isNew = !element.classList.contains("js-plotly-plot");
  await library.react(element, figure.data, {...figure.layout, uirevision: "kept"}, CONFIG);
  if (isNew && open) element.on("plotly_click", ({points}) => {
    const named = points.map(({text, data}) => `${text ?? ""} ${data.name ?? ""}`.match(TRIAL)?.[0]).find(Boolean);
    if (named) open(named);
  });
}

/** Frees the resources of a figure. */
export function forget(element) {
  if (window.Plotly && element.classList.contains("js-plotly-plot")) window.Plotly.purge(element);
}
