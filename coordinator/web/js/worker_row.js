// One worker in the list on the first page.

import { changeWorker } from "./api.js";
import { ask, perform } from "./dialogs.js";
import { h, setOptional, setText } from "./dom.js";
import { ago, number, pace } from "./format.js";
import { ACTION_HINTS, ACTION_WORDS, workerActions, workerState } from "./words.js";

/** A worker reports every few seconds; only longer silence is worth a word. */
const SILENCE = 10;

const mayDrain = (name) =>
  ask(
    `Drain ${name}?`,
    "It finishes what it has and leaves the farm; only its own machine can start it again. Disabling keeps it here.",
    "Drain the worker",
    "Keep it",
  );

export function workerRow(farm) {
  let worker = null;
  const state = h("span", { class: "state" });
  const name = h("span", { class: "name" });
  const speed = h("span", { class: "strong" });
  const load = h("span", {});
  const done = h("span", {});
  const failed = h("span", { class: "failed" });
  const silent = h("span", { class: "failed" });
  const reason = h("p", { class: "reason" });
  const kind = h("span", {});
  const buttons = h("div", { class: "actions" });
  const element = h(
    "li",
    { class: "row worker", tabindex: "-1" },
    h("div", { class: "top" }, state, h("div", { class: "title" }, name), buttons),
    h("div", { class: "line" }, speed, load, done, failed, silent),
    reason,
    h("div", { class: "line dim" }, kind),
  );
  const made = new Map();

  function button(action) {
    if (!made.has(action)) {
      const click = async () => {
        const { name } = worker;
        if (action === "drain" && !(await mayDrain(name))) return;
        await perform(made.get(action), async () => farm.put("workers", "name", await changeWorker(name, action)));
      };
      made.set(
        action,
        h(
          "button",
          {
            type: "button",
            class: "small quiet",
            title: ACTION_HINTS[action],
            "aria-label": `${ACTION_WORDS[action]} ${worker.name}`,
            data: { action },
            on: { click },
          },
          ACTION_WORDS[action],
        ),
      );
    }
    return made.get(action);
  }

  const row = {
    element,
    update(next) {
      worker = next;
      const { word, tone } = workerState(worker.state);
      element.dataset.name = worker.name;
      element.dataset.state = worker.state;
      setText(state, word);
      state.className = `state ${tone}`;
      setText(name, worker.name);
      name.title = worker.name;
      setOptional(speed, pace(worker.seconds_per_task));
      setOptional(
        load,
        worker.state === "offline" ? "" : `${number(worker.busy)} of ${number(worker.slots)} slots busy`,
      );
      setText(done, `${number(worker.done)} done`);
      setOptional(failed, worker.failed ? `${number(worker.failed)} failed` : "");
      setOptional(reason, worker.reason);
      setText(kind, [...new Set([worker.device, worker.model, worker.numeric_class, worker.version])].filter(Boolean).join(" · "));
      const actions = workerActions(worker);
      if ([...buttons.children].map((child) => child.dataset.action).join() !== actions.join()) {
        const held = buttons.contains(document.activeElement);
        buttons.replaceChildren(...actions.map(button));
        if (held) (buttons.firstChild ?? element).focus();
      }
      row.tick();
    },
    tick() {
      const seconds = worker.silent_for + farm.elapsed;
      setOptional(silent, worker.silent_for >= SILENCE && !worker.reason ? `last heard of ${ago(seconds)}` : "");
    },
  };
  return row;
}
