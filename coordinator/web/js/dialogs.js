// Dialogs, and short notes about what happened.

import { h } from "./dom.js";
import { icon } from "./icons.js";

function show(dialog) {
  const before = document.activeElement;
  (document.fullscreenElement ?? document.body).append(dialog);
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before instanceof HTMLElement && before.isConnected) before.focus();
  });
  // A click on the dialog itself is one beside its content.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.showModal();
}

export function openDialog(title, content) {
  const close = h(
    "button",
    { type: "button", class: "plain icon-only", "aria-label": "Close", on: { click: () => dialog.close() } },
    icon("close"),
  );
  const dialog = h(
    "dialog",
    { "aria-label": title },
    h("div", { class: "dialog" }, h("header", {}, h("h2", {}, title), close), content),
  );
  show(dialog);
}

/** Asks before something that cannot be taken back. Resolves to whether it shall be done. */
export function ask(title, text, yes, no = "Keep it") {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { role: "alertdialog", "aria-label": title },
      h(
        "form",
        { class: "dialog", method: "dialog" },
        h("h2", {}, title),
        h("p", {}, text),
        h(
          "footer",
          {},
          h("button", { value: "no", autofocus: true }, no),
          h("button", { value: "yes", class: "danger" }, yes),
        ),
      ),
    );
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"));
    show(dialog);
  });
}

const LASTS = 6000;
/** Milliseconds before a person is told that something takes its time. */
const SLOW = 2000;
const notes = h("div", { class: "notes", role: "status", "aria-live": "polite" });

/** A note at the edge of the page, read out by screen readers. */
export function note(text, tone = "") {
  const place = document.fullscreenElement ?? document.body;
  if (notes.parentElement !== place) place.append(notes);
  const element = h("div", { class: `note ${tone}` }, text);
  notes.append(element);
  setTimeout(() => element.remove(), LASTS);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Copies a text, and says whether that went well. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    note("Copied");
  } catch {
    // Browsers allow it over https and on the loopback address only.
    note("The browser does not allow copying here: select the text instead", "bad");
  }
}

/** `text()`: what is copied. `label`: what screen readers say where the word alone does not tell; null where it does. */
export const copyButton = (text, label, word = "Copy") =>
  h(
    "button",
    { type: "button", class: "small", "aria-label": label, data: { action: "copy" }, on: { click: () => copy(text()) } },
    icon("copy"),
    h("span", {}, word),
  );

/** Does something on the server for a button: no second click meanwhile, and a note when it fails. */
export async function perform(button, action) {
  if (button?.getAttribute("aria-disabled") === "true") return;
  // Not `disabled`, which would drop the focus.
  button?.setAttribute("aria-disabled", "true");
  const slow = setTimeout(() => note("The coordinator has not answered yet; waiting…"), SLOW);
  try {
    await action();
  } catch (error) {
    note(sentence(error.message), "bad");
  } finally {
    clearTimeout(slow);
    button?.removeAttribute("aria-disabled");
  }
}
