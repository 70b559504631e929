// Numbers and times as people read them.

/** Four decimals, as in the names of checkpoints; fewer for what is out of all proportion. */
export function metric(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size >= 1e4 || (size > 0 && size < 1e-3) ? value.toPrecision(3) : value.toFixed(4);
}

/** Three significant digits. */
export function short(value) {
  if (value === null || value === undefined) return "–";
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

/** Trials a second, or a minute where that says more. */
export function pace(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  return perSecond >= 0.5 ? `${short(perSecond)} trials/s` : `${short(perSecond * 60)} trials/min`;
}

export const count = (n) => n.toLocaleString("en-US");
export const epochs = (n) => (n === null || n === undefined ? "–" : short(n));
export const clock = (unix) => (unix ? new Date(unix * 1000).toLocaleString() : "–");
