// The viewer with everything around the picture: buttons, zoom and coordinates, navigator, full screen, keys.

import { h, setAttribute, setText } from "./dom.js";
import { note } from "./dialogs.js";
import { number, size, zoom as zoomWords } from "./format.js";
import { icon } from "./icons.js";
import { bindKeys } from "./keys.js";
import { Navigator } from "./navigator.js";
import { DeepZoom } from "./viewer.js";

const STEP = 1.5;
const NUDGE = 0.15;

export class Stage {
  /** `whole`: what goes full screen. `onPanel()`: toggles the panel. `layer(zoom)`: an Overlay to draw between picture and buttons. `onShown()`: what was to be shown covers the screen. */
  constructor({ label, whole, onPanel, layer = null, onShown = () => {} }) {
    this.whole = whole;
    // What covers the screen: nothing of an older picture is to be seen.
    this.shown = null;
    this.zoom = new DeepZoom(
      label,
      () => this.moved(),
      (spec) => {
        this.shown = spec;
        onShown();
      },
    );
    this.navigator = new Navigator(this.zoom);
    this.layer = layer?.(this.zoom) ?? null;
    this.zoomText = h("span", { class: "percent" });
    this.spotText = h("span", { class: "spot" });
    this.sizeText = h("span", { class: "size" });
    this.readout = h("div", { class: "readout", hidden: true }, this.zoomText, this.spotText, this.sizeText);
    this.message = h("div", { class: "message", role: "status" });
    this.buttons = h("div", { class: "toolbar", role: "toolbar", "aria-label": "View" });
    this.element = h(
      "div",
      { class: "stage" },
      this.zoom.place,
      this.layer?.element,
      this.message,
      this.navigator.element,
      this.readout,
      this.buttons,
    );
    this.navigator.element.hidden = matchMedia("(max-width: 640px)").matches;
    this.addButtons(onPanel);
    this.unbind = bindKeys(this.keys(onPanel));
    this.watch = new ResizeObserver(() => this.zoom.item && this.moved());
    this.watch.observe(this.element);
    this.zoom.started.catch((error) => this.say(error.message));
    this.fullChanged = () => this.showToggles();
    document.addEventListener("fullscreenchange", this.fullChanged);
  }

  addButtons(onPanel) {
    const button = (name, label, key, run) =>
      h(
        "button",
        {
          type: "button",
          class: "plain icon-only",
          "aria-label": label,
          title: `${label} (${key})`,
          data: { tool: name },
          on: { click: run },
        },
        icon(name),
      );
    this.mapButton = button("map", "Navigator", "n", () => this.toggleNavigator());
    this.overlayButton = this.layer && button("overlay", "Progress overlay", "o", () => this.toggleLayer());
    this.fullButton = document.fullscreenEnabled ? button("full", "Full screen", "f", () => this.toggleFull()) : null;
    this.panelButton = button("info", "Information", "i", onPanel);
    this.buttons.append(
      ...[
        button("minus", "Zoom out", "-", () => this.zoom.zoomBy(1 / STEP)),
        button("plus", "Zoom in", "+", () => this.zoom.zoomBy(STEP)),
        button("fit", "Fit", "0", () => this.zoom.fit()),
        button("actual", "100 %", "1", () => this.zoom.actual()),
        this.overlayButton,
        this.mapButton,
        this.fullButton,
        this.panelButton,
      ].filter(Boolean),
    );
    this.showToggles();
  }

  keys(onPanel) {
    const zoom = this.zoom;
    return [
      { keys: ["+", "="], show: ["+"], says: "Zoom in", run: () => zoom.zoomBy(STEP) },
      { keys: ["-", "_"], show: ["-"], says: "Zoom out", run: () => zoom.zoomBy(1 / STEP) },
      { keys: ["0"], says: "Fit the picture", run: () => zoom.fit() },
      { keys: ["1"], says: "100 %: one image pixel is one screen pixel", run: () => zoom.actual() },
      {
        keys: ["ArrowLeft"],
        show: ["ArrowLeft", "ArrowUp", "ArrowDown", "ArrowRight"],
        says: "Move",
        run: () => zoom.pan(-NUDGE, 0),
      },
      { keys: ["ArrowRight"], run: () => zoom.pan(NUDGE, 0) },
      { keys: ["ArrowUp"], run: () => zoom.pan(0, -NUDGE) },
      { keys: ["ArrowDown"], run: () => zoom.pan(0, NUDGE) },
      ...(this.layer ? [{ keys: ["o"], says: "Overlay: steps and patches", run: () => this.toggleLayer() }] : []),
      { keys: ["n"], says: "Navigator", run: () => this.toggleNavigator() },
      { keys: ["f"], says: "Full screen", run: () => this.toggleFull() },
      { keys: ["i"], says: "Information", run: onPanel },
    ];
  }

  show(spec) {
    this.say("");
    this.zoom.show(spec);
    this.layer?.update(spec);
    setText(this.sizeText, size(spec.width, spec.height));
    if (this.zoom.item) this.moved();
  }

  /** How far the picture is, for those who do not see it. */
  describe(text) {
    this.zoom.describe(text);
  }

  /** The server is back. */
  wake() {
    this.zoom.wake();
  }

  /** A text in the place of a picture. */
  say(text) {
    setText(this.message, text);
    this.message.hidden = !text;
  }

  moved() {
    const { x, y, inside, pointed } = this.zoom.spot;
    this.readout.hidden = false;
    setText(this.zoomText, zoomWords(this.zoom.zoom));
    setText(this.spotText, inside ? `${pointed ? "" : "centre "}${number(x)}, ${number(y)}` : "–");
    this.navigator.update();
    this.layer?.draw();
  }

  toggleNavigator() {
    this.navigator.element.hidden = !this.navigator.element.hidden;
    if (this.zoom.item) this.navigator.update();
    this.showToggles();
  }

  toggleLayer() {
    if (!this.layer) return;
    this.layer.element.hidden = !this.layer.element.hidden;
    this.layer.draw();
    this.showToggles();
  }

  async toggleFull() {
    try {
      if (document.fullscreenElement) await document.exitFullscreen();
      else await this.whole.requestFullscreen();
    } catch {
      note("This browser does not allow full screen here", "bad");
    }
  }

  showToggles() {
    setAttribute(this.mapButton, "aria-pressed", !this.navigator.element.hidden);
    if (this.overlayButton) setAttribute(this.overlayButton, "aria-pressed", !this.layer.element.hidden);
    if (this.fullButton) setAttribute(this.fullButton, "aria-pressed", document.fullscreenElement !== null);
  }

  close() {
    document.removeEventListener("fullscreenchange", this.fullChanged);
    this.watch.disconnect();
    this.navigator.close();
    this.zoom.close();
    this.unbind();
  }
}

/** Something beside the picture that can be put away. `{toggle, shown}` calls `onChange(shown)`. */
export function togglePanel(whole, panel, shown, onChange = () => {}) {
  function set(value) {
    panel.hidden = !value;
    whole.classList.toggle("with-panel", value);
    onChange(value);
  }
  set(shown);
  return () => set(panel.hidden);
}
