// Requests to the server: JSON reads, changes, and the stream of events.
// A change has a header that no other site can send.

export class Problem extends Error {
  constructor(message, status, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

async function answer(response) {
  const body = await response.json().catch(() => ({error: `the server answered ${response.status}`}));
  if (!response.ok) throw new Problem(body.error ?? `the server answered ${response.status}`, response.status, body);
  return body;
}

/** Reads a path below /api. Empty values of `query` are left out. */
export async function get(path, query = {}, signal = undefined) {
  const pairs = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const text = new URLSearchParams(pairs).toString();
  try {
    return await answer(await fetch(`/api/${path}${text ? `?${text}` : ""}`, {signal, headers: {accept: "application/json"}}));
  } catch (error) {
    if (error instanceof TypeError) throw new Problem("the dashboard's server cannot be reached", 0);
    throw error;
  }
}

async function post(path, body) {
  const headers = {"content-type": "application/json", "x-coarsefine": "1"};
  try {
    return await answer(await fetch(`/api/${path}`, {method: "POST", headers, body: JSON.stringify(body)}));
  } catch (error) {
    if (error instanceof TypeError) throw new Problem("the dashboard's server cannot be reached", 0);
    throw error;
  }
}

export const kill = (target) => post("kill", target);

/** Writes tags and a note: {search, trial, tags, note, edit}. */
export const writeNote = (change) => post("notes", change);

/**
 * Follows the state of a search. `heard` is called with each state, `broken` with whether the stream
 * is broken. Returns a function that ends the stream.
 */
export function follow(search, heard, broken) {
  let source = null;
  let again = null;
  const open = () => {
    source = new EventSource(`/api/events${search ? `?search=${encodeURIComponent(search)}` : ""}`);
    source.addEventListener("open", () => broken(false));
    source.addEventListener("state", (event) => heard(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      broken(true);
      if (source.readyState === EventSource.CLOSED) again = setTimeout(open, 2000); // browsers do not retry a refused stream
    });
  };
  open();
  return () => {
    clearTimeout(again);
    source.close();
  };
}

export const at = (...parts) => parts.map(encodeURIComponent).join("/");
