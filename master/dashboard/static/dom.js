// Makes elements without markup: text from a record stays text and never becomes HTML.

/**
 * Makes an element: `h("td", {class: "number"}, "0.93", anotherElement)`.
 * Attributes that are null, undefined or false are left out.
 */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replaces the children of an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Sets the text of an element only if it differs.
 * So a reader's selection and the position of a screen reader stay.
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const link = (to, ...children) => h("a", {href: to}, ...children);
export const state = (word) => h("span", {class: `state ${word}`}, word === "pending" ? "waiting" : word);
