// One picture in the whole window, with its settings beside it on request.

import { get } from "./api.js";
import { note } from "./dialogs.js";
import { h, setAttribute, setText } from "./dom.js";
import { bytes, pixels, size } from "./format.js";
import { icon } from "./icons.js";
import { Stage, togglePanel } from "./stage.js";

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    note("Copied");
  } catch {
    // Browsers allow it over https and on the loopback address only.
    note("The browser does not allow copying here: select the text instead", "bad");
  }
}

const copyButton = (text, label) =>
  h(
    "button",
    { type: "button", class: "small", "aria-label": label, data: { action: "copy" }, on: { click: () => copy(text) } },
    icon("copy"),
    h("span", {}, "Copy"),
  );
const fact = (name, value) => (value ? [h("dt", {}, name), h("dd", {}, value)] : []);

function panelOf(picture, close) {
  const parts = [
    h(
      "header",
      {},
      h("h2", {}, "Information"),
      h(
        "button",
        { type: "button", class: "plain icon-only", "aria-label": "Close information", on: { click: close } },
        icon("close"),
      ),
    ),
    h(
      "dl",
      { class: "facts" },
      fact("File", picture.name),
      fact("Size", `${size(picture.width, picture.height)} (${pixels(picture.width, picture.height)})`),
      fact("Format", picture.format),
      fact("Bytes", picture.bytes ? bytes(picture.bytes) : ""),
    ),
  ];
  const text = (title, content, label, kind) =>
    h(
      "section",
      { class: "text" },
      h("header", {}, h("h3", {}, title), copyButton(content, label)),
      h("pre", { class: kind }, content),
    );
  if (picture.parameters) parts.push(text("Parameters", picture.parameters, "Copy the parameters", "prose"));
  else parts.push(h("p", { class: "dim" }, "The file does not say how it was made."));
  if (picture.settings) {
    const json = JSON.stringify(picture.settings, null, 2);
    parts.push(
      h("details", {}, h("summary", {}, "Settings for machines"), text("JSON", json, "Copy the settings", "json")),
    );
  }
  return parts;
}

export async function showPicture(shell) {
  const whole = h("div", { class: "view picture" });
  const panel = h("aside", { class: "panel", "aria-label": "Information" });
  let stage = null;
  const toggle = togglePanel(
    whole,
    panel,
    false,
    (shown) => stage && setAttribute(stage.panelButton, "aria-pressed", shown),
  );
  stage = new Stage({ label: "The picture", whole, onPanel: toggle });
  setAttribute(stage.panelButton, "aria-pressed", false);
  whole.append(stage.element, panel);
  shell.main.className = "page viewing";
  shell.main.replaceChildren(whole);
  stage.say("Opening…");
  try {
    const picture = await get("/api/picture");
    document.title = `${picture.name} · gigasmith`;
    const title = h("h1", { class: "picture-name" });
    setText(title, picture.name);
    shell.heading.replaceChildren(
      title,
      h("span", { class: "summary" }, `${size(picture.width, picture.height)} · ${picture.format}`),
    );
    panel.replaceChildren(...panelOf(picture, toggle));
    stage.show(picture);
  } catch (error) {
    stage.say(`The picture cannot be shown: ${error.message}.`);
  }
}
