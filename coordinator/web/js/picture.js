// One picture in the whole window, with its settings beside it on request.

import { get } from "./api.js";
import { h, setAttribute, setText } from "./dom.js";
import { bytes, pixels, size } from "./format.js";
import { icon } from "./icons.js";
import { settingsParts } from "./settings.js";
import { Stage, togglePanel } from "./stage.js";

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
      fact("Name", picture.name),
      fact("Size", `${size(picture.width, picture.height)} (${pixels(picture.width, picture.height)})`),
      fact("Format", picture.format),
      fact("Bytes", picture.bytes ? bytes(picture.bytes) : ""),
    ),
  ];
  const made = settingsParts(picture);
  parts.push(...(made.length ? made : [h("p", { class: "dim" }, "The file does not say how it was made.")]));
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
