// How a picture was made: its parameters for people, its settings for machines, each to be copied.

import { copyButton } from "./dialogs.js";
import { h } from "./dom.js";

const text = (title, content, label, kind) =>
  h(
    "section",
    { class: "text" },
    h("header", {}, h("h3", {}, title), copyButton(() => content, label)),
    h("pre", { class: kind }, content),
  );

/** `parameters`: a text, or empty where there is none. `settings`: what stands in the file as JSON, or null. */
export function settingsParts({ parameters, settings }) {
  const parts = [];
  if (parameters) parts.push(text("Parameters", parameters, "Copy the parameters", "prose"));
  if (settings) {
    const json = JSON.stringify(settings, null, 2);
    parts.push(
      h("details", {}, h("summary", {}, "Settings for machines"), text("JSON", json, "Copy the settings", "json")),
    );
  }
  return parts;
}
