// plotly.js, loaded when the first figure is drawn: it is five megabytes.

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

// The button that would send a chart to the makers of plotly.js is off, as in master/figures/style.py.
const CONFIG = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", displayModeBar: "hover", modeBarButtonsToRemove: ["lasso2d", "select2d"]};

/** Draws or redraws a figure into an element; keeps the reader's zoom while the data grow. */
export async function draw(element, figure) {
  const library = await plotly();
  if (!element.isConnected) return;
  await library.react(element, figure.data, {...figure.layout, uirevision: "kept"}, CONFIG);
}

/** Frees what a figure holds. */
export function forget(element) {
  if (window.Plotly && element.classList.contains("js-plotly-plot")) window.Plotly.purge(element);
}
