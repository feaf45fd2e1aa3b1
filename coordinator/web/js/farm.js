// The first page: renders and workers, live.

import { note } from "./dialogs.js";
import { h, keepRows, setText } from "./dom.js";
import { number } from "./format.js";
import { bindKeys } from "./keys.js";
import { togglePause } from "./actions.js";
import { renderRow } from "./render_row.js";
import { isOver, renderState } from "./words.js";
import { workerRow } from "./worker_row.js";

const TICK = 1000;

function section(title, id, empty) {
  const amount = h("span", { class: "amount" });
  const list = h("ul", { class: "rows", id });
  const element = h(
    "section",
    { "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title, " ", amount),
    list,
    empty,
  );
  const rows = new Map();
  return {
    element,
    list,
    rows,
    update(items, key, make) {
      keepRows(list, rows, items, key, make);
      setText(amount, items.length ? number(items.length) : "");
      list.hidden = items.length === 0;
      if (empty) empty.hidden = items.length > 0;
    },
  };
}

const hint = (says, ...commands) =>
  h(
    "div",
    { class: "empty", hidden: true },
    h("p", {}, says),
    commands.map((command) => h("pre", {}, h("code", {}, command))),
  );

/** Shows the page; returns what ends it. `focusOn`: the render that one comes back from. */
export function showFarm(shell, farm, focusOn) {
  document.title = "gigasmith";
  const active = section(
    "Renders",
    "renders",
    hint(
      "Nothing to render. Give the farm something:",
      'gigasmith submit --prompt "green hills by the sea" -o hills.png',
    ),
  );
  const over = section("Ended", "ended", null);
  const crew = section(
    "Workers",
    "workers",
    hint("No worker is here. Start one on any machine with a device:", "gigasmith worker --model pocket"),
  );
  const waiting = h("p", { class: "empty" }, "Waiting for the coordinator…");
  const spoken = h("div", { class: "sr-only", role: "status", "aria-live": "polite" });
  const title = h("h1", { class: "sr-only" }, "Farm");
  const summary = h("span", { class: "summary" });
  shell.heading.replaceChildren(summary);
  shell.main.className = "page farm";
  shell.main.replaceChildren(
    title,
    waiting,
    h("div", { class: "column" }, active.element, over.element),
    crew.element,
    spoken,
  );

  const all = () => [...active.rows.values(), ...over.rows.values()];
  const seen = new Map();
  let first = true;

  function update({ state }) {
    active.element.hidden = over.element.hidden = crew.element.hidden = !state;
    waiting.hidden = Boolean(state);
    if (!state) return;
    const held = document.activeElement?.closest("li.render")?.dataset.id;
    // What ended last is what one looks for.
    const ended = state.renders.filter(isOver).toReversed();
    const make = () => renderRow(farm);
    active.update(
      state.renders.filter((render) => !isOver(render)),
      (render) => render.id,
      make,
    );
    over.update(ended, (render) => render.id, make);
    over.element.hidden = ended.length === 0;
    crew.update(
      state.workers,
      (worker) => worker.name,
      () => workerRow(farm),
    );
    const running = state.renders.filter((render) => render.state === "running").length;
    const queued = state.renders.filter((render) => render.state === "queued").length;
    setText(
      summary,
      [running && `${number(running)} running`, queued && `${number(queued)} queued`].filter(Boolean).join(" · ") ||
        "Nothing under way",
    );
    for (const render of state.renders) {
      if (!first && seen.get(render.id) !== render.state)
        setText(spoken, `${render.id}: ${renderState(render).word}`);
      seen.set(render.id, render.state);
    }
    // A render that ended moved to the other list, and took the focus with it.
    if (held && document.activeElement === document.body)
      all()
        .find((row) => row.id === held)
        ?.focus();
    if (first && focusOn)
      all()
        .find((row) => row.id === focusOn)
        ?.focus();
    first = false;
  }

  const rowsOf = (list) => [...list.querySelectorAll(":scope > li")];
  const renderElements = () => [...rowsOf(active.list), ...rowsOf(over.list)];
  const focusRow = (element) => (element.querySelector("a.name") ?? element).focus();

  /** j and k stay within the list that has the focus. */
  function move(by) {
    const inWorkers = crew.element.contains(document.activeElement);
    const elements = inWorkers ? rowsOf(crew.list) : renderElements();
    if (elements.length === 0) return;
    const at = elements.findIndex((element) => element.contains(document.activeElement));
    const to = at < 0 ? (by > 0 ? 0 : elements.length - 1) : Math.min(Math.max(at + by, 0), elements.length - 1);
    focusRow(elements[to]);
  }

  function pause() {
    const row = all().find(({ element }) => element.contains(document.activeElement));
    if (row) togglePause(farm, row.render);
    else note("Choose a render first: j and k move");
  }

  const unbind = bindKeys([
    { keys: ["j", "ArrowDown"], says: "Next render or worker", run: () => move(1) },
    { keys: ["k", "ArrowUp"], says: "The one before", run: () => move(-1) },
    { keys: ["Enter"], says: "Open the render", run: () => document.activeElement?.click?.() },
    { keys: ["p"], says: "Pause or continue the render", run: pause },
    { keys: ["w"], says: "To the workers", run: () => rowsOf(crew.list)[0]?.focus() },
    {
      keys: ["Escape"],
      says: "Back to the renders",
      run: () =>
        crew.element.contains(document.activeElement)
          ? renderElements()[0] && focusRow(renderElements()[0])
          : document.activeElement?.blur?.(),
    },
  ]);
  const unfollow = farm.follow(update);
  const clock = setInterval(() => {
    for (const row of [...all(), ...crew.rows.values()]) row.tick();
  }, TICK);
  return () => {
    clearInterval(clock);
    unfollow();
    unbind();
  };
}
