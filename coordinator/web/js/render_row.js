// One render in the list on the first page.

import { paths } from "./api.js";
import { renderActions, warningList } from "./actions.js";
import { h, setAttribute, setOptional, setText } from "./dom.js";
import { count } from "./format.js";
import { checkpointWords, factWords, paceWords, progressBar, stageWords } from "./progress.js";
import { isOver, renderState } from "./words.js";

/** `{element, update(render), tick(), focus(), id, render}` */
export function renderRow(farm) {
  const state = h("span", { class: "state" });
  const name = h("a", { class: "name" });
  const prompt = h("span", { class: "prompt" });
  const actions = renderActions(farm, () => name);
  const bar = progressBar();
  const stage = h("span", {});
  const pace = h("span", { class: "strong" });
  const how = h("div", { class: "line" }, stage, pace);
  const reason = h("p", { class: "reason" });
  const warnings = warningList();
  const facts = h("span", {});
  const helpers = h("span", {});
  const checkpoint = h("span", {});
  const element = h(
    "li",
    { class: "row render" },
    h("div", { class: "top" }, state, h("div", { class: "title" }, name, prompt), actions.element),
    bar.element,
    how,
    reason,
    warnings.element,
    h("div", { class: "line dim" }, facts, helpers, checkpoint),
  );

  const row = {
    element,
    id: "",
    render: null,
    update(render) {
      row.render = render;
      row.id = render.id;
      const { word, tone } = renderState(render);
      element.dataset.id = render.id;
      element.dataset.state = render.state;
      setText(state, word);
      state.className = `state ${tone}`;
      setText(name, render.id);
      setAttribute(name, "href", paths.render(render.id));
      setText(prompt, render.prompt);
      prompt.title = render.prompt;
      actions.update(render);
      bar.update(render);
      bar.element.hidden = isOver(render);
      how.hidden = isOver(render);
      setText(stage, stageWords(render));
      setOptional(reason, render.reason);
      warnings.update(render.warnings);
      setText(facts, factWords(render));
      setOptional(helpers, !isOver(render) && render.workers ? count(render.workers, "worker", "workers") : "");
      row.tick();
    },
    tick() {
      setOptional(pace, paceWords(row.render, farm.elapsed));
      setOptional(checkpoint, checkpointWords(row.render, farm.elapsed));
    },
    focus: () => name.focus(),
  };
  return row;
}
