// Deep zoom of one picture, which may be replaced by a larger one of the same shape without the eye noticing.

import { h, setAttribute } from "./dom.js";
import { loadOpenSeadragon } from "./openseadragon.js";
import { Tiles } from "./tiles.js";

/** Screen pixels an image pixel may be enlarged to. */
const MOST_ZOOM = 16;
/** From here on pixels are shown as squares: whoever looks that closely wants to see them. */
const SQUARES_FROM = 3;
/** Milliseconds: the longest timer there is, and between two attempts to load the viewer's script. */
const FOR_EVER = 2 ** 31 - 1;
const RETRY_AFTER = 3000;
/** CSS pixels: below this width the style sheet puts the readout above the buttons. */
const NARROW = 760;
/** What buttons and numbers take of the view's lower end, in CSS pixels: a picture that fits ends above them. */
const BELOW = { wide: 64, narrow: 100, share: 0.25 };
/** Shapes that differ by less are the same picture at another size (sizes are rounded to whole pixels). */
const SAME_SHAPE = 0.02;

export class DeepZoom {
  /**
   * `label`: what is shown, for screen readers. `onMove()`: the view or the picture changed. `onShown(spec)`: nothing of
   * an older picture is on the screen any more.
   */
  constructor(label, onMove = () => {}, onShown = () => {}) {
    Object.assign(this, { label, onMove, onShown });
    this.place = h("div", { class: "zoom", "aria-label": label, role: "group" });
    this.pointer = null;
    // What is shown; and what shall be shown once it is open.
    this.tiles = null;
    this.item = null;
    this.coming = null;
    this.waiting = null;
    this.fitted = true;
    this.closed = false;
    this.place.addEventListener("pointermove", (event) => this.point(event));
    this.place.addEventListener("pointerleave", () => this.point(null));
    this.started = this.start();
  }

