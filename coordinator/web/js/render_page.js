// A render's own page: its canvas as it grows, and beside it how far it is and who is at work.

import { paths } from "./api.js";
import { renderActions, togglePause, warningList } from "./actions.js";
import { Colours } from "./colours.js";
import { h, keepRows, setAttribute, setOptional, setText } from "./dom.js";
import { count, number } from "./format.js";
import { icon } from "./icons.js";
import { bindKeys } from "./keys.js";
import { Stream } from "./live.js";
import { Overlay } from "./overlay.js";
import { checkpointWords, factWords, paceWords, progressBar, stageWords } from "./progress.js";
import { Stage, togglePanel } from "./stage.js";
import { renderState } from "./words.js";

const TICK = 1000;
const KINDS = { latents: "Being denoised", tiles: "Being decoded", picture: "The finished picture" };

/** The workers that have been seen at this canvas, with their colours. */
function makeLegend(colours) {
  const list = h("ul", { class: "legend" });
  const waiting = h("p", { class: "dim" });
  const element = h("section", { hidden: true }, h("h3", {}, "At work here"), list, waiting);
  const rows = new Map();
  const seen = new Set();
  function make() {
    const swatch = h("span", { class: "swatch", "aria-hidden": "true" });
    const name = h("span", { class: "name" });
    const what = h("span", { class: "dim" });
    return {
      element: h("li", {}, swatch, name, what),
      update({ worker, patches, step, noun }) {
        swatch.style.backgroundColor = colours.of(worker);
        setText(name, worker);
        setText(
          what,
          patches ? [count(patches, ...noun), step === null ? "" : `step ${step}`].filter(Boolean).join(" · ") : "–",
        );
      },
    };
  }
  function update({ kind, in_flight: patches = [] }) {
    const noun = kind === "tiles" ? ["tile", "tiles"] : ["patch", "patches"];
    for (const { worker } of patches) if (worker) seen.add(worker);
    const items = [...seen]
      .sort((a, b) => a.localeCompare(b, "en", { numeric: true }))
      .map((worker) => {
        const own = patches.filter((patch) => patch.worker === worker);
        return {
          worker,
          noun,
          patches: own.length,
          step: kind === "latents" && own.length ? Math.max(...own.map((patch) => patch.step)) : null,
        };
      });
    keepRows(list, rows, items, ({ worker }) => worker, make);
    const free = patches.filter(({ worker }) => !worker).length;
    setOptional(waiting, free ? `${count(free, ...noun)} waiting for a worker` : "");
    element.hidden = kind === "picture" || (items.length === 0 && free === 0);
  }
  return { element, update };
}

function makePanel(farm) {
  const state = h("span", { class: "state" });
  const name = h("h1", {});
  const actions = renderActions(farm);
  const bar = progressBar();
  const stage = h("p", {});
  const pace = h("p", { class: "strong" });
  const reason = h("p", { class: "reason" });
  const warnings = warningList();
  const prompt = h("p", { class: "prompt" });
  const facts = h("p", { class: "dim" });
  const helpers = h("p", { class: "dim" });
  const checkpoint = h("p", { class: "dim" });
  const content = h(
    "div",
    { class: "content" },
    h("div", { class: "top" }, state, name),
    bar.element,
    stage,
    pace,
    reason,
    warnings.element,
    actions.element,
    prompt,
    facts,
    helpers,
    checkpoint,
  );
  function update(render) {
    const { word, tone } = renderState(render.state);
    setText(state, word);
    state.className = `state ${tone}`;
    setText(name, render.id);
    bar.update(render);
    bar.element.hidden = render.state === "cancelled" || render.state === "failed";
    setText(stage, stageWords(render));
    setOptional(reason, render.reason);
    warnings.update(render.warnings);
    actions.update(render);
    setOptional(prompt, render.prompt);
    setText(facts, factWords(render));
    setOptional(
      helpers,
      render.state === "running" || render.state === "queued"
        ? [
            count(render.workers, "worker", "workers"),
            render.patches_left > 0 && `${count(render.patches_left, "patch", "patches")} left in all`,
          ]
            .filter(Boolean)
            .join(" · ")
        : "",
    );
    tick(render);
  }
  function tick(render) {
    setOptional(pace, paceWords(render, farm.elapsed));
    setOptional(checkpoint, checkpointWords(render, farm.elapsed));
  }
  return { content, update, tick };
}

/** Shows the page; returns what ends it. */
export function showRender(shell, farm, id) {
  document.title = `${id} · gigasmith`;
  const colours = new Colours();
  const whole = h("div", { class: "view render" });
  const side = h("aside", { class: "panel docked", "aria-label": "The render" });
  let stage = null;
  const toggle = togglePanel(
    whole,
    side,
    true,
    (shown) => stage && setAttribute(stage.panelButton, "aria-pressed", shown),
  );
  stage = new Stage({
    label: `The canvas of ${id}`,
    whole,
    onPanel: toggle,
    layer: (zoom) => new Overlay(zoom, (worker) => colours.of(worker)),
  });
  setAttribute(stage.panelButton, "aria-pressed", true);
  const panel = makePanel(farm);
  const legend = makeLegend(colours);
  const kind = h("p", { class: "dim" });
  side.append(panel.content, legend.element, kind);
  whole.append(stage.element, side);
  const back = h("a", { class: "back", href: "#/" }, icon("back"), h("span", {}, "All renders"));
  shell.heading.replaceChildren(back, h("span", { class: "summary" }, id));
  shell.main.className = "page viewing";
  shell.main.replaceChildren(whole);

  let render = null;
  let canvas = null;
  let stream = null;

  function nothing() {
    if (canvas) return;
    if (!farm.state) stage.say("Waiting for the coordinator…");
    else if (!render) stage.say(`There is no render ${id}.`);
    else
      stage.say(
        render.state === "running"
          ? "Nothing to see yet: the first patches are on their way."
          : `Nothing to see: the render is ${render.state}.`,
      );
  }

  function take(next) {
    canvas = next;
    const finished = canvas.kind === "picture";
    // By name, so that the same farm gets the same colours however its patches are ordered.
    for (const worker of (canvas.in_flight ?? [])
      .map((patch) => patch.worker)
      .filter(Boolean)
      .sort())
      colours.of(worker);
    stage.show(canvas);
    legend.update(canvas);
    stage.overlayButton.hidden = finished;
    setText(
      kind,
      canvas.stages > 1 && !finished
        ? `${KINDS[canvas.kind]}, stage ${number(canvas.stage + 1)} of ${number(canvas.stages)}`
        : KINDS[canvas.kind],
    );
  }

  const unfollow = farm.follow(({ state }) => {
    render = state?.renders.find((one) => one.id === id) ?? null;
    panel.content.hidden = !render;
    if (render) {
      panel.update(render);
      // A stream is refused while the farm knows nothing of the render.
      stream ??= new Stream(paths.renderEvents(id), "canvas", take);
    }
    nothing();
  });
  const unbind = bindKeys([
    { keys: ["p"], says: "Pause or continue", run: () => render && togglePause(farm, render) },
    {
      keys: ["Escape"],
      says: "All renders",
      run: () => {
        location.hash = "#/";
      },
    },
  ]);
  const clock = setInterval(() => render && panel.tick(render), TICK);
  return () => {
    clearInterval(clock);
    unfollow();
    unbind();
    stream?.close();
    stage.close();
    if (document.fullscreenElement) document.exitFullscreen();
  };
}
