// The workers: their devices, state, and pace.

import {askAndKill} from "./ask.js";
import {fill, h, setText} from "./dom.js";
import {count, duration, pace} from "./format.js";

const MEANING = {
  idle: "waits for trials", training: "trains", slow: "slower than the others of its kind", lost: "no heartbeat for half a minute; its trials go to others", quitting: "saves and leaves", aside: "put aside",
};

export function workersPage(main, app) {
  const summary = h("p", {class: "quiet"});
  const cards = h("div", {class: "cards"});
  main.append(h("h1", {}, "Workers"), summary, cards);
  const known = new Map();

  function update({workers, health}) {
    const away = health.redis.state !== "ok";
    setText(summary, away ? health.redis.message : workers.length ? `${count(workers.length)} seen in the last hour` : "No worker is connected. `worker start` starts one; `master launch` starts some by itself.");
    const names = new Set(workers.map((worker) => worker.worker));
    for (const [name, card] of known) {
      if (!names.has(name)) {
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
  return {update};
}

function workerCard(app, name) {
  const badge = h("span");
  const facts = h("dl", {class: "facts"});
  const button = h("button", {class: "danger small"}, "Stop it");
  button.setAttribute("aria-label", `Stop worker ${name}`);
  button.addEventListener("click", () =>
    askAndKill(app, {worker: name}, `Stop worker ${name}?`, "It saves its trials, gives them back to the queue, and leaves.", "Stop it"),
  );
  const element = h("section", {class: "card", "data-worker": name}, h("div", {class: "row"}, h("h2", {}, name), badge, button), facts);

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
  return {element, update};
}
