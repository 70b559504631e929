// A log that is followed: its end, and what is added to it, a part at a time.

import {h, setText} from "./dom.js";
import {count} from "./format.js";

const EVERY_MS = 1000; // between two looks at a log that grows
const AGAIN_MS = 4000; // after an error
const MOST = 1 << 18; // characters on the page; what is older is left out
const NEAR = 30; // pixels from the end that still count as the end

/** Leaves out colours, and what a progress bar has written over. */
const clean = (text) => text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, "").replace(/\r\n/g, "\n").replace(/^.*\r(?=[^\n])/gm, "");

/**
 * Follows a log. `ask(query)` returns the promise of a part as the API has it.
 * Returns {element, close}.
 */
export function followLog(ask, label) {
  const told = h("p", {class: "quiet hint", role: "status"}, "Reading.");
  const pre = h("pre", {class: "log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": label, hidden: true});
  const element = h("div", {class: "log-box"}, told, pre);
  let text = "";
  let last = null; // the part that was shown last
  let again = null;
  let closed = false;

  async function look() {
    clearTimeout(again);
    let wait = EVERY_MS;
    try {
      const part = await ask(last ? {at: last.end, file: last.file} : {});
      if (closed) return;
      show(part);
      if (part.over) return;
      if (part.text && part.end < part.size) wait = 0;
    } catch (error) {
      if (closed) return;
      setText(told, error.message);
      wait = AGAIN_MS;
    }
    again = setTimeout(document.hidden ? sleep : look, wait);
  }

  function sleep() {
    document.addEventListener("visibilitychange", look, {once: true});
  }

  function show(part) {
    const goesOn = last && last.file === part.file && last.end === part.begin;
    const atEnd = pre.hidden || pre.scrollTop + pre.clientHeight >= pre.scrollHeight - NEAR;
    const added = goesOn ? part.text : last ? `\n[the log was cut or began anew here]\n${part.text}` : part.text;
    const cut = last ? last.cut || text.length + added.length > MOST : part.begin > 0;
    if (added) {
      text = clean(text + added).slice(-MOST);
      pre.textContent = text;
    }
    pre.hidden = !text;
    if (atEnd) pre.scrollTop = pre.scrollHeight;
    last = {...part, cut};
    const state = part.over ? "ended" : "followed live";
    setText(told, `${part.where}, ${count(part.size)} bytes, ${part.size ? state : "empty so far"}${cut ? "; only its end is shown" : ""}`);
  }

  look();
  return {
    element,
    close: () => {
      closed = true;
      clearTimeout(again);
      document.removeEventListener("visibilitychange", look);
    },
  };
}
