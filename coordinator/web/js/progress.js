// How far a render is, as one bar in as many parts as there are stages, and in words.

import { h, setAttribute, setText } from "./dom.js";
import { ago, bytes, count, duration, number, percent, pixels, rate, size } from "./format.js";
import { isOver } from "./words.js";

/** Of the stage's patches. */
const ofStage = (render) => (render.patches > 0 ? render.patches_done / render.patches : 0);

/** Short of the whole until the picture is stored: decoding and writing it come after the last patch. */
const NEARLY = 0.99;

/** Of all patches of all stages. Only work that is lost makes it smaller. */
export function overall(render) {
  if (render.state === "done") return 1;
  if (!(render.patches_all > 0)) return 0;
  return Math.min(NEARLY, Math.max(0, 1 - render.patches_left / render.patches_all));
}

export function stageWords(render) {
  if (render.state === "done") return "Finished";
  const parts = [];
  if (render.stages > 0) parts.push(`Stage ${render.stage + 1} of ${render.stages}`);
  if (render.stage_size && render.stages > 1) parts.push(size(...render.stage_size));
  if (render.phase)
    parts.push(
      render.tiles > 0
        ? `${render.phase} ${number(render.tiles_done)} of ${count(render.tiles, "tile", "tiles")}`
        : render.phase,
    );
  else if (render.patches > 0)
    parts.push(`${number(render.patches_done)} of ${count(render.patches, "patch", "patches")}`);
  return parts.join(" · ");
}

/** Rate and time left, `elapsed` seconds after the state came. */
export function paceWords(render, elapsed) {
  if (render.state !== "running") return "";
  const left =
    render.seconds_left === null || render.seconds_left === undefined
      ? ""
      : `${duration(render.seconds_left - elapsed)} left`;
  return [rate(render.rate), left].filter(Boolean).join(" · ");
}

export function checkpointWords(render, elapsed) {
  if (!render.checkpoint || isOver(render)) return "";
  return `Checkpoint ${ago(render.checkpoint.age + elapsed)}, ${bytes(render.checkpoint.bytes)}`;
}

/** What does not change while it renders. */
export function factWords(render) {
  return [
    render.size && `${size(...render.size)} (${pixels(...render.size)})`,
    render.model,
    `seed ${render.seed}`,
    render.priority ? `priority ${render.priority}` : "",
  ]
    .filter(Boolean)
    .join(" · ");
}

/** The bar. `update(render)`. */
export function progressBar() {
  const parts = h("div", { class: "parts", "aria-hidden": "true" });
  const value = h("span", { class: "value" });
  const track = h("div", { class: "track", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" }, parts);
  const element = h("div", { class: "progress" }, track, value);
  function update(render) {
    const stages = Math.max(1, render.stages);
    while (parts.children.length < stages) parts.append(h("span", { class: "part" }, h("span", { class: "fill" })));
    while (parts.children.length > stages) parts.lastChild.remove();
    const done = ofStage(render);
    [...parts.children].forEach((part, stage) => {
      const filled = render.state === "done" || stage < render.stage ? 1 : stage === render.stage ? done : 0;
      // Each stage is four times the work of the one before; twice the length keeps the first ones visible.
      part.style.flexGrow = 2 ** stage;
      part.firstChild.style.inlineSize = `${(filled * 100).toFixed(2)}%`;
    });
    element.dataset.state = render.state;
    element.dataset.phase = render.phase ? "yes" : "no";
    const all = overall(render);
    setText(value, percent(all));
    setAttribute(track, "aria-label", `Progress of ${render.id}`);
    setAttribute(track, "aria-valuenow", Math.round(all * 100));
    setAttribute(track, "aria-valuetext", `${percent(all)}, ${stageWords(render)}`);
  }
  return { element, update };
}
