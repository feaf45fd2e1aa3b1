// What can be done with a render: the same buttons on the first page and on the render's own.

import { changeRender, paths } from "./api.js";
import { ask, copyButton, note, openDialog, perform } from "./dialogs.js";
import { h, setAttribute, setText } from "./dom.js";
import { icon, setIcon } from "./icons.js";
import { canContinue, canPause, isOver } from "./words.js";

/** Where `gigasmith fetch` looks unless it is told. */
const DEFAULT_COORDINATOR = "http://127.0.0.1:7464";

async function change(farm, id, what) {
  farm.put("renders", "id", await changeRender(id, what));
}

/** Pauses what runs, continues what is paused. */
export function togglePause(farm, render, button = null) {
  if (canPause(render)) return perform(button, () => change(farm, render.id, "pause"));
  if (canContinue(render)) return perform(button, () => change(farm, render.id, "continue"));
  return note(`${render.id} is ${render.state}: nothing to pause or continue`);
}

async function cancel(farm, render, button) {
  const yes = await ask(
    `Cancel ${render.id}?`,
    "Its work so far is given up, and it cannot be continued. Pausing keeps it.",
    "Cancel the render",
    "Keep rendering",
  );
  if (yes) await perform(button, () => change(farm, render.id, "cancel"));
}

/** The command that fetches a picture of many files. */
function fetchCommand(id) {
  const place = location.origin === DEFAULT_COORDINATOR ? "" : ` --coordinator ${location.origin}`;
  return `gigasmith fetch ${id} -o ${id}.dzi${place}`;
}

function showFetch(id) {
  const command = fetchCommand(id);
  openDialog(
    `Fetch ${id}`,
    h(
      "div",
      { class: "text" },
      h("p", {}, "A Deep Zoom picture is a folder of tiles. This command fetches it:"),
      h("pre", {}, h("code", {}, command)),
      h("footer", {}, copyButton(() => command, "Copy the command")),
    ),
  );
}

/**
 * `{element, update(render)}`. `home()`: what gets the focus when the button that has it goes away, because what it does
 * was done.
 */
export function renderActions(farm, home = () => null) {
  let render = null;
  const pauseWord = h("span", {});
  const pause = h(
    "button",
    {
      type: "button",
      class: "small",
      data: { action: "pause" },
      on: { click: () => togglePause(farm, render, pause) },
    },
    pauseWord,
  );
  const stop = h(
    "button",
    {
      type: "button",
      class: "small quiet",
      data: { action: "cancel" },
      on: { click: () => cancel(farm, render, stop) },
    },
    icon("stop"),
    h("span", {}, "Cancel"),
  );
  const fetch = h(
    "a",
    { class: "button small", download: "", data: { action: "download" } },
    icon("download"),
    h("span", {}, "Download"),
  );
  const command = h(
    "button",
    { type: "button", class: "small", data: { action: "fetch" }, on: { click: () => showFetch(render.id) } },
    icon("download"),
    h("span", {}, "Fetch…"),
  );
  const element = h("div", { class: "actions" }, pause, stop, fetch, command);
  function update(next) {
    render = next;
    const verb = canContinue(render) ? "Continue" : "Pause";
    setText(pauseWord, verb);
    setIcon(pause, canContinue(render) ? "play" : "pause");
    setAttribute(pause, "aria-label", `${verb} ${render.id}`);
    setAttribute(stop, "aria-label", `Cancel ${render.id}`);
    setAttribute(fetch, "aria-label", `Download the picture of ${render.id}`);
    setAttribute(fetch, "href", paths.picture(render.id));
    setAttribute(command, "aria-label", `How to fetch the picture of ${render.id}`);
    const isMany = render.format === "dzi";
    const held = element.contains(document.activeElement) ? document.activeElement : null;
    pause.hidden = !canPause(render) && !canContinue(render);
    stop.hidden = isOver(render);
    fetch.hidden = render.state !== "done" || isMany;
    command.hidden = render.state !== "done" || !isMany;
    if (held?.hidden) ([...element.children].find((button) => !button.hidden) ?? home())?.focus();
  }
  return { element, update };
}

/** The warnings, one line each. `{element, update(list)}` */
export function warningList() {
  const element = h("ul", { class: "warnings" });
  let shown = "";
  function update(warnings) {
    const key = JSON.stringify(warnings ?? []);
    if (key === shown) return;
    shown = key;
    element.replaceChildren(...(warnings ?? []).map((text) => h("li", {}, icon("warning"), h("span", {}, text))));
    element.hidden = !warnings?.length;
  }
  update([]);
  return { element, update };
}
