// The filter: its field, its words, and the parts of axes that were selected in a figure. A selected
// part is written as comparisons, so the address, the table, the figures and a download all have it.

import {fill, h} from "./dom.js";
import {short} from "./format.js";

const COMPARISON = /^([A-Za-z_][\w.]*)(>=|<=|!=|=|>|<)(.+)$/s;
const TYPING_MS = 200;

/** Splits a filter as `split_words` of master/dashboard/filtering.py does. */
function splitWords(text) {
  const words = [""];
  let [depth, quoted] = [0, false];
  for (const character of text) {
    if (character === '"') quoted = !quoted;
    else if (!quoted) depth = Math.max(0, depth + "[{".includes(character) - "]}".includes(character));
    if (quoted || depth || !(/\s/.test(character) || "()".includes(character))) words[words.length - 1] += character;
    else words.push(character.trim(), "");
  }
  return words.filter(Boolean);
}

/** Returns the words and the outermost groups of a filter, as `{text, name, low, high, options}`. */
function partsOf(text) {
  const words = splitWords(text);
  const parts = [];
  for (let place = 0; place < words.length; place += 1) {
    const group = [words[place]];
    for (let depth = words[place] === "(" ? 1 : 0; depth > 0 && place + 1 < words.length; ) {
      place += 1;
      group.push(words[place]);
      depth += (words[place] === "(") - (words[place] === ")");
    }
    parts.push(partOf(group));
  }
  return parts;
}

function partOf(words) {
  const text = words.join(" ").replaceAll("( ", "(").replaceAll(" )", ")");
  const inner = words[0] === "(" ? words.slice(1, -1) : words;
  const tests = inner.filter((_, place) => place % 2 === 0).map((word) => word.match(COMPARISON));
  const alternatives = inner.every((word, place) => place % 2 === 0 || word.toUpperCase() === "OR");
  if (!alternatives || !tests.length || tests.some((test) => !test || test[1] !== tests[0][1])) return {text};
  const [, name, operator, value] = tests[0];
  if (tests.every((test) => test[2] === "=")) return {text, name, options: tests.map((test) => test[3].replace(/^"(.*)"$/s, "$1"))};
  if (tests.length > 1 || operator === "!=" || !Number.isFinite(Number(value))) return {text};
  return {text, name, [operator[0] === ">" ? "low" : "high"]: Number(value)};
}

const hasOr = (parts) => parts.some((part) => part.text.toUpperCase() === "OR");

/** Returns what a filter demands of single names: a map from the name to `{low, high, options}`. */
export function selections(text) {
  const parts = partsOf(text);
  const found = new Map();
  if (hasOr(parts)) return found;
  for (const {name, low, high, options} of parts.filter((part) => part.name)) {
    const known = found.get(name) ?? {};
    found.set(name, {low: low ?? known.low, high: high ?? known.high, options: options ?? known.options});
  }
  return found;
}

/** Returns the filter with another demand on a name: `{low, high}`, `{options}`, or null for none. */
export function select(text, name, demand) {
  const parts = partsOf(text);
  const kept = hasOr(parts) ? [`(${text})`] : parts.filter((part) => part.name !== name).map((part) => part.text);
  const words = [];
  if (demand?.options) words.push(demand.options.map((option) => `${name}=${quote(String(option))}`).join(" OR "));
  if (demand?.options?.length > 1) words[0] = `(${words[0]})`;
  if (demand?.low !== undefined) words.push(`${name}>=${demand.low}`);
  if (demand?.high !== undefined) words.push(`${name}<=${demand.high}`);
  return [...kept, ...words].join(" ");
}

const quote = (text) => (/[\s()]/.test(text) && !/^[[{]/.test(text) ? `"${text}"` : text);

function describe(name, {low, high, options}) {
  if (options) return `${name}: ${options.join(" or ")}`;
  if (high === undefined) return `${name} from ${short(low)}`;
  return low === undefined ? `${name} to ${short(high)}` : `${name} ${short(low)} to ${short(high)}`;
}

/**
 * Makes the field of the filter, and below it a button for each selected part, which removes it.
 * `changed` is called with the text, and with whether it goes on with a change that was told before.
 */
export function filterField(text, changed) {
  const input = h("input", {id: "filter", type: "search", size: "30", autocomplete: "off", spellcheck: "false", placeholder: "learning_rate>0.01 noisy", value: text});
  const chips = h("div", {class: "row chips", id: "selected", hidden: true});
  let typed = null;
  let begun = false; // whether something was typed since the field has the focus

  const set = (value, focused = false) => {
    if (input.value !== value) input.value = value;
    const chosen = selections(value);
    const remove = (name) => {
      set(select(input.value, name, null), true);
      changed(input.value.trim(), false);
    };
    const clear = () => {
      set("");
      input.focus();
      changed("", false);
    };
    fill(chips, "Selected: ",
      [...chosen].map(([name, demand]) => h("button", {class: "small chip", type: "button", onclick: () => remove(name), "aria-label": `Remove ${describe(name, demand)}`}, describe(name, demand), h("span", {"aria-hidden": "true"}, " ✕"))),
      h("button", {class: "small", type: "button", onclick: clear}, "Clear the filter"));
    chips.hidden = !value.trim();
    if (focused) (chips.hidden ? input : chips.querySelector("button")).focus();
  };
  input.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => {
      set(input.value);
      changed(input.value.trim(), begun);
      begun = true;
    }, TYPING_MS);
  });
  input.addEventListener("focus", () => {
    begun = false;
  });
  set(text);
  return {label: h("label", {class: "grow"}, "Filter ", input), chips, input, set, close: () => clearTimeout(typed)};
}
