// What can be done with a render: the same buttons on the first page and on the render's own.

import { changeRender, paths } from "./api.js";
import { ask, note, perform } from "./dialogs.js";
import { h, setAttribute, setText } from "./dom.js";
import { icon, setIcon } from "./icons.js";
import { canContinue, canPause, isOver } from "./words.js";

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

/** `{element, update(render)}` */
export function renderActions(farm) {
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
  const element = h("div", { class: "actions" }, pause, stop, fetch);
  function update(next) {
    render = next;
    const verb = canContinue(render) ? "Continue" : "Pause";
    setText(pauseWord, verb);
    setIcon(pause, canContinue(render) ? "play" : "pause");
    setAttribute(pause, "aria-label", `${verb} ${render.id}`);
    setAttribute(stop, "aria-label", `Cancel ${render.id}`);
    setAttribute(fetch, "aria-label", `Download the picture of ${render.id}`);
    setAttribute(fetch, "href", paths.picture(render.id));
    pause.hidden = isOver(render);
    stop.hidden = isOver(render);
    fetch.hidden = render.state !== "done";
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
