// A render's own page: its canvas as it grows, and beside it how far it is and who is at work.

import { get, paths } from "./api.js";
import { renderActions, togglePause, warningList } from "./actions.js";
import { Colours } from "./colours.js";
import { copyButton } from "./dialogs.js";
import { h, keepRows, setAttribute, setOptional, setText } from "./dom.js";
import { count, number, percent } from "./format.js";
import { icon } from "./icons.js";
import { bindKeys } from "./keys.js";
import { Stream } from "./live.js";
import { Overlay } from "./overlay.js";
import { checkpointWords, factWords, overall, paceWords, progressBar, stageWords } from "./progress.js";
import { settingsParts } from "./settings.js";
import { Stage, togglePanel } from "./stage.js";
import { isOver, renderState } from "./words.js";

const TICK = 1000;
const KINDS = { latents: "Being denoised", tiles: "Being decoded", picture: "The finished picture" };
const COMING = "The finished picture is on its way: not all of it is here yet";

/** Why there is nothing to see, where the state alone does not tell. */
const NOTHING = {
  running: "Nothing to see yet: the first patches are on their way.",
  done: "The picture is being opened. Should it not come, the coordinator's log says why.",
};

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
  function update({ kind, in_flight: patches = [] }, over) {
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
    element.hidden = over || (items.length === 0 && free === 0);
  }
  return { element, update };
}

function makePanel(farm) {
  const state = h("span", { class: "state" });
  const name = h("h2", { tabindex: "-1" });
  const actions = renderActions(farm, () => name);
  const bar = progressBar();
  const stage = h("p", {});
  const pace = h("p", { class: "strong" });
  const reason = h("p", { class: "reason" });
  const warnings = warningList();
  const prompt = h("p", { class: "prompt", tabindex: "0" });
  const copies = h(
    "div",
    { class: "actions" },
    copyButton(() => made?.prompt ?? shown.prompt, null, "Copy prompt"),
    copyButton(() => String(shown.seed), null, "Copy seed"),
  );
  const settings = h("div", { class: "settings" });
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
    copies,
    facts,
    helpers,
    checkpoint,
  );
  let shown = null;
  let made = null;
  let asking = false;

  /** All settings, which do not change any more once the model is known. */
  async function ask(id) {
    if (asking || made?.parameters) return;
    asking = true;
    try {
      made = await get(paths.settings(id));
      settings.replaceChildren(...settingsParts(made));
      setText(prompt, made.prompt);
    } catch {
      // They are asked for again at the next change.
    } finally {
      asking = false;
    }
  }

  function update(render) {
    const settled = render.size && !shown?.size;
    shown = render;
    if (settled || !made) ask(render.id);
    content.dataset.state = render.state;
    const { word, tone } = renderState(render);
    setText(state, word);
    state.className = `state ${tone}`;
    setText(name, render.id);
    bar.update(render);
    bar.element.hidden = render.state === "cancelled" || render.state === "failed";
    prompt.hidden = !render.prompt;
    setText(stage, stageWords(render));
    setOptional(reason, render.reason);
    warnings.update(render.warnings);
    actions.update(render);
    if (!made) setText(prompt, render.prompt);
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
  return { content, settings, update, tick };
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
    onShown: () => name(),
  });
  setAttribute(stage.panelButton, "aria-pressed", true);
  const panel = makePanel(farm);
  const legend = makeLegend(colours);
  const kind = h("p", { class: "dim" });
  side.append(panel.content, legend.element, kind, panel.settings);
  whole.append(stage.element, side);
  const back = h("a", { class: "back", href: "#/" }, icon("back"), h("span", {}, "All renders"));
  shell.heading.replaceChildren(back, h("h1", { class: "summary" }, id));
  shell.main.className = "page viewing";
  shell.main.replaceChildren(whole);

  let render = null;
  let canvas = null;
  let stream = null;

  function nothing() {
    if (canvas) return;
    if (!farm.state) stage.say("Waiting for the coordinator…");
    else if (!render) stage.say(`There is no render ${id}.`);
    else stage.say(NOTHING[render.state] ?? `Nothing to see: the render is ${render.state}.`);
  }

  /** Says what is on the screen, which may be older than what is known to be there. */
  function name() {
    if (!canvas) return;
    const { kind: what, stage: at, stages, version } = canvas;
    const finished = what === "picture";
    const where = stages > 1 && !finished ? `, stage ${number(at + 1)} of ${number(stages)}` : "";
    const there = !finished || stage.shown?.version === version;
    setText(kind, there ? `${KINDS[what]}${where}` : COMING);
  }

  /** A render that is over has nobody at work, whatever was the last that was seen of it. */
  function settle() {
    if (!canvas || !render || !isOver(render)) return;
    legend.update(canvas, true);
    if (!canvas.in_flight?.length) return;
    canvas = { ...canvas, in_flight: [] };
    stage.show(canvas);
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
    legend.update(canvas, finished);
    stage.overlayButton.hidden = finished;
    name();
    settle();
  }

  const unfollow = farm.follow(({ state }) => {
    render = state?.renders.find((one) => one.id === id) ?? null;
    panel.content.hidden = !render;
    if (render) {
      panel.update(render);
      settle();
      stage.describe(`${renderState(render).word}, ${percent(overall(render))}, ${stageWords(render)}`);
      // A stream is refused while the farm knows nothing of the render.
      stream ??= new Stream(paths.renderEvents(id), "canvas", take, (status) => status === "live" && stage.wake());
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
