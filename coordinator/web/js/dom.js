// Makes and changes DOM nodes. Text is only ever set as text, so nothing a server says can become markup.

/** What shows nothing, and what changes the order in which text is read. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** The text with its hidden characters made visible, as `⟨U+202E⟩`: what is read is what is there. */
export const visible = (text) =>
  text
    .replaceAll("\r\n", "\n")
    .replace(HIDDEN, (hidden) => `⟨U+${hidden.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

/** An element: `h("button", {class: "x", on: {click}}, "text", node)`. Empty children are left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, run] of Object.entries(value)) element.addEventListener(event, run);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  const present = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== "");
  element.append(...present.map((child) => (typeof child === "string" ? visible(child) : child)));
  return element;
}

/** Sets a text only when it differs, so that selections and screen readers are left in peace. */
export function setText(element, text) {
  const wanted = visible(text ?? "");
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Sets a text and hides the element while there is none. */
export function setOptional(element, text) {
  setText(element, text);
  element.hidden = !text;
}

export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/**
 * Keeps the children of `parent` in step with `items`: one row per key, made once by `make`, changed by its
 * `update(item)`, moved only where the order differs. A row is `{element, update}`. Focus survives.
 */
export function keepRows(parent, rows, items, key, make) {
  const wanted = new Set(items.map(key));
  for (const [name, row] of rows) {
    if (wanted.has(name)) continue;
    row.element.remove();
    rows.delete(name);
  }
  items.forEach((item, index) => {
    const name = key(item);
    if (!rows.has(name)) rows.set(name, make(item));
    const row = rows.get(name);
    if (parent.children[index] !== row.element) parent.insertBefore(row.element, parent.children[index] ?? null);
    row.update(item);
  });
}
