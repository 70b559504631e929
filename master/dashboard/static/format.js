// Formats numbers and times for people.

/** Four decimals, as in the names of checkpoints. Very large or small values: three digits. */
export function metric(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size >= 1e4 || (size > 0 && size < 1e-3) ? value.toPrecision(3) : value.toFixed(4);
}

const WORDS = {train: "training", val: "validation", acc: "accuracy", grad: "gradient"};
const inWords = (name) => name.split("_").map((part) => (Object.hasOwn(WORDS, part) ? WORDS[part] : part)).join(" ");

/**
 * The names of a trial's curves in words: "validation loss" for val_loss, "update ratio, layer 2" for
 * update_ratio.3. PyTorch numbers all modules of a sequence; here the layers of a kind are counted.
 */
export function curveWords(names) {
  const layersOf = new Map();
  const split = (name) => [name.split(".")[0], name.split(".").slice(1).join(".")];
  for (const [what, layer] of names.map(split)) layersOf.set(what, [...(layersOf.get(what) ?? []), layer]);
  return new Map(names.map((name) => {
    const [what, layer] = split(name);
    const layers = layersOf.get(what);
    const counted = layers.every((one) => /^\d+$/.test(one)) ? layers.toSorted((a, b) => a - b).indexOf(layer) + 1 : layer;
    return [name, layer ? `${inWords(what)}, layer ${counted}` : inWords(name)];
  }));
}

/** Three significant digits. A list or a table as JSON. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "object") return JSON.stringify(value);
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(2).replace("e+", "e");
}

/** "1 h 02 min", "3 min 20 s", "12 s". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  if (whole >= 86400) return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
  if (whole >= 3600) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return whole >= 60 ? `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s` : `${whole} s`;
}

/** "3.2 trials/s", or "3.2 s a trial" if it is slower than one a second. */
export function pace(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  if (perSecond >= 1) return `${perSecond.toFixed(1)} trials/s`;
  return `${1 / perSecond < 9.95 ? `${(1 / perSecond).toFixed(1)} s` : duration(1 / perSecond)} a trial`;
}

/** "0.9694 ± 0.0042 over 2 runs", of a configuration that was trained under several seeds. */
export const spread = ({mean, deviation, n}) => `${metric(mean)}${deviation === null ? "" : ` ± ${metric(deviation)}`} over ${n} ${n === 1 ? "run" : "runs"}`;

export const count = (n) => n.toLocaleString("en-US");
export const epochs = (n) => (n === null || n === undefined ? "–" : short(n));
export const clock = (unix) => (unix ? new Date(unix * 1000).toLocaleString() : "–");

/** "once", "twice", "3 times"; empty for 0. */
export const times = (n) => (n > 2 ? `${n} times` : ["", "once", "twice"][n] ?? "");

/** "7 of 20 epochs, promoted twice". */
export function budget(row) {
  const share = row.max_epochs > row.budget_epochs ? `${short(row.budget_epochs)} of ${short(row.max_epochs)} epochs` : `${short(row.budget_epochs)} ${row.budget_epochs === 1 ? "epoch" : "epochs"}`;
  return row.rung ? `${share}, promoted ${times(row.rung)}` : share;
}
