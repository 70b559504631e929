// The workers: their devices, state, pace and logs.

import {at, get} from "./api.js";
import {askAndKill} from "./ask.js";
import {fill, h, setText} from "./dom.js";
import {clock, count, duration, pace} from "./format.js";
import {followLog} from "./logs.js";

const MEANING = {
  idle: "waits for trials", training: "trains", slow: "slower than the others of its kind", lost: "no heartbeat for half a minute; its trials go to others", quitting: "saves and leaves", aside: "put aside",
};
const NEEDS_TOKEN = 'To read logs, open the address that "master serve" printed; it holds the token.';

export function workersPage(main, app) {
  const summary = h("p", {class: "quiet"});
  const cards = h("div", {class: "cards"});
  const files = logFiles(app);
  main.append(h("h1", {}, "Workers"), summary, cards, files.element);
  const known = new Map();

  function update({workers, health}) {
    const away = health.redis.state !== "ok";
    setText(summary, away ? health.redis.message : workers.length ? `${count(workers.length)} seen in the last hour` : "No worker is connected. `worker start` starts one; `master launch` starts some by itself.");
    const names = new Set(workers.map((worker) => worker.worker));
    for (const [name, card] of known) {
      if (!names.has(name)) {
        card.close();
        card.element.remove();
        known.delete(name);
      }
    }
    for (const worker of workers) {
      if (!known.has(worker.worker)) {
        known.set(worker.worker, workerCard(app, worker.worker));
        cards.append(known.get(worker.worker).element);
      }
      known.get(worker.worker).update(worker);
    }
  }
  return {
    update,
    close: () => {
      known.forEach((card) => card.close());
      files.close();
    },
  };
}

/** Makes a place that shows one log at a time: `open(ask, label)`, `close()`. */
function logPlace() {
  const element = h("div", {hidden: true});
  let log = null;
  const close = () => {
    log?.close();
    log = null;
    element.hidden = true;
    fill(element);
  };
  return {
    element,
    close,
    isOpen: () => log !== null,
    open: (ask, label) => {
      close();
      log = followLog(ask, label);
      fill(element, log.element);
      element.hidden = false;
    },
  };
}

function workerCard(app, name) {
  const badge = h("span");
  const facts = h("dl", {class: "facts"});
  const log = logPlace();
  const logButton = h("button", {class: "small", type: "button", "aria-expanded": "false", onclick: toggle}, "Log");
  logButton.setAttribute("aria-label", `Log of worker ${name}`);
  const button = h("button", {class: "danger small"}, "Stop it");
  button.setAttribute("aria-label", `Stop worker ${name}`);
  button.addEventListener("click", () =>
    askAndKill(app, {worker: name}, `Stop worker ${name}?`, "It saves its trials, gives them back to the queue, and leaves.", "Stop it"),
  );
  const element = h("section", {class: "card", "data-worker": name}, h("div", {class: "row"}, h("h2", {}, name), badge, logButton, button), facts, log.element);

  function toggle() {
    if (log.isOpen()) log.close();
    else if (app.session.may_change) log.open((query) => get("workers/log", {worker: name, ...query}), `log of worker ${name}`);
    else {
      log.element.hidden = !log.element.hidden;
      fill(log.element, h("p", {class: "border"}, NEEDS_TOKEN));
    }
    logButton.setAttribute("aria-expanded", String(!log.element.hidden));
    element.classList.toggle("wide", !log.element.hidden);
  }

  function update(worker) {
    if (badge.textContent !== worker.state) fill(badge, h("span", {class: `state ${worker.state}`}, worker.state));
    const [steps, why] = [worker.backend.split(":")[0], worker.backend.split(":").slice(1).join(":").trim()];
    const rows = [
      ["Health", worker.reason ? `${MEANING[worker.state] ?? worker.state}: ${worker.reason}` : (MEANING[worker.state] ?? worker.state)],
      ["Host", worker.job ? `${worker.host}, job ${worker.job}` : worker.host],
      ["Device", worker.device_model && worker.device_model !== worker.device ? `${worker.device}, ${worker.device_model}` : worker.device],
      ["Pace", pace(worker.pace)],
      ["Trials", `${count(worker.trials)} now, ${count(worker.trials_done)} done`],
      ["Array width", worker.array_width ? count(worker.array_width) : "–"],
      ["Steps", steps ? `${steps}${why ? ` (${why})` : ""}` : "–"],
      ["Last seen", worker.last_seen_s < 2 ? "now" : `${duration(worker.last_seen_s)} ago`],
    ];
    const key = JSON.stringify(rows);
    if (facts.dataset.key !== key) fill(facts, rows.map(([title, value]) => h("div", {}, h("dt", {}, title), h("dd", {}, value))));
    facts.dataset.key = key;
    button.hidden = worker.state === "lost" || worker.state === "quitting";
  }
  return {element, update, close: log.close};
}

/** The logs in the folder of the search, also those of workers and jobs that have ended. */
function logFiles(app) {
  const list = h("ul", {class: "plain"});
  const log = logPlace();
  const opened = h("details", {}, h("summary", {}, "Logs in the folder of the search, also of workers and jobs that have ended"), list, log.element);
  opened.addEventListener("toggle", () => (opened.open ? read() : log.close()));
  const element = h("section", {id: "log-files"}, opened);

  async function read() {
    if (!app.session.may_change) return fill(list, h("li", {}, NEEDS_TOKEN));
    try {
      const found = await get(`searches/${at(app.search ?? "")}/logs`);
      fill(list, found.length ? found.map(line) : h("li", {}, "There is none: workers that a launch starts write theirs to logs/ in the folder of the search."));
    } catch (error) {
      fill(list, h("li", {}, error.message));
    }
  }

  function line({name, size, at: when}) {
    const path = `searches/${at(app.search ?? "")}/logs/${name.split("/").map(encodeURIComponent).join("/")}`;
    return h("li", {}, h("button", {class: "small", type: "button", onclick: () => log.open((query) => get(path, query), `log ${name}`)}, name), ` ${count(size)} bytes, ${clock(when)}`);
  }
  return {element, close: log.close};
}
