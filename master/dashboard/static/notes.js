// Tags and notes of a trial or a search: shown, and edited by whoever has the token.

import {writeNote} from "./api.js";
import {fill, h, setText} from "./dom.js";
import {clock} from "./format.js";

export const chips = (tags) => tags.map((tag) => h("span", {class: "tag"}, tag));

/**
 * Makes the box with the tags and the note of `target`, which is {search, trial}; a search has no trial.
 * `update(noted)` shows them. What is being edited stays.
 */
export function noteBox(app, target) {
  const what = target.trial ?? target.search;
  const tags = h("span", {class: "tags"});
  const text = h("p", {class: "note"});
  const when = h("p", {class: "quiet hint"});
  const edit = h("button", {class: "small", type: "button", onclick: begin}, "Edit tags and note");
  const shownPart = h("div", {}, h("div", {class: "row"}, tags, edit), text, when);
  const tagField = h("input", {autocomplete: "off", spellcheck: "false", placeholder: "keep baseline"});
  const noteField = h("textarea", {rows: "4", maxlength: "2000"});
  const problem = h("p", {class: "problem", role: "alert", hidden: true});
  const save = h("button", {class: "small", type: "submit"}, "Save");
  const cancel = h("button", {class: "small", type: "button", onclick: end}, "Cancel");
  const form = h("form", {class: "note-form", hidden: true, onsubmit: submit},
    h("label", {}, "Tags, separated by spaces ", tagField), h("label", {}, "Note ", noteField), problem, h("div", {class: "row"}, save, cancel));
  const element = h("section", {class: "notes", "aria-label": `Tags and note of ${what}`, hidden: true}, shownPart, form);
  let noted = {tags: [], note: "", edit: 0, at: null};
  let followed = 0; // the edit that is being changed

  function update(now) {
    if (now.edit < noted.edit) return; // older than what was just saved
    noted = now;
    const empty = !noted.tags.length && !noted.note;
    element.hidden = empty && !app.session.may_change;
    element.classList.toggle("card", !empty);
    tags.hidden = !noted.tags.length;
    edit.hidden = !app.session.may_change;
    setText(edit, empty ? "Add tags or a note" : "Edit tags and note");
    if (tags.dataset.key !== JSON.stringify(noted.tags)) fill(tags, chips(noted.tags));
    tags.dataset.key = JSON.stringify(noted.tags);
    setText(text, noted.note);
    text.hidden = !noted.note;
    setText(when, empty ? "" : `written ${clock(noted.at)}`);
    when.hidden = empty;
  }

  function begin() {
    followed = noted.edit;
    tagField.value = noted.tags.join(" ");
    noteField.value = noted.note;
    problem.hidden = true;
    shownPart.hidden = true;
    form.hidden = false;
    tagField.focus();
  }

  function end() {
    form.hidden = true;
    shownPart.hidden = false;
    edit.focus();
  }

  async function submit(event) {
    event.preventDefault();
    save.disabled = true;
    const own = {tags: tagField.value.split(/[\s,]+/).filter(Boolean), note: noteField.value};
    try {
      update(await writeNote({...target, ...own, edit: followed}));
      end();
    } catch (error) {
      problem.hidden = false;
      setText(problem, error.message);
      if (error.body?.noted) {
        update(error.body.noted);
        followed = noted.edit; // seen now: to save again replaces it
        setText(problem, `${error.message}. It says now: ${[noted.tags.join(" "), noted.note].filter(Boolean).join(" | ") || "nothing"}.`);
      }
    } finally {
      save.disabled = false;
    }
  }

  return {element, update};
}
