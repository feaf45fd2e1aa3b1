// Light or dark: what the system says, unless chosen here; the choice is remembered.

import { h } from "./dom.js";
import { setIcon } from "./icons.js";

const KEY = "gigasmith-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

function remembered() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function remember(theme) {
  try {
    if (theme) localStorage.setItem(KEY, theme);
    else localStorage.removeItem(KEY);
  } catch {
    // Storage may be forbidden; the choice then lasts as long as the page.
  }
}

const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

export function applyTheme() {
  const theme = remembered();
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}

/** A button that changes sides. Choosing what the system says anyway forgets the choice. */
export function themeButton() {
  const button = h("button", { type: "button", class: "plain icon-only", on: { click: toggle } });
  function show() {
    const label = isDark() ? "Use light colours" : "Use dark colours";
    button.setAttribute("aria-label", label);
    button.title = label;
    setIcon(button, isDark() ? "light" : "dark");
  }
  function toggle() {
    const wanted = isDark() ? "light" : "dark";
    const same = wanted === (system.matches ? "dark" : "light");
    if (same) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = wanted;
    remember(same ? null : wanted);
    show();
  }
  system.addEventListener("change", show);
  show();
  return button;
}
