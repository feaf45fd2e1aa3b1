// The keyboard: pages say which keys they know, and the help lists exactly those.

import { openDialog } from "./dialogs.js";
import { h } from "./dom.js";

const NAMES = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };
const stack = [];

/** `bindings`: `{keys: ["j", "ArrowDown"], says: "Next", run(event)}`. Returns what removes them. */
export function bindKeys(bindings) {
  stack.push(bindings);
  return () => {
    const at = stack.indexOf(bindings);
    if (at >= 0) stack.splice(at, 1);
  };
}

const isTyping = (target) => target instanceof Element && target.closest("input, textarea, select, [contenteditable]");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  for (const bindings of stack.toReversed()) {
    const found = bindings.find((binding) => binding.keys.includes(key));
    if (!found) continue;
    event.preventDefault();
    found.run(event);
    return;
  }
});

/** A dialog with all keys that work now. */
export function showHelp() {
  const shown = [...stack.flat().filter((binding) => binding.says), { keys: ["?"], says: "This help" }];
  const rows = shown.map(({ keys, says, show }) => [
    h(
      "dt",
      {},
      (show ?? keys).map((key) => h("kbd", {}, NAMES[key] ?? key)),
    ),
    h("dd", {}, says),
  ]);
  openDialog("Keyboard", h("dl", { class: "keys" }, rows));
}
