// Asks for confirmation before something is killed, kills it, and shows the result.

import {kill} from "./api.js";
import {setText} from "./dom.js";

const dialog = document.getElementById("dialog");

/**
 * Shows a question and returns whether it was answered with yes.
 * Escape and the other button mean no. The focus is on no.
 */
function confirmed(title, text, yes) {
  setText(document.getElementById("dialog-title"), title);
  setText(document.getElementById("dialog-text"), text);
  setText(document.getElementById("dialog-yes"), yes);
  document.getElementById("dialog-no").hidden = false;
  dialog.returnValue = "no";
  dialog.showModal();
  document.getElementById("dialog-no").focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), {once: true}));
}

/** Shows a message with one button. */
function tell(title, text) {
  setText(document.getElementById("dialog-title"), title);
  setText(document.getElementById("dialog-text"), text);
  setText(document.getElementById("dialog-yes"), "OK");
  document.getElementById("dialog-no").hidden = true;
  dialog.showModal();
  document.getElementById("dialog-yes").focus();
}

/** Asks, then kills what `target` names. */
export async function askAndKill(app, target, title, text, yes) {
  if (!app.session.may_change) {
    tell("Only with the token", 'This browser may only read. To make changes, open the address that "master serve" printed; it holds the token.');
    return;
  }
  if (!(await confirmed(title, text, yes))) return;
  try {
    const done = await kill(target);
    tell("Done", done.message);
  } catch (error) {
    tell("That did not work", error.message);
  }
}