  async start() {
    this.lib = await this.load();
    if (this.closed) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const viewer = this.lib({
      element: this.place,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: false,
      animationTime: still ? 0 : 0.4,
      springStiffness: 8,
      blendTime: 0,
      visibilityRatio: 0.6,
      minZoomImageRatio: 0.7,
      maxZoomPixelRatio: MOST_ZOOM / devicePixelRatio,
      zoomPerScroll: 1.3,
      viewportMargins: this.margins(),
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { pinchRotate: false, dblClickToZoom: true },
      // Tiles are loaded, limited and asked for again by Tiles.
      imageLoaderLimit: 0,
      timeout: FOR_EVER,
      tileRetryMax: 0,
      maxImageCacheCount: 400,
    });
    this.viewer = viewer;
    this.describe("");
    setAttribute(viewer.canvas, "role", "img");
    // All keys are the pages' own.
    viewer.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = true;
    });
    viewer.addHandler(
      "tile-drawing",
      ({ tile, tiledImage, rendered }) => tiledImage === this.item && this.tiles.renew(tile, rendered),
    );
    for (const event of ["canvas-drag", "canvas-scroll", "canvas-pinch", "canvas-double-click"])
      viewer.addHandler(event, () => {
        this.fitted = false;
      });
    viewer.addHandler("update-viewport", () => this.moved());
    viewer.addHandler("resize", () => {
      // Who sees the whole picture still wants to after turning the phone or opening the panel. OpenSeadragon keeps
      // the scale, and does so after this event.
      queueMicrotask(() => {
        if (!this.closed) viewer.viewport.setMargins(this.margins());
        if (this.fitted && !this.closed) viewer.viewport.goHome(true);
        this.moved();
      });
    });
    if (this.waiting) this.show(this.waiting);
  }

  /** The viewer's script, asked for until it is there. */
  async load() {
    for (;;) {
      try {
        return await loadOpenSeadragon();
      } catch (error) {
        if (this.closed) throw error;
        await new Promise((resolve) => {
          setTimeout(resolve, RETRY_AFTER);
        });
      }
    }
  }

  margins() {
    const { clientWidth, clientHeight } = this.place;
    const below = clientWidth < NARROW ? BELOW.narrow : BELOW.wide;
    return { left: 0, top: 0, right: 0, bottom: Math.min(below, clientHeight * BELOW.share) };
  }

  /** What a screen reader says of the picture beside its name: how far it is. */
  describe(text) {
    this.described = text || this.described;
    if (this.viewer)
      setAttribute(this.viewer.canvas, "aria-label", [this.label, this.described].filter(Boolean).join(": "));
  }

  /** The server is back after it was away. */
  wake() {
    this.tiles?.wake();
    this.coming?.wake();
  }

  /** Shows a Picture or a Canvas; the same one again only renews what changed. */
  show(spec) {
    if (!this.viewer) {
      this.waiting = spec;
      return;
    }
    const latest = this.coming ?? this.tiles;
    // Fewer changes than before: the coordinator was restarted and counts anew.
    if (latest?.spec.tiles === spec.tiles && (spec.changed ?? 0) >= latest.now) {
      if (latest.mark(spec.changed ?? 0, spec.dirty ?? null)) this.viewer.forceRedraw();
      this.place.dataset.changed = spec.changed ?? 0;
      return;
    }
    this.replace(spec);
  }

  replace(spec) {
    const before = this.item && this.tiles.spec;
    const sameShape = before && Math.abs(spec.width / spec.height / (before.width / before.height) - 1) < SAME_SHAPE;
    this.tiles?.end();
    this.coming?.end();
    const tiles = new Tiles(spec, () => this.viewer?.forceRedraw());
    this.coming = tiles;
    Object.assign(this.place.dataset, {
      version: spec.version ?? 0,
      kind: spec.kind ?? "picture",
      changed: spec.changed ?? 0,
      width: spec.width,
      height: spec.height,
    });
    this.viewer.addTiledImage({
      tileSource: tiles.source(this.lib),
      // Every picture is one unit wide, so a larger one of the same shape lies exactly over the one before.
      x: 0,
      y: 0,
      width: 1,
      success: ({ item }) => {
        if (this.closed || this.coming !== tiles) return this.viewer?.world.removeItem(item);
        Object.assign(this, { item, tiles, coming: null });
        if (!sameShape) {
          this.fitted = true;
          this.viewer.viewport.goHome(true);
        }
        if (!sameShape) this.dropOlder(item);
        item.whenFullyLoaded(() => this.arrived(item, tiles));
        this.moved();
      },
      error: () => {},
    });
  }

  /** Takes away what lies under `item`. */
  dropOlder(item) {
    const { world } = this.viewer;
    for (const other of Array.from({ length: world.getItemCount() }, (_, index) => world.getItemAt(index))) {
      if (world.getIndexOfItem(other) < world.getIndexOfItem(item)) world.removeItem(other);
    }
  }

  /** `item` covers the screen, however long that took: what it replaces is not needed any more. */
  arrived(item, tiles) {
    // Its tiles may also be done because it was replaced itself; then its successor does this.
    if (this.closed || tiles.ended) return;
    this.dropOlder(item);
    this.place.dataset.shown = tiles.spec.version ?? 0;
    this.onShown(tiles.spec);
  }

  moved() {
    if (!this.item) return;
    const zoom = this.zoom;
    const smooth = zoom < SQUARES_FROM;
    if (smooth !== this.smooth) {
      this.smooth = smooth;
      this.viewer.drawer.setImageSmoothingEnabled(smooth);
    }
    this.place.dataset.zoom = zoom.toFixed(5);
    this.onMove();
  }

  /** Screen pixels an image pixel takes: 1 is "100 %". */
  get zoom() {
    return this.item.viewportToImageZoom(this.viewer.viewport.getZoom(true)) * devicePixelRatio;
  }

  /** Where the image lies in the element, in CSS pixels. */
  get frame() {
    const at = (x, y) => this.item.imageToViewerElementCoordinates(new this.lib.Point(x, y));
    const { width, height } = this.tiles.spec;
    const [start, end] = [at(0, 0), at(width, height)];
    return { left: start.x, top: start.y, scale: (end.x - start.x) / width, width, height };
  }

  point(event) {
    if (event && event.pointerType !== "mouse" && event.pointerType !== "pen") return;
    const box = event && this.place.getBoundingClientRect();
    this.pointer = event && { x: event.clientX - box.left, y: event.clientY - box.top };
    if (this.item) this.onMove();
  }

  /** The image pixel under the pointer, or in the middle where there is no pointer. */
  get spot() {
    const { left, top, scale, width, height } = this.frame;
    const place = this.pointer ?? { x: this.place.clientWidth / 2, y: this.place.clientHeight / 2 };
    const [x, y] = [Math.floor((place.x - left) / scale), Math.floor((place.y - top) / scale)];
    return { x, y, inside: x >= 0 && y >= 0 && x < width && y < height, pointed: this.pointer !== null };
  }

  zoomBy(factor) {
    if (!this.item) return;
    this.fitted = false;
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  fit() {
    if (!this.item) return;
    this.fitted = true;
    this.viewer.viewport.goHome();
  }

  actual() {
    if (!this.item) return;
    this.fitted = false;
    this.viewer.viewport.zoomTo(this.item.imageToViewportZoom(1 / devicePixelRatio));
  }

  /** Moves the view by shares of what is visible. */
  pan(right, down) {
    if (!this.item) return;
    this.fitted = false;
    const { viewport } = this.viewer;
    const bounds = viewport.getBounds();
    viewport.panBy(new this.lib.Point(right * bounds.width, down * bounds.height));
    viewport.applyConstraints();
  }

  /** Puts a place of the image (shares of its width and height) into the middle. */
  centre(right, down) {
    if (!this.item) return;
    this.fitted = false;
    const { width, height } = this.tiles.spec;
    this.viewer.viewport.panTo(new this.lib.Point(right, down * (height / width)));
    this.viewer.viewport.applyConstraints();
  }

  close() {
    this.closed = true;
    this.tiles?.end();
    this.coming?.end();
    this.viewer?.destroy();
    this.viewer = null;
    this.item = null;
  }
}
